"""Checks of engines on a device: room before a load, who computes where, a kill in the middle, memory that runs out, and XIDs."""
import json
import pathlib
import shutil
import subprocess
import threading
import time

from check.devices import GIB, MIB, look
from check.report import Report
from check.service import Service
from check.world import Failed

LOAD_S = 120.0
STREAMS = 20
TOKENS = 64
PROMPTS = [f"on the {number}th day the card was asked for" for number in range(STREAMS)]
LONG_PROMPT = "a card that was lost comes back in its own time and " * 240  # 12,480 bytes.


def free_memory(world):
    seen = look(world)
    return seen["memory_total"] - seen["memory_used"]


def room(world, report: Report):
    """A load that does not fit is refused with the right figures, one that fits by a little is taken; the engine is simulated, the memory is not."""
    until_free(world, 15)
    need = free_memory(world) // 2
    held = world.cuda(free_memory(world) - need + GIB)  # Now a GiB too little is free.
    pool = {
        "id": "roomy", "engine": "sim", "model": "m", "ctx": 1024, "sim": {"preload_us": 0, "first_token_us": 0, "token_us": 0},
        "memory": {"model_bytes": need, "reserve_bytes": 0, "kv_bytes_per_token": 1}, "replicas": [{"devices": [0]}],
    }
    service = Service(world, "room", {"pools": [pool]})
    death, took = service.until("the load is refused", lambda: service.replicas()[0].get("last_death"), 30)
    said = death["message"]
    report.holds("a load that does not fit is refused as out of device memory", death["cause"] == "out_of_vram", death)
    report.show("time until it was refused, s", took)
    free = free_memory(world)
    figures = [int(word) for word in said.split() if word.isdigit()]
    report.holds("it says what is free", any(abs(figure - free) <= 64 * MIB for figure in figures), said, f"free by a look: {free}")
    report.holds("it says what is needed", any(need <= figure <= need + MIB for figure in figures), said, f"needed: {need}")
    held.end()
    report.show("time until it was loaded when there was room, s", service.until_ready(1, 60))
    service.end()
    until_free(world, 15)
    memory = {"model_bytes": free_memory(world) - 512 * MIB, "reserve_bytes": 256 * MIB, "kv_bytes_per_token": 1}
    close = Service(world, "close", {"pools": [pool | {"memory": memory}]})
    report.show("one that fits by 256 MiB is taken, s", close.until_ready(1, 30))
    report.holds("at the first try", not close.replicas()[0]["deaths"], close.replicas()[0]["deaths"])
    close.end()


def pool_of(world, replicas, **more):
    command, model, env, share = world.engine()
    return {
        "id": "llm", "engine": "openai", "model": model, "slots": 1, "ctx": 16_384, "command": command, "process": {"env": env},
        "replicas": [{"devices": [0], "shared_bytes": share}] * replicas, "restart": {"backoff_ms": 100}, "resume": {"attempts_max": 8},
        "memory": {"model_bytes": GIB, "reserve_bytes": 256 * MIB, "kv_bytes_per_token": 1}, **more,
    }


