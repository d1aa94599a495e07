"""Checks of what is seen of a device: at rest, under load, by one process and by two."""
import pathlib
import subprocess

from check.report import Report
from check.world import Failed

MIB = 1 << 20
GIB = 1 << 30
SETTLE_MS = 2_000


def look(world):
    """One look at the first device."""
    seen = world.probe("looks")[0]
    if seen["seen"] != "sample":
        raise Failed(f"a look at the device gave: {seen['seen']}")
    return seen["sample"]


def bus(text):
    """A PCI address without the width of its domain, which the two write differently."""
    return text and text.lower().split(":", 1)[1] if text and text.count(":") == 2 else text


def numa_node(pci):
    """What the kernel says of the device's place."""
    for name in (pci or "").lower(), (pci or "").lower()[4:]:
        path = pathlib.Path(f"/sys/bus/pci/devices/{name}/numa_node")
        if name and path.exists():
            node = int(path.read_text())
            return node if node >= 0 else None
    return None


def inventory(world, report: Report):
    """Each field of the list of devices."""
    listed, word = world.probe("inventory")[0], world.smi()
    ours, drivers = listed["inventory"], word["devices"]
    report.show("time to open the driver and list the devices, ms", listed["open_ms"])
    report.compare("driver", ours.get("version"), word["driver"])
    whole = [device for device in ours["devices"] if not isinstance(device["mig"], dict) or "part_of" not in device["mig"]]
    report.compare("devices", len(whole), len(drivers))
    for device, driver in zip(whole, drivers):
        report.compare("UUID", device["id"], driver["uuid"])
        report.compare("name", device["name"], driver["name"])
        report.compare("memory, bytes", device["memory"], driver["memory_total"], within=MIB)
        report.compare("PCI address", bus(device["pci"]), bus(driver["pci"]))
        report.compare("PCIe generation", device["pcie"] and device["pcie"][0], driver["pcie_gen"])
        report.compare("PCIe width", device["pcie"] and device["pcie"][1], driver["pcie_width"])
        report.compare("divided by MIG", device["mig"] != "off", driver["mig"] == "Enabled")
        capability = world.query("compute_cap")
        report.compare("compute capability", device["compute_capability"] and "{}.{}".format(*device["compute_capability"]), capability)
        if world.is_real:
            report.compare("NUMA node", device["numa_node"], numa_node(device["pci"]), note="the kernel's word")
        report.show("CPUs near to it", device.get("cpus", []))
        report.show("NVLinks that are up", device["nvlinks"])
        report.show("ECC", driver["ecc"])
    return ours


