#!/usr/bin/env python3
"""What stands in for a process on a device where there is none: it claims memory in a file that the simulated driver reads.

    stand_in.py cuda BYTES hold|compute|fault
    stand_in.py server PORT MODEL BYTES
    stand_in.py claim BYTES COMMAND...      becomes this command, with memory claimed for it

The server has OpenAI's shape as `transformers serve` has it: one run at a time, no `[DONE]`, an error inside a stream as a bare text.
GPU_CHECK_CLAIMS is the folder of the claims, GPU_CHECK_SCENARIO the simulated driver's file.
"""
import hashlib
import http.server
import json
import os
import pathlib
import signal
import sys
import threading
import time

TOKEN_S = 0.002
CACHE_BYTES_PER_TOKEN = 96 << 10
WORDS = "a card that was lost comes back in its own time and what two engines share is never quite free".split()


def claim(**what):
    """Says what this process has of the device."""
    path = pathlib.Path(os.environ["GPU_CHECK_CLAIMS"]) / f"{os.getpid()}.json"
    path.with_suffix(".new").write_text(json.dumps(what))
    path.with_suffix(".new").rename(path)


def free():
    """Memory that the simulated device has left."""
    device = json.loads(pathlib.Path(os.environ["GPU_CHECK_SCENARIO"]).read_text())["devices"][0]
    return device["memory_total"] - device["memory_reserved"] - device["memory_used"]


def until_taken():
    """Waits until the simulated driver lists this process."""
    path = pathlib.Path(os.environ["GPU_CHECK_SCENARIO"])
    while os.getpid() not in (process["pid"] for process in json.loads(path.read_text())["devices"][0]["compute_processes"]):
        time.sleep(0.002)


def cuda(amount, mode):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if amount > free():
        print("driver: cuMemAlloc_v2: 2 CUDA_ERROR_OUT_OF_MEMORY", flush=True)
        sys.exit(3)
    claim(bytes=amount, busy=mode == "compute")
    until_taken()
    print("ready", flush=True)
    if mode == "fault":
        sys.stdin.readline()
        claim(bytes=amount, busy=False, xid=31)
        time.sleep(0.1)
        print("driver: cuCtxSynchronize: 700 CUDA_ERROR_ILLEGAL_ADDRESS", flush=True)
        sys.exit(3)
    signal.pause()


def server(port, model, amount):
    one = threading.Lock()
    claim(bytes=amount, busy=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, what):
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            known = {"/health": {"status": "ok"}, "/v1/models": {"object": "list", "data": []}}
            self.answer(200, known[self.path]) if self.path in known else self.answer(404, {"detail": "Not Found"})

        def chunk(self, text):
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def event(self, text="", reason=None, **more):
            choice = {"index": 0, "text": text} | ({"finish_reason": reason} if reason else {})
            self.chunk(f"data: {json.dumps({'id': 'x', 'object': 'text_completion', 'model': model, 'choices': [choice]} | more)}\n\n")

        def do_POST(self):
            wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with one:
                self.run(wanted["prompt"], wanted["max_tokens"])

        def run(self, prompt, tokens):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            if len(prompt) // 4 * CACHE_BYTES_PER_TOKEN > free():
                self.chunk('data: {"error": "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has too little free."}\n\n')
            else:
                seed = hashlib.sha256(prompt.encode()).digest()
                for at in range(tokens):
                    time.sleep(TOKEN_S)
                    self.event(" " + WORDS[(seed[at % 32] + at) % len(WORDS)])
                self.event(reason="length", usage={"prompt_tokens": len(prompt) // 4, "completion_tokens": tokens, "total_tokens": 0})
            self.chunk("")

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass  # A client that has gone.

    Server(("127.0.0.1", port), Handler).serve_forever()


if sys.argv[1] == "claim":
    claim(bytes=int(sys.argv[2]), busy=False)
    os.execvp(sys.argv[3], sys.argv[3:])
elif sys.argv[1] == "cuda":
    cuda(int(sys.argv[2]), sys.argv[3])
else:
    server(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
