"""A run of `orchestratord serve` on this machine's devices, and what it says over HTTP."""
import http.client
import json
import re
import threading
import time
import urllib.request

from check.world import READY_S, Failed

POLL_S = 0.02


class Service:
    """Started with a configuration; ended by `end`, with its engines."""

    def __init__(self, world, name, config):
        gpu = {"driver": "required", "poll_ms": 100, **({"library": str(world.library)} if world.library else {})}
        path = world.folder / f"{name}.json"  # JSON is YAML.
        path.write_text(json.dumps({"gpu": gpu, **config}, indent=2))
        self.process = world.start(f"{name}-service", [world.orchestratord, "serve", "--config", path, "--listen", "127.0.0.1:0"], talks=True)
        self.port = None
        while self.port is None:
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.process.line(READY_S))
            self.port = found and int(found.group(1))
        threading.Thread(target=lambda: [None for _ in self.process.child.stdout], daemon=True).start()

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def device(self):
        return self.get("/v1/devices")["devices"][0]

    def replicas(self, pool=0):
        return self.get("/v1/pools")[pool]["replicas"]

    def until(self, what, is_so, within):
        """Waits until it is so; returns what was true, and after how many seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < within:
            if found := is_so():
                return found, time.monotonic() - begun
            time.sleep(POLL_S)
        raise Failed(f"not within {within:g} s: {what}; the log ends with: {self.process.said()}")

    def until_ready(self, count, within, pool=0):
        return self.until(f"{count} replicas are ready", lambda: sum(one["state"] == "ready" for one in self.replicas(pool)) == count, within)[1]

    def stream(self, prompt, tokens, on_token=None, **more):
        """One task's text and its last event, as (name, data)."""
        body = {"prompt": prompt, "max_tokens": tokens, "seed": 7, "parameters": {"temperature": 0.0}, "on_loss": "resume", **more}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/v1/tasks", json.dumps(body), {"content-type": "application/json", "accept": "text/event-stream"})
        answer = connection.getresponse()
        if answer.status >= 300:
            return "", ("refused", json.loads(answer.read()))
        text, name = [], None
        for line in answer:
            line = line.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = json.loads(line[6:])
                if name == "token":
                    text.append(data["t"])
                    if on_token:
                        on_token(len(text))
                elif name in ("end", "error"):
                    return "".join(text), (name, data)
        return "".join(text), ("broken", {})

    def streams(self, prompts, tokens, on_token=None):
        """Several at once, in their order."""
        done = [None] * len(prompts)

        def one(at):
            try:
                done[at] = self.stream(prompts[at], tokens, on_token)
            except (OSError, http.client.HTTPException, ValueError) as error:
                done[at] = "", ("broken", {"message": str(error)})

        threads = [threading.Thread(target=one, args=(at,)) for at in range(len(prompts))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return done

    def end(self):
        begun = time.monotonic()
        self.process.end()
        return time.monotonic() - begun
