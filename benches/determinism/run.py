#!/usr/bin/env python3
"""How often a real engine repeats a text from the same prompt, parameters and seed, beside the class that is claimed.

    cargo build --release && cargo xtask engines && benches/determinism/run.py

For each number of slots, prompt cache and length it starts `orchestratord serve` with one pool of one replica, sends
texts alone, sends them again alone behind prompts that begin alike, and sends all of them at once. A class is
overclaimed when a text differs that it covers: alone from `single_slot` on, in the crowd from `batch_invariant` on.
Exits with 1 when one is, with 2 when a measurement failed.
"""
import argparse, concurrent.futures, dataclasses, http.client, json, os, pathlib
import signal, socket, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLASSES = ["none", "single_slot", "batch_invariant"]
POOL = "measured"
CTX = 2048  # Tokens of one task: the longest text and its prompt.
TASK_S = 300.0  # Longest run of one task, its wait in the crowd included.
ASK_S = 10.0  # Longest answer to a question, and silence in a stream but for comments.
STOP_S = 60.0  # Longest end of the service and of its engine.
BEFORE_TOKENS = 8  # Length of the texts between, of which only the prompt matters.


class Failed(Exception):
    """Nothing can be said about the engine."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """How a server is started and asked."""
    command: list[str]
    caches: dict[str, list[str]]  # The prompt caches to measure, each with the flags that the server gets for it.
    best_effort: tuple[str, ...] = ()  # Caches that only best_effort tasks get; no class is promised to those.
    most: str = "batch_invariant"  # A higher class cannot be known.
    preload_s: int = 150  # Longest start. The first may install the server.
    study_s: float = 60.0  # Longest wait for the long runs that are made while the replica is idle.
    settle_s: float = 5.0  # The class is final when it has stood still for so long.


@dataclasses.dataclass
class Row:
    """What was measured with one configuration."""
    engine: str
    slots: int
    cache: str
    tokens: int
    texts: int
    alone: int = 0
    crowd: int = 0
    mean_tokens: float = 0.0
    at_start: str = "none"
    at_end: str = "none"
    verdict: str = ""

    def cells(self):
        """The row of the table."""
        short = f" (mean {self.mean_tokens:.0f})" if self.mean_tokens < self.tokens * 0.95 else ""
        return [self.engine, f"{self.slots}", self.cache, f"{self.tokens}{short}", f"{self.alone} of {self.texts}",
                f"{self.crowd} of {self.texts}", self.at_start, self.at_end, self.verdict]


HEAD = ["engine", "slots", "prompt cache", "tokens", "equal alone", "equal in crowd", "claimed at start",
        "claimed after long runs", ""]


def engines(options):
    """Each engine that can be measured."""
    llama = [options.llama, "--port", "{port}", "--parallel", "{slots}", "--ctx-size", "{ctx}"]
    vllm = [options.vllm, "--port", "{port}", "--max-num-seqs", "{slots}", "--max-model-len", f"{CTX}"]
    return {
        # Whether the cache is used is said with each request: not for strict tasks.
        "llamacpp": Engine(llama, {"off": [], "on": []}, best_effort=("on",)),
        # The same server, which nobody tells what to do with its cache.
        "openai": Engine(llama, {"server's": []}, most="none", study_s=20.0),
        # The cache is the server's own, for every task: the class must hold with it. Long runs take minutes.
        "vllm": Engine(vllm, {"off": ["--no-enable-prefix-caching"], "on": ["--enable-prefix-caching"]},
                       preload_s=900, study_s=240.0, settle_s=45.0),
    }


class Service:
    """A running `orchestratord serve`, ended with all that it has started when left."""

    def __init__(self, options, engine, slots, cache):
        self.folder = tempfile.TemporaryDirectory(prefix="determinism-")
        self.port, self.engine = free_port(), engine
        pool = {
            "id": POOL, "engine": options.engine, "model": "tiny", "command": engine.command + engine.caches[cache],
            "slots": slots, "ctx": CTX, "replicas": [{"devices": [0]}], "queue": {"capacity": 4 * options.texts + 64},
            "timeouts": {"preload_ms": engine.preload_s * 1000, "idle_ms": 60_000},
        }
        config = pathlib.Path(self.folder.name) / "config.yaml"
        config.write_text(json.dumps({"gpu": {"driver": "off"}, "pools": [pool]}))  # JSON is YAML.
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen(
            [options.orchestratord, "serve", "--config", str(config), "--listen", f"127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env={**os.environ, "RUST_LOG": "warn"})

    def __enter__(self):
        try:
            end = time.monotonic() + self.engine.preload_s + ASK_S
            while not self.is_ready():
                if self.process.poll() is not None or time.monotonic() > end:
                    self.log.seek(0)
                    raise Failed(f"the service did not get ready:\n{self.log.read()[-3000:]}")
                time.sleep(0.05)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        started = tree(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid, since in started.items():
            if begun(pid) == since and pid != self.process.pid:  # It outlived its parent; the number is still its own.
                os.kill(pid, signal.SIGKILL)
        self.log.close()
        self.folder.cleanup()

    def ask(self, path):
        """The JSON at `path`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise Failed(f"GET {path}: status {answer.status}: {body[:300]!r}")
            return json.loads(body)
        finally:
            connection.close()

    def is_ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_S)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def claim(self):
        """The determinism class of the replica, and how many tokens of long runs it stands on."""
        shown = self.ask("/v1/pools")[0]["replicas"][0]["self_test"]
        if shown is None:
            raise Failed("the replica shows no self-test: its worker has been restarted")
        return shown["determinism_class"], shown["tokens_compared"]

    def final_claim(self):
        """The class behind the long runs, or whatever it is when they have had their time."""
        end, last, since = time.monotonic() + self.engine.study_s, None, 0.0
        while time.monotonic() < end:
            now = self.claim()
            if now != last:
                last, since = now, time.monotonic()
            if now[1] > 0 and time.monotonic() - since >= self.engine.settle_s:
                break
            time.sleep(0.25)
        return self.claim()[0]

    def text(self, task):
        """Runs a task to its end: its text, and how many tokens the engine counted."""
        end = time.monotonic() + TASK_S
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TASK_S)
        try:
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
            connection.request("POST", "/v1/tasks", json.dumps(task), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise Failed(f"a task was refused with status {answer.status}: {answer.read()[:300]!r}")
            said, event = [], ""
            for line in answer:
                if time.monotonic() > end:
                    raise Failed(f"a task did not end within {TASK_S:.0f} s")
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "token":
                    said.append(json.loads(value)["t"])
                elif name == "data" and event == "end":
                    return "".join(said), json.loads(value)["tokens_out"]
                elif name == "data" and event == "error":
                    raise Failed(f"a task failed: {value}")
            raise Failed("a stream ended without an end event")
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"a task was lost: {error!r}") from error
        finally:
            connection.close()


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def begun(pid):
    """When the process began, in ticks, which tells it from a later one of its number; `None` when there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[19]
    except OSError:
        return None


def tree(pid):
    """The process and all that descend from it, each with its begin."""
    found = [pid]
    for process in found:
        try:
            for thread in pathlib.Path(f"/proc/{process}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            pass  # It has ended meanwhile.
    return {process: begun(process) for process in found}


def task(number, tokens, engine, cache, before=False):
    """The task of this number: four in a row begin alike, every second is greedy. `before` makes another one that
    begins like it."""
    family = f"In year {number // 4} the sun is red and the sea is wide, and all day long we go to see it. "
    prompt = family + ("Then they say no." if before else f"Now look, man {number} says:")
    is_strict = cache not in engine.best_effort
    return {
        "prompt": prompt, "seed": number * 31 + 7, "max_tokens": BEFORE_TOKENS if before else tokens,
        "parameters": {"temperature": 0.0 if number % 2 else 0.8},
        "determinism": "strict" if is_strict else "best_effort", "kv_hint": "reuse",
    }


def measure(service, row, engine):
    """Sends every text three times, and counts what is equal to the first."""
    def said(number, before=False):
        return service.text(task(number, row.tokens, engine, row.cache, before))

    numbers = range(row.texts)
    first = [said(number) for number in numbers]
    row.mean_tokens = sum(tokens for _, tokens in first) / row.texts
    wanted = [text for text, _ in first]
    if len(set(wanted)) * 2 <= row.texts:
        raise Failed(f"only {len(set(wanted))} of {row.texts} texts differ from each other: equal ones show nothing")
    for number in numbers:
        said(number, before=True)
        row.alone += said(number)[0] == wanted[number]
    # More than there are slots: the service keeps all of them in use until the last few.
    pool = concurrent.futures.ThreadPoolExecutor(row.texts)
    try:
        row.crowd = sum(text == want for (text, _), want in zip(pool.map(said, numbers), wanted))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # What still runs ends with the service.


def is_overclaimed(row, engine):
    """Whether a class was claimed that the texts refute, or that cannot be known."""
    claimed = max(CLASSES.index(row.at_start), CLASSES.index(row.at_end))
    if claimed > CLASSES.index(engine.most):
        return True
    if row.cache in engine.best_effort:
        return False  # A class is promised to strict tasks.
    return (claimed >= CLASSES.index("single_slot") and row.alone < row.texts
            or claimed >= CLASSES.index("batch_invariant") and row.crowd < row.texts)


def measured(options, engine, slots, cache, tokens):
    """One row, with a service of its own."""
    row = Row(options.engine, slots, cache, tokens, options.texts)
    with Service(options, engine, slots, cache) as service:
        row.at_start = service.claim()[0]
        measure(service, row, engine)
        row.at_end = service.final_claim()
    row.verdict = "OVERCLAIMED" if is_overclaimed(row, engine) else "ok"
    return row


def line(cells):
    return "| " + " | ".join(cells) + " |"


def positive(text):
    """A list of whole numbers above 0, separated by commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("every number must be 1 or more")
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["llamacpp", "openai", "vllm"], default="llamacpp",
                        help="openai is llama.cpp's server behind a pool of `engine: openai`")
    parser.add_argument("--orchestratord", default=str(ROOT / "target/release/orchestratord"), metavar="PATH")
    parser.add_argument("--llama", default=str(ROOT / "xtask/engines/llamacpp/llama-server"), metavar="PATH",
                        help="what starts llama.cpp's server")
    parser.add_argument("--vllm", default=str(ROOT / "xtask/engines/vllm/vllm-serve"), metavar="PATH",
                        help="what starts vLLM's server")
    parser.add_argument("--slots", type=positive, help="default: 1,2,4,8")
    parser.add_argument("--tokens", type=positive, help="default: 16,100,300,1000")
    parser.add_argument("--texts", type=int, help="how many are compared; default: 24")
    parser.add_argument("--quick", action="store_true",
                        help="--slots 1,4 --tokens 16,300 --texts 8, and the first cache alone")
    options = parser.parse_args()
    options.slots = options.slots or ([1, 4] if options.quick else [1, 2, 4, 8])
    options.tokens = options.tokens or ([16, 300] if options.quick else [16, 100, 300, 1000])
    options.texts = options.texts or (8 if options.quick else 24)
    if options.texts < 2 or max(options.tokens) > 1000:
        parser.error("at least 2 texts, of at most 1000 tokens")
    return options


def main():
    options = arguments()
    engine = engines(options)[options.engine]
    caches = list(engine.caches)[:1] if options.quick else list(engine.caches)
    rows = []
    try:
        for slots in options.slots:
            for cache in caches:
                for tokens in options.tokens:
                    rows.append(measured(options, engine, slots, cache, tokens))
                    print(line(rows[-1].cells()), file=sys.stderr, flush=True)
    finally:
        if rows:
            print("\n".join([line(HEAD), line(["---"] * len(HEAD)), *(line(row.cells()) for row in rows)]))
    return 1 if any(row.verdict == "OVERCLAIMED" for row in rows) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was started is ended.
    try:
        sys.exit(main())
    except (Failed, OSError) as error:
        print(f"determinism: {error}", file=sys.stderr)
        sys.exit(2)
