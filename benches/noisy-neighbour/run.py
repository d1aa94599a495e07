#!/usr/bin/env python3
"""What ten polite tenants notice of a neighbour that takes all it can of everything at once, at 100 times its share.

    cargo build --release && benches/noisy-neighbour/run.py

Runs calm, noisy, calm and noisy phases in turn, each with a service of its own: two pools of simulated engines, a key
for each of ten polite tenants and one for the neighbour, whose load comes from a process of its own that is `nice` and
has one thread, so at most one core. Tells for each phase what the polite lost, how long they waited, and how much
memory the service took; `--only` chooses what the neighbour does, to find out what breaks a bound.
Exits with 1 when a bound is broken, with 2 when a measurement failed or the machine was too busy for one.
"""
import argparse, asyncio, collections, contextlib, dataclasses, json, os, pathlib
import random, signal, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True  # Nothing is left beside the sources.
import neighbour
from wire import HOST, ask, head, opened

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
POLITE = 10
WARM_S = 5.0  # Both kinds of traffic flow for so long before anything is timed. Losses count from the first moment.
ANSWER_S = 60.0  # Longest wait for whatever the polite ask; beyond it a task counts as lost.
RECENT_S = 20.0  # The age up to which a tenant's own ended tasks must be known.
PROBES_PER_S = 10
START_S = 30.0
TOKENS = 16  # Of a polite task, which takes 50 ms to its first token and 15 ms more to its last.
MEMORY_MIB = 256  # What the neighbour may cost of resident memory.
LAG_MS = 25.0  # Times say nothing when this process itself was later than that, at its 99th percentile.
SLOWER = 2.0  # How many times the calm p99 a noisy one may be.
COUNTERS = ("orchestrator_http_", "http_", "auth_", "log_", "sessions", "tasks_", "admission")
TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Nothing can be said about the service."""


def config(folder, options):
    """A small service, so that its bounds are within the neighbour's reach; everything else is at its default."""
    pools = [
        {"id": "chat", "engine": "sim", "model": "chat", "slots": 16, "ctx": 300_000, "replicas": [{"devices": []}],
         "sim": {"first_token_us": 50_000, "token_us": 1_000, "preload_us": 1_000}, "queue": {"capacity": 256}},
        {"id": "vectors", "engine": "sim", "model": "vectors", "slots": 4, "replicas": [{"devices": []}],
         "workloads": ["embedding"], "sim": {"first_token_us": 20_000, "preload_us": 1_000}},
    ]
    quotas = {} if options.no_quotas else {"running": 12, "queued": 128}
    whole = {
        "access": {"keys_file": str(folder / "keys.json")}, "gpu": {"driver": "off"}, "pools": pools,
        "http": {"connections_max": 400}, "default_client": {"quotas": quotas},
        "retention": {"tasks": 2_000, "bytes": 64 << 20}, "sessions": {"capacity": 500},
    }
    for name, value in (one.split("=", 1) for one in options.set):
        section, field = name.split(".")
        whole.setdefault(section, {})[field] = json.loads(value)
    return whole


@dataclasses.dataclass
class Phase:
    """What was seen in one phase."""
    kind: str
    done: int = 0
    refused: int = 0
    lost: int = 0
    unanswered: int = 0  # Connections that were closed without an answer.
    cut: int = 0
    forgotten: int = 0
    asked: int = 0  # Looks at ended tasks and conversations.
    probes_failed: int = 0
    first_ms: list[float] = dataclasses.field(default_factory=list)
    health_ms: list[float] = dataclasses.field(default_factory=list)
    lag_ms: list[float] = dataclasses.field(default_factory=list)  # How late this process itself was.
    rss_mib: float = 0.0
    log_bytes: int = 0
    cpu: dict[str, float] = dataclasses.field(default_factory=dict)  # Cores that each of the three used.
    neighbour: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    counters: dict[str, float] = dataclasses.field(default_factory=dict)  # Of the service, about who had no room.
    faults: dict[str, int] = dataclasses.field(default_factory=dict)

    def fault(self, what):
        """Keeps some words about what went wrong, for whoever looks why."""
        self.faults[what[:160]] = self.faults.get(what[:160], 0) + 1

    def harm(self):
        """All that a polite tenant must never meet."""
        return self.refused + self.lost + self.unanswered + self.cut + self.forgotten + self.probes_failed

    def cells(self):
        """The row of the table."""
        first, health = self.first_ms, self.health_ms
        return [self.kind, f"{self.done}", f"{self.lost} / {self.refused} / {self.unanswered} / {self.cut}",
                f"{self.forgotten} of {self.asked}", f"{at(first, 50):.1f} / {at(first, 99):.1f}",
                f"{at(health, 50):.1f} / {at(health, 99):.1f} / {max(health, default=0):.1f}",
                f"{self.probes_failed}", f"{self.rss_mib:.0f}", f"{self.log_bytes / 1024:.0f}",
                f"{at(self.lag_ms, 99):.1f}", " / ".join(f"{used:.2f}" for used in self.cpu.values())]

    def as_json(self):
        shown = dataclasses.asdict(self)
        for name in ("first_ms", "health_ms", "lag_ms"):
            values = shown.pop(name)
            shown[name] = {"count": len(values), "p50": at(values, 50), "p99": at(values, 99), "max": at(values, 100)}
        return shown