def group_of(pid):
    """The process and all that descend from it."""
    found, parents = {pid}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(words[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def two_engines(world, report: Report):
    """Two engines on one card: where they compute, what they say, and one of them killed beside twenty streams."""
    until_free(world, 15)
    service = Service(world, "engines", {"pools": [pool_of(world, 2)]})
    report.show("time until both engines were ready, s", service.until_ready(2, LOAD_S))
    uuid = service.device()["id"]
    where(world, report, service, uuid)
    first = service.replicas()[0]
    report.show("self-test at the load", first["self_test"])
    report.show("engine", {"version": first["engine_version"], "digest": first["model_digest"]})
    begun = time.monotonic()
    whole = service.streams(PROMPTS, TOKENS)
    report.show(f"{STREAMS} streams of {TOKENS} tokens took, s", time.monotonic() - begun)
    report.holds("every stream has ended well", all(end[0] == "end" for _, end in whole), [end for _, end in whole if end[0] != "end"][:3])
    killed(world, report, service, whole)
    report.show("self-test behind that", [replica["self_test"] for replica in service.replicas()])
    report.show("time to stop the service and its engines, s", service.end())
    report.show("time behind that until no engine was on the device, s", until_free(world, 15))


def where(world, report: Report, service, uuid):
    """Each engine computes on the device of its mask, and nowhere else is known of it."""
    listed = {pid for pid, _ in look(world).get("processes", [])}
    for replica in service.replicas():
        pid = replica["engine_process_id"]
        report.holds(f"{replica['replica_id']} is seen on its device", bool(group_of(pid) & listed), {"process": pid, "on the device": sorted(listed)})
        told = [word for word in pathlib.Path(f"/proc/{pid}/environ").read_text().split("\0") if word.startswith("CUDA_VISIBLE_DEVICES=")]
        report.compare(f"what {replica['replica_id']} was told", told, [f"CUDA_VISIBLE_DEVICES={uuid}"])
    report.compare("replicas on the device", service.device()["replicas"], [replica["replica_id"] for replica in service.replicas()])


def killed(world, report: Report, service, whole):
    """kill -9 of one engine in the middle: byte equality, when its memory is free, and when it is there again."""
    victim = service.replicas()[0]["engine_process_id"]
    group, before, seen, moment, ready = group_of(victim), look(world), [0], [], []
    watch = world.start("looks", [world.probe_path, *(["--library", world.library] if world.library else []), "looks", "--ms", "6000", "--every-ms", "5"], talks=True)
    watch.line(30)

    def until_back():
        """Notes when another process serves in its place."""
        is_back = lambda: (one := service.replicas()[0])["state"] == "ready" and one["engine_process_id"] not in (None, victim)
        ready.append(service.until("the killed engine is ready again", is_back, LOAD_S)[1])

    back = threading.Thread(target=until_back)

    def on_token(_):
        seen[0] += 1
        if seen[0] == STREAMS * TOKENS // 8:
            moment.append(time.time() * 1000)
            for pid in sorted(group, reverse=True):
                subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL)
            back.start()

    again = service.streams(PROMPTS, TOKENS, on_token)
    equal = sum(one[0] == other[0] and other[1][0] == "end" for one, other in zip(whole, again))
    pool = service.get("/v1/pools")[0]
    report.holds(f"{STREAMS} streams beside a kill -9 are equal byte for byte", equal == STREAMS, f"{equal} of {STREAMS}")
    report.holds("some were resumed", pool["resumed"] >= 1, pool["resumed"])
    report.show("streams that differ, or what ended them", [
        {"at": at, "first difference": next((place for place, (a, b) in enumerate(zip(one[0], other[0])) if a != b), min(len(one[0]), len(other[0]))),
         "end": other[1][1]} for at, (one, other) in enumerate(zip(whole, again)) if one[0] != other[0]])
    if not moment:
        raise Failed("the engine was not killed: too few tokens came")
    lines = [json.loads(line) for line in watch.child.stdout if line.startswith("{")]
    behind = [line for line in lines if line["at_ms"] > moment[0] and line["sample"]]
    left = next((line["at_ms"] - moment[0] for line in behind if not group & {pid for pid, _ in line["sample"].get("processes", [])}), None)
    held = sum(used or 0 for pid, used in before.get("processes", []) if pid in group)
    least = before["memory_used"] - held + 64 * MIB
    freed = next((line["at_ms"] - moment[0] for line in behind if line["sample"]["memory_used"] <= least), None)
    report.show("behind the kill -9 the driver lists the engine for, ms", left)
    report.show("behind the kill -9 its memory is free after, ms", freed, f"{held} bytes")
    back.join(LOAD_S)
    report.holds("it is there again", bool(ready), ready, "seconds behind the kill -9")
    service.until_ready(2, LOAD_S)
    death = service.replicas()[0]["last_death"]
    report.holds("its death is a signal's", death and death["cause"] == "signal", death)
    report.holds("the other one was not restarted", service.replicas()[1]["restarts"] == 0, service.replicas()[1]["restarts"])


def until_free(world, within):
    """Waits until nothing computes on the device; returns for how many seconds."""
    begun = time.monotonic()
    while time.monotonic() - begun < within:
        left = {pid for pid, _ in look(world).get("processes", [])}
        if not left:
            return time.monotonic() - begun
        time.sleep(0.02)
    raise Failed(f"processes are left on the device: {sorted(left)}")


def out_of_memory(world, report: Report):
    """A real engine runs out of device memory in a task: told apart, fewer slots, and the task ends well when there is memory again."""
    until_free(world, 15)
    service = Service(world, "oom", {"pools": [pool_of(world, 1, slots=2)]})
    service.until_ready(1, LOAD_S)
    service.stream(PROMPTS[0], 8)
    held, hogs = None, [64, 128, 256, 512]
    while held is None and hogs:
        try:
            held = world.cuda(free_memory(world) - GIB // 2 - hogs.pop(0) * MIB if world.is_real else free_memory(world) - 64 * MIB)
        except Failed:
            pass  # A context takes some memory of its own, how much differs.
    report.show("memory that is left to the engine, bytes", free_memory(world))
    ended = []
    asking = threading.Thread(target=lambda: ended.append(service.stream(LONG_PROMPT, 8)))
    asking.start()
    counts, took = service.until("the engine is out of memory", lambda: service.replicas()[0]["attempts_failed"], 40)
    report.holds("it is told apart from other losses", set(counts) == {"out_of_vram"}, counts)
    report.show("time until that was seen, s", took)
    replica = service.replicas()[0]
    report.holds("the replica is good for fewer slots", replica["slots_usable"] < replica["slots_total"], {"usable": replica["slots_usable"], "of": replica["slots_total"]})
    report.holds("the device is not taken out", service.device()["condition"] == "healthy", service.device()["condition"])
    held.end()
    asking.join(60)
    report.holds("the task ends well when there is memory again", bool(ended) and ended[0][1][0] == "end", ended and ended[0][1])
    replica = service.replicas()[0]
    usable = service.until("it may be used again", lambda: service.replicas()[0]["slots_usable"], 15)[0]
    report.show("slots behind it", {"usable": usable, "of": replica["slots_total"]})
    report.show("attempts that failed, restarts", {"failed": replica["attempts_failed"], "restarts": replica["restarts"], "deaths": replica["deaths"]})
    service.end()


def xids(world, report: Report):
    """A process of ours writes where it has no memory: the event is seen, twice, and whoever had no part in it goes on."""
    until_free(world, 15)
    service = Service(world, "xids", {"pools": [pool_of(world, 1)]})
    service.until_ready(1, LOAD_S)
    engine = service.replicas()[0]["engine_process_id"]
    listener = world.events(40)
    numbers = []
    for turn in (1, 2):
        before = sum(xid["count"] for xid in service.device()["xids"].values())
        culprit = world.cuda(256 * MIB, "fault")
        begun = time.time() * 1000
        culprit.tell("now")
        report.show(f"what the driver tells the process, time {turn}", culprit.line(30))
        seen = json.loads(listener.line(15))
        report.show(f"XID of time {turn}, and how long it took to be seen, ms", {"xid": seen.get("xid"), "ms": seen["at_ms"] - begun})
        numbers.append(seen.get("xid"))
        service.until("the service has counted it", lambda: sum(xid["count"] for xid in service.device()["xids"].values()) > before, 15)
        culprit.end()
    device, replica = service.device(), service.replicas()[0]
    report.holds("it is one of a process", all(number in (13, 31, 43, 45) for number in numbers), numbers)
    report.holds("its effect is that engines are looked at", all(xid["effect"] == "process" for xid in device["xids"].values()), device["xids"])
    report.holds("the card is not taken out", device["condition"] == "healthy" and device["failures"] == 0, {"condition": device["condition"], "failures": device["failures"]})
    service.until_ready(1, 30)
    replica = service.replicas()[0]
    report.holds("the engine that had no part in it is the same process", replica["engine_process_id"] == engine and replica["restarts"] == 0, {"restarts": replica["restarts"]})
    report.holds("and serves", service.stream(PROMPTS[0], 8)[1][0] == "end")
    if shutil.which("dmesg") and world.is_real:
        text = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
        report.show("the kernel's log of it", [line[-200:] for line in text.splitlines() if "Xid" in line][-4:])
    service.end()
