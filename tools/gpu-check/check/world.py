"""Where the check runs: on a machine with a device, or on one whose device and engine are played."""
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

from check import smi

HERE = pathlib.Path(__file__).resolve().parent
SCENARIOS = HERE.parents[2] / "tests/fake-nvml/scenarios"
READY_S = 60.0
END_S = 10.0


class Failed(Exception):
    """A step could not be made."""


class Process:
    """One of ours, in a group of its own, which is ended with all that it has started."""

    def __init__(self, command, log, env=None, talks=False):
        self.log = log
        self.child = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE if talks else subprocess.DEVNULL, stdout=subprocess.PIPE if talks else open(log, "ab"),
            stderr=open(log, "ab"), env={**os.environ, **(env or {})}, start_new_session=True, text=True)

    @property
    def pid(self):
        return self.child.pid

    def line(self, within):
        """The next line that it writes, or Failed."""
        box = []
        reader = threading.Thread(target=lambda: box.append(self.child.stdout.readline()), daemon=True)
        reader.start()
        reader.join(within)
        if not box or not box[0]:
            raise Failed(f"{self.child.args[0]} wrote no line within {within:g} s; its log ends with: {self.said()}")
        return box[0].strip()

    def tell(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def said(self):
        return pathlib.Path(self.log).read_text(errors="replace")[-600:].strip()

    def end(self, sign="TERM"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9 if sign == "KILL" else 15)
        try:
            self.child.wait(END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, 9)
            self.child.wait(END_S)


class World:
    """What both kinds of machine have: the tools that were built, a folder for this run, and a list of what was started."""

    def __init__(self, carry, folder):
        self.folder, self.started, self.library, self.probe_path = folder, [], None, carry / "gpu-check-probe"
        self.orchestratord, self.carry = carry / "orchestratord", carry
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name, command, env=None, talks=False):
        process = Process(command, self.folder / f"{name}.log", env, talks)
        self.started.append(process)
        return process

    def end(self):
        for process in reversed(self.started):
            process.end()

    def probe(self, *arguments):
        """What the device layer says: a value for each line."""
        command = [str(self.probe_path), *(["--library", str(self.library)] if self.library else []), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"the probe: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def events(self, seconds):
        """Listens for XIDs; returns when the driver has been asked for them."""
        library = ["--library", str(self.library)] if self.library else []
        process = self.start("events", [self.probe_path, *library, "events", "--ms", int(seconds * 1000)], talks=True)
        process.line(READY_S)
        return process

    def cuda(self, amount, mode="hold"):
        """A process of ours that has this much of the device's memory; Failed when the driver says no."""
        process = self.start(f"cuda-{len(self.started)}", self.cuda_command(amount, mode), self.environment(), talks=True)
        line = process.line(READY_S)
        if line != "ready":
            raise Failed(line)
        return process


def offline(folder):
    """What keeps a server from looking for anything beyond this machine. It wants a folder of downloads, if an empty one."""
    hub = folder / "hub"
    hub.mkdir(exist_ok=True)
    return {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "TOKENIZERS_PARALLELISM": "false"}


def make_model(python, folder, env, *size):
    made = subprocess.run([str(python), str(HERE / "make_model.py"), str(folder), *size], env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    if made.returncode:
        raise Failed(f"the model could not be made: {made.stderr[-600:]}")


def serve(python, model, device):
    """The command of `transformers serve` with this model alone."""
    return [str(python), "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1", "--port", "{port}", "--device", device]


class Real(World):
    """A machine with a device: its driver, its Python with torch and transformers."""

    is_real = True

    def __init__(self, carry, folder):
        super().__init__(carry, folder)
        self.site = folder / "site"
        self.model = folder / "model"

    def prepare(self):
        """Unpacks what `transformers serve` needs and the machine does not have, and makes the model."""
        wheels = sorted((self.carry / "wheels").glob("*.whl"))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", self.site, *wheels]
        subprocess.run([str(part) for part in pip], check=True, capture_output=True, timeout=60)
        make_model(sys.executable, self.model, self.environment())

    def smi(self):
        done = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise Failed(f"nvidia-smi: {done.stdout[-300:]} {done.stderr[-300:]}")
        return smi.read(done.stdout)

    def query(self, what):
        """One field of nvidia-smi's tables, of the first device."""
        done = subprocess.run(["nvidia-smi", "-i", "0", f"--query-gpu={what}", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else None

    def environment(self):
        return {"PYTHONPATH": str(self.site), **offline(self.folder)}

    def cuda_command(self, amount, mode):
        return [sys.executable, HERE / "cuda_process.py", amount, mode]

    def engine(self):
        """The command of an engine, what it is asked for as a model, its environment, and a bound of its memory."""
        return serve(sys.executable, self.model, "cuda"), str(self.model), self.environment(), 3 << 30


class Simulated(World):
    """A machine without a device: the fake library, whose world is written anew whenever a process claims or leaves something. With a
    Python that has transformers and what it serves with, the engine is the real one, on the processor."""

    is_real = False
    LEFT_S = 0.2  # How long a driver still lists a process that has ended.

    def __init__(self, carry, folder, python=None):
        super().__init__(carry, folder)
        self.claims, self.over, self.python, self.model = folder / "claims", threading.Event(), python, folder / "model"
        self.claims.mkdir(exist_ok=True)
        built = carry / "libfake_nvml.so"
        self.library = folder / "libfake_nvml.so"
        shutil.copy(built, self.library)
        self.scenario_path = pathlib.Path(f"{self.library}.json")
        self.xids, self.gone = {}, {}
        self.scenario = {"events": []} | json.loads((SCENARIOS / "played.json").read_text())
        self.scenario["devices"][0]["compute_processes"] = []
        self.write()
        self.thread = threading.Thread(target=self.play, daemon=True)

    def prepare(self):
        self.thread.start()
        if self.python:
            make_model(self.python, self.model, {}, "small")

    def write(self):
        new = self.scenario_path.with_suffix(".new")
        new.write_text(json.dumps(self.scenario))
        new.rename(self.scenario_path)

    def play(self):
        while not self.over.wait(0.005):
            before, device = json.dumps(self.scenario), self.scenario["devices"][0]
            claims = self.claimed()
            device["compute_processes"] = [{"pid": pid, "memory": claim["bytes"]} for pid, claim in sorted(claims.items())]
            device["memory_used"] = sum(claim["bytes"] for claim in claims.values())
            busy = any(claim["busy"] for claim in claims.values())
            device.update(gpu_util=100 if busy else 0, power_mw=350_000 if busy else 70_000, throttle=0 if busy else 1, clock_sm=1_980 if busy else 345)
            for pid, claim in claims.items():
                if "xid" in claim and pid not in self.xids:
                    self.xids[pid] = claim["xid"]
                    self.scenario["events"].append({"id": len(self.xids), "uuid": device["uuid"], "xid": claim["xid"]})
            if json.dumps(self.scenario) != before:
                self.write()

    def claimed(self):
        """What each process has; one that has ended has it a moment longer."""
        claims = {}
        for path in self.claims.glob("*.json"):
            pid = int(path.stem)
            if self.has_ended(pid):
                if time.monotonic() - self.gone.setdefault(pid, time.monotonic()) > self.LEFT_S:
                    path.unlink()
                    continue
            claims[pid] = json.loads(path.read_text())
        return claims

    @staticmethod
    def has_ended(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def smi(self):
        return smi.read(smi.written(json.loads(self.scenario_path.read_text())))

    def query(self, what):
        device = self.scenario["devices"][0]
        return {"compute_cap": "{}.{}".format(*device["cc"])}.get(what)

    def environment(self):
        return {"GPU_CHECK_CLAIMS": str(self.claims), "GPU_CHECK_SCENARIO": str(self.scenario_path)}

    def cuda_command(self, amount, mode):
        return [sys.executable, HERE / "stand_in.py", "cuda", amount, mode]

    def engine(self):
        play = [sys.executable, str(HERE / "stand_in.py")]
        if self.python:
            env = {**self.environment(), **offline(self.folder), **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {})}
            return [*play, "claim", str(2 << 30), *serve(self.python, self.model, "cpu")], str(self.model), env, 3 << 30
        return [*play, "server", "{port}", "{model}", str(2 << 30)], "stand-in", self.environment(), 3 << 30

    def end(self):
        super().end()
        self.over.set()