HEAD = ["phase", "polite tasks done", "lost / refused / unanswered / cut", "forgotten", "first token p50 / p99, ms",
        "/healthz p50 / p99 / max, ms", "/healthz failed", "RSS, MiB", "log, KiB", "own lag p99, ms",
        "cores: service / neighbour / meter"]


def at(values, percent):
    """The smallest value that so many percent are not above."""
    if not values:
        return 0.0
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


class Service:
    """A running `orchestratord serve` with a key for each client."""

    def __init__(self, options):
        self.folder = tempfile.TemporaryDirectory(prefix="noisy-neighbour-")  # Its mode is 0700.
        folder, self.program = pathlib.Path(self.folder.name), str(options.orchestratord)
        names = [*(f"polite{one}" for one in range(POLITE)), "hog"]
        self.keys = {name: self.key(folder, name, "submit") for name in names}
        self.keys["ops"] = self.key(folder, "ops", "read")
        (folder / "config.yaml").write_text(json.dumps(config(folder, options)))  # JSON is YAML.
        self.out, self.log = folder / "out", folder / "log"
        with open(self.out, "w") as out, open(self.log, "w") as log:
            command = [self.program, "serve", "--config", str(folder / "config.yaml"), "--listen", f"{HOST}:0"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log)

    def key(self, folder, name, scope):
        command = [self.program, "key", "new", "--file", str(folder / "keys.json"), "--client", name,
                   "--scopes", scope]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise Failed(f"no key could be made: {made.stderr}")
        return made.stdout.strip()

    async def ready(self):
        """Waits until both pools serve; returns the port."""
        end, port = time.monotonic() + START_S, 0
        while time.monotonic() < end and self.process.poll() is None:
            await asyncio.sleep(0.05)
            said = self.out.read_text()
            if not port and "listening on" in said:
                port = int(said.split("listening on")[1].split()[0].rsplit(":", 1)[1])
            if port:
                status, body = await ask(port, head("GET", "/readyz"), START_S)
                if status == 200 and set(json.loads(body)["pools"].values()) == {"ready"}:
                    return port
        raise Failed(f"the service did not get ready:\n{self.log.read_text()[-3000:]}")

    async def counters(self, port):
        """Its own counts of who had no room, as far as they are not 0."""
        status, body = await ask(port, head("GET", "/metrics", self.keys["ops"]), ANSWER_S)
        lines = [line.rsplit(" ", 1) for line in body.decode().splitlines() if line.startswith(COUNTERS)]
        return {name: float(value) for name, value in lines if status == 200 and float(value)}

    def peak_mib(self):
        """Most resident memory that it ever had."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    def cpu_s(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


class Tenant:
    """A polite client: a task now and then, all in one conversation, and looks at what has ended."""

    def __init__(self, name, port, key, phase, seed):
        self.name, self.port, self.key, self.phase = name, port, key, phase
        self.random = random.Random(f"{seed} {name}")
        self.ended = collections.deque()  # When, and which.
        self.sent = self.failed = 0

    async def live(self, until, timed_from):
        """Sends without waiting for answers, each at its time."""
        due, under_way = time.monotonic() + self.random.random(), set()
        while due < until:
            await asyncio.sleep(due - time.monotonic())
            is_timed = due >= timed_from
            if is_timed:
                self.phase.lag_ms.append((time.monotonic() - due) * 1000)
            under_way |= {asyncio.create_task(self.task(is_timed)), asyncio.create_task(self.look_back())}
            under_way = {one for one in under_way if not one.done()}
            due += self.random.uniform(0.5, 1.0)
        await asyncio.gather(*under_way)

    async def task(self, is_timed):
        self.sent += 1
        body = json.dumps({"prompt": f"Tell {self.name} about number {self.sent}.", "max_tokens": TOKENS,
                           "model_ref": "chat", "session_id": f"talk-{self.name}"}).encode()
        request = head("POST", "/v1/tasks", self.key, body=body, accept="text/event-stream")
        first, since, text = None, time.monotonic(), b""
        try:
            async with asyncio.timeout(ANSWER_S), opened(self.port) as (reader, writer):
                writer.write(request)
                while piece := await reader.read(65536):
                    text += piece
                    if first is None and b"event: token" in text:
                        first = time.monotonic() - since
        except TimeoutError:
            self.phase.lost += 1
            self.failed += 1
            return self.phase.fault(f"a task did not end: {text[-120:]!r}")
        except OSError as error:
            text += repr(error).encode()
        self.settle(text, first if is_timed else None)

    def settle(self, text, first):
        """What became of a task, by all that came."""
        status, phase = text[9:12], self.phase
        if b"event: end" in text and first is not None:
            phase.first_ms.append(first * 1000)
        if b"event: end" in text:
            phase.done += 1
            task = text.lower().split(b"\r\nx-task-id: ", 1)[1].split(b"\r\n")[0].decode()
            self.ended.append((time.monotonic(), task))
        elif b"event: error" in text:
            phase.lost += 1
        elif not text.startswith(b"HTTP/"):
            phase.unanswered += 1
        elif status == b"200":
            phase.cut += 1
        else:
            phase.refused += 1
        if b"event: end" not in text:
            self.failed += 1
            phase.fault(f"task: {(text[:13] + text[-140:])!r}")

    def recent(self):
        while self.ended and self.ended[0][0] < time.monotonic() - RECENT_S:
            self.ended.popleft()
        return [task for _, task in self.ended]

    async def look_back(self):
        recent = self.recent()
        if recent:
            await self.known(f"/v1/tasks/{self.random.choice(recent)}")

    async def known(self, path):
        """Asks for what must be there; returns what it says."""
        self.phase.asked += 1
        try:
            status, body = await ask(self.port, head("GET", path, self.key), ANSWER_S)
        except (OSError, TimeoutError) as error:
            status, body = 0, repr(error).encode()
        if status == 200:
            return json.loads(body)
        self.phase.forgotten += status == 404
        self.phase.unanswered += status == 0
        self.phase.refused += status not in (0, 404)
        return self.phase.fault(f"GET {path.rsplit('/', 1)[0]}: {status} {body!r}")

    async def check(self):
        """The conversation has never been forgotten, and what ended lately is known."""
        talk = await self.known(f"/v1/sessions/talk-{self.name}")
        if talk is not None and talk["tasks"] < self.ended_all():
            self.phase.forgotten += 1
            self.phase.fault(f"a conversation began anew: {talk['tasks']} of {self.sent} tasks")
        for task in self.recent():
            await self.known(f"/v1/tasks/{task}")

    def ended_all(self):
        """Tasks that the conversation must know of."""
        return self.sent - self.failed


async def probe(port, phase, until, timed_from):
    """Asks for the health page so many times a second, each time on a new connection."""
    async def once(is_timed):
        since = time.monotonic()
        try:
            status, body = await ask(port, head("GET", "/healthz"), ANSWER_S)
        except (OSError, TimeoutError) as error:
            status, body = 0, repr(error).encode()
        if status != 200:
            phase.probes_failed += 1
            phase.fault(f"GET /healthz: {status} {body!r}")
        elif is_timed:
            phase.health_ms.append((time.monotonic() - since) * 1000)

    due, under_way = time.monotonic(), set()
    while due < until:
        await asyncio.sleep(due - time.monotonic())
        under_way = {one for one in under_way if not one.done()} | {asyncio.create_task(once(due >= timed_from))}
        due += 1 / PROBES_PER_S
    await asyncio.gather(*under_way)


@contextlib.asynccontextmanager
async def neighbours(is_noisy, port, key, options, phase):
    """The neighbour's process while the block runs, if it is there at all."""
    if not is_noisy:
        yield
        return
    told = json.dumps({"port": port, "key": key, "only": options.only, "nice": options.nice, "rate": options.rate})
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "neighbour.py"), told, stdout=asyncio.subprocess.PIPE)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        said, _ = await process.communicate()
    if process.returncode or not said:
        raise Failed("the neighbour did not live as long as its phase")
    got = json.loads(said)
    phase.neighbour, phase.cpu["neighbour"] = got["counts"], got["cores"]