def calls(world, report: Report, when):
    """Each call of the driver: what it gives, and how long it takes."""
    measured = world.probe("calls", "--rounds", "200")[0]
    for call in measured["calls"]:
        if call["index"] == 0:
            took = {name: round(call[name], 1) for name in ("p50_us", "p99_us", "max_us")}
            report.show(f"{call['call']}, {when}", {"gives": call["error"] or call["value"], **took})
    whole = world.probe("looks", "--ms", "1000", "--every-ms", "20")
    times = sorted(seen["took_us"] for seen in whole)
    report.show(f"a whole look, {when}, µs", {"p50": times[len(times) // 2], "p99": times[int((len(times) - 1) * 0.99)], "looks": len(times)})
    report.holds(f"every look was answered, {when}", all(seen["seen"] == "sample" for seen in whole))


def sample(world, report: Report, when, power_within):
    """Each field of one look beside nvidia-smi's."""
    ours, driver = look(world), world.smi()["devices"][0]
    free = ours["memory_total"] - ours["memory_used"]
    report.compare(f"memory that is free, {when}, bytes", free, driver["memory_free"], within=64 * MIB)
    report.compare(f"memory there is, {when}, bytes", ours["memory_total"], driver["memory_total"], within=MIB)
    report.compare(f"temperature, {when}, °C", ours["temperature_c"], driver["temperature"], within=4)
    report.compare(f"power, {when}, mW", ours["power_mw"], driver["power"], within=power_within)
    report.compare(f"power limit, {when}, mW", ours["power_limit_mw"], driver["power_limit"], within=1_000)
    report.compare(f"reasons for slower clocks, {when}, bits", ours["throttle_reasons"], driver["reasons"])
    report.compare(f"uncorrected ECC errors, {when}", ours["ecc_uncorrected"], driver["ecc_uncorrected"])
    pending = "Yes" in (driver["remap_pending"], driver["retire_pending"])
    report.compare(f"memory waits for a reset, {when}", ours["reset_pending"], pending)
    report.show(f"clocks, {when}, MHz", {"sm": driver["clock_sm"], "memory": driver["clock_memory"], "state": driver["performance_state"]})
    return ours, driver


def at_rest(world, report: Report):
    ours, driver = sample(world, report, "at rest", power_within=30_000)
    report.compare("utilisation, at rest, %", ours["utilization_percent"], driver["utilization"], within=5)
    calls(world, report, "at rest")


def under_load(world, report: Report):
    """One process that computes, then a second one: utilisation, memory, process lists, and what a look costs meanwhile."""
    before = look(world)
    first = world.cuda(4 * GIB, "compute")
    world.probe("looks", "--ms", str(SETTLE_MS), "--every-ms", "100")
    ours, driver = sample(world, report, "under load", power_within=150_000)
    report.compare("utilisation, under load, %", ours["utilization_percent"], driver["utilization"], within=20)
    report.holds("the device is seen to be busy", (ours["utilization_percent"] or 0) >= 50, ours["utilization_percent"])
    grown = ours["memory_used"] - before["memory_used"]
    report.holds("its memory is seen to be taken", 4 * GIB <= grown <= 6 * GIB, grown, "4 GiB, and what a context of CUDA takes")
    processes(world, report, [first], "one process")
    calls(world, report, "while a kernel runs")
    second = world.cuda(2 * GIB)
    processes(world, report, [first, second], "two processes")
    [process.end() for process in (first, second)]


def processes(world, report: Report, started, when):
    """The processes that compute on the device, by the device layer and by nvidia-smi."""
    ours = look(world).get("processes", [])
    drivers = [[process["pid"], process["used"]] for process in world.smi()["devices"][0]["processes"] if process["type"].startswith("C")]
    report.compare(f"process ids, {when}", [pid for pid, _ in ours], [pid for pid, _ in drivers])
    for (_, used), (_, said) in zip(ours, drivers):
        report.compare(f"memory of a process, {when}, bytes", used, said, within=MIB)
    seen = {pid for pid, _ in ours}
    report.holds(f"each of ours is in the list, {when}", all(process.pid in seen for process in started), [process.pid for process in started],
                 "not so where processes have other numbers inside a container than for the driver")


def masks(world, report: Report):
    """Names of devices that are not there, by `orchestratord check`."""
    known = world.probe("inventory")[0]["inventory"]["devices"][0]["id"]
    gpu = {"driver": "required", **({"library": str(world.library)} if world.library else {})}
    for name, device, words in (
            ("a UUID that is not there", "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff", "there is no device GPU-ffffffff"),
            ("an index that is not there", 7, "there is no device 7; there is 0 ("), ("the begin of its UUID", known[:12], None), ("its index", 0, None)):
        path = world.folder / "mask.json"
        pool = f'{{"id": "p", "engine": "sim", "model": "m", "replicas": [{{"devices": [{json_of(device)}]}}]}}'
        path.write_text(f'{{"gpu": {json_of(gpu)}, "pools": [{pool}]}}')
        done = subprocess.run([str(world.orchestratord), "check", str(path)], capture_output=True, text=True, timeout=60)
        said = (done.stdout + done.stderr).strip()
        if words:
            report.holds(f"{name} is refused with what there is", done.returncode != 0 and words in said and known in said, said)
        else:
            report.holds(f"{name} is taken", done.returncode == 0, said)


def json_of(value):
    import json
    return json.dumps(value)
