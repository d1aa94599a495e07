#!/usr/bin/env python3
"""What the service costs over HTTP, beside nginx as a plain proxy, in one run: a mock engine behind, a load client in front.

    cargo build --release && benches/http/run.py

Ratios count; absolute figures move with the machine. Wants nginx (Debian's nginx-light) for its column, and goes on without it.
"""
import json, os, pathlib, shutil, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
TARGET = ROOT / "target" / "bench-http"
ENGINE, NGINX, OURS = 19001, 19002, 19003
TICKS = os.sysconf("SC_CLK_TCK")
running = []


def build():
    for tool in ("mock-engine", "load-client"):
        subprocess.run(["cargo", "build", "--release", "--quiet", "--manifest-path", str(HERE / tool / "Cargo.toml")],
                       check=True, env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)})


def start(command, ready, **more):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    running.append(process)
    for _ in range(400):
        try:
            with urllib.request.urlopen(ready, timeout=1) as answer:
                if answer.status == 200:
                    return process
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{command[0]} did not get ready")


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.wait()
    running.remove(process)


def engine(*more):
    return start([str(TARGET / "release/mock-engine"), "--port", str(ENGINE), *more], f"http://127.0.0.1:{ENGINE}/health")


def ours(pool, http="", access=""):
    config = tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False)
    config.write(f"pools: [{{id: p, engine: openai, model: mock, url: 'http://127.0.0.1:{ENGINE}', self_test: false, {pool}}}]\n"
                 f"disconnect_grace_ms: 0\nhttp: {{{http}}}\naccess: {{{access}}}\n")
    config.close()
    return start([str(ROOT / "target/release/orchestratord"), "serve", "--config", config.name, "--listen", f"127.0.0.1:{OURS}"],
                 f"http://127.0.0.1:{OURS}/readyz", env={**os.environ, "RUST_LOG": "warn"})