async def run_phase(kind, number, options):
    """One service, with or without the neighbour."""
    phase, service = Phase(f"{kind} {number}"), Service(options)
    phase.cpu = {"service": 0.0, "neighbour": 0.0, "meter": 0.0}
    try:
        port = await service.ready()
        async with neighbours(kind == "noisy", port, service.keys["hog"], options, phase):
            begun, cpu, own = time.monotonic(), service.cpu_s(), time.process_time()
            timed_from, until = begun + WARM_S, begun + WARM_S + options.seconds
            tenants = [Tenant(f"polite{one}", port, service.keys[f"polite{one}"], phase, options.seed)
                       for one in range(POLITE)]
            await asyncio.gather(probe(port, phase, until, timed_from),
                                 *(tenant.live(until, timed_from) for tenant in tenants))
            took = time.monotonic() - begun
            phase.cpu["service"] = (service.cpu_s() - cpu) / took
            phase.cpu["meter"] = (time.process_time() - own) / took
            await asyncio.gather(*(tenant.check() for tenant in tenants))
            if service.process.poll() is not None:
                raise Failed(f"the service ended:\n{service.log.read_text()[-3000:]}")
            phase.rss_mib, phase.log_bytes = service.peak_mib(), service.log.stat().st_size
            if options.keep_logs:
                (options.keep_logs / f"{kind}-{number}.log").write_bytes(service.log.read_bytes())
        phase.counters = await service.counters(port)
    finally:
        service.end()
    return phase


def verdicts(phases):
    """Each bound with what was measured, and whether it held; `None` where the machine was too busy to tell."""
    calm = [phase for phase in phases if phase.kind.startswith("calm")]
    noisy = [phase for phase in phases if phase.kind.startswith("noisy")]

    def p99(some, name):
        return at([value for phase in some for value in getattr(phase, name)], 99)

    above = max(phase.rss_mib for phase in noisy) - max(phase.rss_mib for phase in calm)
    yield f"memory above calm: {above:.0f} MiB, at most {MEMORY_MIB}", above <= MEMORY_MIB
    harm = sum(phase.harm() for phase in noisy)
    text = "tasks lost or refused, streams cut, requests unanswered, ends and conversations forgotten, probes failed"
    yield f"{text}: {harm}, none", harm == 0
    can_tell = max(at(phase.lag_ms, 99) for phase in phases) <= LAG_MS
    for name, text in (("first_ms", "first token"), ("health_ms", "/healthz")):
        slower = p99(noisy, name) / max(p99(calm, name), 0.001)
        text = f"p99 of {text}: {p99(calm, name):.1f} ms calm, {p99(noisy, name):.1f} noisy, {slower:.2f} times"
        yield f"{text}, at most {SLOWER:.0f}", slower <= SLOWER if can_tell else None


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def got(phases):
    """What the neighbour got, as a table: all noisy phases together."""
    sums = collections.defaultdict(collections.Counter)
    for phase in phases:
        for what, counts in phase.neighbour.items():
            sums[what].update(counts)
    return table(["what the neighbour does", "what it got"],
                 [[what, ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))]
                  for what, counts in sorted(sums.items())])


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orchestratord", type=pathlib.Path, default=ROOT / "target/release/orchestratord")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each phase, behind its start")
    parser.add_argument("--rounds", type=int, default=2, help="of a calm and a noisy phase each")
    parser.add_argument("--only", default=",".join(neighbour.ALL), help="what the neighbour does: %(default)s")
    parser.add_argument("--rate", type=float, default=1.0, help="its rates, as a multiple of the usual ones")
    parser.add_argument("--nice", type=int, default=5, help="of its process")
    parser.add_argument("--no-quotas", action="store_true", help="no quotas of running and waiting tasks")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=JSON",
                        help="another value in the configuration, such as http.bodies_bytes_max=67108864")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target/noisy-neighbour.json")
    parser.add_argument("--keep-logs", type=pathlib.Path, help="a folder for the services' logs")
    options = parser.parse_args(arguments)
    unknown = set(options.only.split(",")) - {*neighbour.ALL, *neighbour.MORE}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


async def measure(options):
    phases = []
    for number in range(1, options.rounds + 1):
        for kind in ("calm", "noisy"):
            phases.append(await run_phase(kind, number, options))
            print(f"{phases[-1].kind}: {phases[-1].done} tasks done", file=sys.stderr)
            if kind == "calm" and phases[-1].harm():
                raise Failed(f"the service fails the polite when they are alone: {phases[-1].faults}")
    return phases


def show(phases):
    """Both tables, and what went wrong."""
    print(table(HEAD, [phase.cells() for phase in phases]), got(phases), sep="\n\n", end="\n\n")
    for phase in phases:
        for what, count in sorted(phase.faults.items(), key=lambda fault: -fault[1])[:5]:
            print(f"- {phase.kind}: {count} times {what}")


def main():
    options = parse(sys.argv[1:])
    try:
        phases = asyncio.run(measure(options))
    except (Failed, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    show(phases)
    held = list(verdicts(phases))
    for text, is_held in held:
        print({True: "held  ", False: "BROKEN", None: "UNTOLD"}[is_held], text)
    report = {"seconds": options.seconds, "only": options.only, "rate": options.rate, "set": options.set,
              "phases": [phase.as_json() for phase in phases],
              "bounds": [{"text": text, "held": is_held} for text, is_held in held]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    found = {is_held for _, is_held in held}
    return 1 if False in found else 2 if None in found else 0


if __name__ == "__main__":
    sys.exit(main())