def nginx(answer=""):
    """As a proxy before the engine; with an answer, it gives that one to everything but its health page."""
    if not shutil.which("nginx"):
        return None
    folder = tempfile.mkdtemp()
    (pathlib.Path(folder) / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 10000000;
  upstream engine {{ server 127.0.0.1:{ENGINE}; keepalive 256; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{NGINX}; location = /health {{ return 200; }} location / {{ {answer} proxy_pass http://engine; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; }} }} }}
""")
    return start(["nginx", "-c", f"{folder}/nginx.conf", "-p", folder], f"http://127.0.0.1:{NGINX}/health")


def tree(pid):
    found = [pid]
    for process in found:
        try:
            found += map(int, pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split())
        except OSError:
            pass
    return found


def cpu_s(process):
    total = 0
    for pid in tree(process.pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_mib(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def load(port, *more):
    path = "/v1/tasks" if port == OURS else "/v1/completions"
    out = subprocess.run([str(TARGET / "release/load-client"), "--to", f"127.0.0.1:{port}", "--path", path, *more],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def median(values):
    return sorted(values)[len(values) // 2]


def streams():
    """16-token streams over 32 connections as fast as they go, and 200 a second, through each in turn."""
    mock, proxy, service = engine(), nginx(), ours("slots: 64, queue: {capacity: 1024}")
    subjects = {"direct": (ENGINE, mock), "orchestratord": (OURS, service)}
    if proxy:
        subjects["nginx"] = (NGINX, proxy)
    rows = {name: [] for name in subjects}
    for port, _ in subjects.values():
        load(port, "--count", "3000")  # Warm.
    for _ in range(int(os.environ.get("ROUNDS", "3"))):
        for name, (port, process) in subjects.items():
            count, before = 20000, cpu_s(process)
            closed = load(port, "--count", str(count), "--conns", "32")
            spent = (cpu_s(process) - before) / count * 1e6
            opened = load(port, "--secs", "4", "--rate", "200", "--warmup", "1")
            if closed["ok"] != count or opened["ok"] != opened["requests"]:
                sys.exit(f"{name}: not every stream was whole: {closed['ends']} {opened['ends']}")
            rows[name].append((spent, closed["ok_per_s"], opened["ttft_us"]["p50"], opened["ttft_us"]["p99"]))
    best = {name: [median([row[column] for row in rows[name]]) for column in range(4)] for name in rows}
    print("16-token streams, 32 connections; added time to first token at 200 a second")
    for name, (spent, rate, p50, p99) in best.items():
        added = [(value - base) / 1000 for value, base in zip((p50, p99), best["direct"][2:])]
        print(f"  {name:14} {spent:6.0f} us CPU a stream, {rate:7.0f} streams/s ({rate / best['direct'][1]:.2f} of direct), "
              f"first token {added[0]:+.2f} / {added[1]:+.2f} ms (p50 / p99)")
    if proxy:
        print(f"  CPU a stream beside nginx: {best['orchestratord'][0] / best['nginx'][0]:.2f}")
    for process in (service, proxy, mock):
        process and stop(process)


def overload():
    """Ten times as many as the engine serves, into a queue of 0: who is answered, who is refused, how fast."""
    mock = engine("--slots", "8", "--ttft-us", "50000", "--itl-us", "10000")
    service = ours("slots: 8, queue: {capacity: 0}")
    seconds, served = 10, 8 / 0.2
    out = load(OURS, "--secs", str(seconds), "--rate", str(served * 10), "--warmup", "0", "--tokens", "16")
    stats = json.load(urllib.request.urlopen(f"http://127.0.0.1:{ENGINE}/_mock/stats"))
    refused = out.get("refusal_us", {})
    print(f"ten times the load, queue of 0: {out['ok']} of about {seconds * served:.0f} answered, ends {out['ends']}, "
          f"refusals {json.dumps(refused)} us; engine {json.dumps(stats)}")
    stop(service), stop(mock)


def gone():
    """The client closes after 4 tokens, with no grace configured: how soon the engine's request ends."""
    mock = engine("--itl-us", "5000")
    for name, process, port in (("orchestratord", ours("slots: 64"), OURS), ("nginx", nginx(), NGINX)):
        if process:
            out = load(port, "--secs", "4", "--rate", "50", "--warmup", "0", "--tokens", "400", "--abort-after", "4",
                       "--cancels-from", f"127.0.0.1:{ENGINE}")
            print(f"client gone, {name}: {json.dumps({key: out[key] for key in out if key not in ('ttft_us', 'total_us')})}")
            stop(process)
    stop(mock)


def guesses():
    """First tokens of a good key, alone, beside 10,000 wrong keys a second at a bare nginx on the same cores, and beside as many at ours."""
    control = nginx("return 401;")
    if not control:
        print("guesses: skipped, there is no nginx, whose bare 401 shows what the attacker alone costs the machine")
        return
    keys = f"{tempfile.mkdtemp()}/keys.json"
    good = subprocess.run([str(ROOT / "target/release/orchestratord"), "key", "new", "--file", keys, "--client", "alice"],
                          check=True, capture_output=True, text=True).stdout.strip()
    mock, service = engine(), ours("slots: 64", access=f"keys_file: {keys}")
    wrong = f"authorization: Bearer oc_000000000000_{'0' * 64}"
    rows = {"alone": [], "beside nginx under attack": [], "under attack itself": []}
    for _ in range(int(os.environ.get("ROUNDS", "3"))):
        for name, port in zip(rows, (None, NGINX, OURS)):
            attacker = port and subprocess.Popen(
                [str(TARGET / "release/load-client"), "--to", f"127.0.0.1:{port}", "--path", "/v1/tasks", "--header", wrong, "--rate", "10000",
                 "--secs", "6", "--warmup", "0"], stdout=subprocess.PIPE, text=True)
            out = load(OURS, "--header", f"authorization: Bearer {good}", "--secs", "4", "--rate", "200", "--warmup", "1")
            sent = json.loads(attacker.communicate()[0].strip().splitlines()[-1]) if attacker else {"requests": 0, "secs": 1}
            if out["ok"] != out["requests"]:
                sys.exit(f"{name}: not every good task was whole: {out['ends']}")
            rows[name].append((out["ttft_us"]["p50"] / 1000, out["ttft_us"]["p99"] / 1000, sent["requests"] / sent["secs"]))
    for name, row in rows.items():
        p50, p99, rate = (median([each[column] for each in row]) for column in range(3))
        print(f"good key, {name:26} first token {p50:.2f} / {p99:.2f} ms (p50 / p99), {rate:6.0f} wrong keys a second")
    for process in (service, control, mock):
        stop(process)


def many():
    """Ten thousand streams that are open at once: what they take in memory."""
    mock = engine("--itl-us", "1000000")
    service = ours("slots: 1024, queue: {capacity: 12000}")  # The others wait; their streams are open all the same.
    before = memory_mib(service)
    client = subprocess.Popen([str(TARGET / "release/load-client"), "--to", f"127.0.0.1:{OURS}", "--path", "/v1/tasks", "--conns",
                               "10000", "--count", "10000", "--tokens", "6", "--timeout", "120"], stdout=subprocess.PIPE, text=True)
    most = before
    while client.poll() is None:
        most = max(most, memory_mib(service))
        time.sleep(0.25)
    out = json.loads(client.stdout.read().strip().splitlines()[-1])
    print(f"10,000 open streams: {most - before:.0f} MiB more than idle ({before:.0f} MiB), ends {out['ends']}")
    stop(service), stop(mock)


def scrape():
    """64 pools of 8 replicas: what a scrape takes, and what it does to tasks beside it."""
    import threading
    sim = "sim: {first_token_us: 0, token_us: 0, preload_us: 0}, self_test: false"
    pools = ", ".join(f"{{id: p{n}, engine: sim, model: m{n}, slots: 4, replicas: [" +
                      ", ".join(f"{{devices: [{n * 8 + r}]}}" for r in range(8)) + f"], {sim}}}" for n in range(64))
    config = tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False)
    config.write(f"pools: [{pools}]\n")
    config.close()
    service = start([str(ROOT / "target/release/orchestratord"), "serve", "--config", config.name, "--listen", f"127.0.0.1:{OURS}"],
                    f"http://127.0.0.1:{OURS}/readyz", env={**os.environ, "RUST_LOG": "warn"})
    times, size = [], 0

    def one():
        nonlocal size
        began = time.perf_counter()
        size = len(urllib.request.urlopen(f"http://127.0.0.1:{OURS}/metrics").read())
        times.append((time.perf_counter() - began) * 1000)

    def submits(seconds):
        import http.client
        connection, waits, end = http.client.HTTPConnection("127.0.0.1", OURS), [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            connection.request("POST", "/v1/tasks", '{"prompt":"x","model_ref":"m7","max_tokens":1}', {"Accept": "text/event-stream"})
            connection.getresponse().read()
            waits.append((time.perf_counter() - began) * 1000)
            time.sleep(0.004)
        return waits

    for number in range(64):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{OURS}/v1/tasks", method="POST",
                               data=f'{{"prompt":"x","model_ref":"m{number}"}}'.encode(),
                               headers={"Content-Type": "application/json"})).read()
    for _ in range(100):
        one()
    times.sort()
    alone = sorted(submits(8))
    stop_at = time.perf_counter() + 8
    beside = threading.Thread(target=lambda: [(one(), time.sleep(0.2)) for _ in iter(lambda: time.perf_counter() < stop_at, False)])
    beside.start()
    with_scrapes = sorted(submits(8))
    beside.join()
    at = lambda values, part: values[int(len(values) * part)]
    print(f"scrape of 64 pools of 8 replicas: {size / 1e6:.2f} MB in {at(times, .5):.1f} / {at(times, .99):.1f} ms (p50 / p99)")
    print(f"a task beside five scrapes a second: {at(with_scrapes, .5):.2f} / {at(with_scrapes, .99):.2f} ms, alone "
          f"{at(alone, .5):.2f} / {at(alone, .99):.2f} ms (p50 / p99)")
    stop(service)


def main():
    build()
    raise_files()
    wanted = sys.argv[1:] or ["streams", "overload", "gone", "many", "scrape", "guesses"]
    for name in wanted:
        {"streams": streams, "overload": overload, "gone": gone, "many": many, "scrape": scrape, "guesses": guesses}[name]()


def raise_files():
    import resource
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    try:
        main()
    finally:
        for process in list(running):
            stop(process)
