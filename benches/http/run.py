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


def ours(pool, http=""):
    config = tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False)
    config.write(f"pools: [{{id: p, engine: openai, model: mock, url: 'http://127.0.0.1:{ENGINE}', self_test: false, {pool}}}]\n"
                 f"disconnect_grace_ms: 0\nhttp: {{{http}}}\n")
    config.close()
    return start([str(ROOT / "target/release/orchestratord"), "serve", "--config", config.name, "--listen", f"127.0.0.1:{OURS}"],
                 f"http://127.0.0.1:{OURS}/readyz", env={**os.environ, "RUST_LOG": "warn"})


def nginx():
    if not shutil.which("nginx"):
        return None
    folder = tempfile.mkdtemp()
    (pathlib.Path(folder) / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 20000; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 10000000;
  upstream engine {{ server 127.0.0.1:{ENGINE}; keepalive 256; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{NGINX}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;
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


def main():
    build()
    subjects = {}
    mock = engine()
    proxy = nginx()
    service = ours("slots: 64, queue: {capacity: 1024}")
    subjects["direct"] = (ENGINE, mock)
    if proxy:
        subjects["nginx"] = (NGINX, proxy)
    subjects["orchestratord"] = (OURS, service)
    print("== 16-token streams, 32 connections, closed loop; then 200 a second, open loop")
    rounds = int(os.environ.get("ROUNDS", "3"))
    rows = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, (port, process) in subjects.items():
            before = cpu_s(process)
            closed = load(port, "--secs", "4", "--conns", "32", "--warmup", "1")
            spent = cpu_s(process) - before
            opened = load(port, "--secs", "4", "--rate", "200", "--warmup", "1")
            rows[name].append((closed, spent, opened))
    print(json.dumps({name: rows[name][0][0] for name in rows}))
    print(json.dumps({name: rows[name][0][2] for name in rows}))
    for name in rows:
        print(name, [(round(spent, 2)) for _, spent, _ in rows[name]])
    return rows


if __name__ == "__main__":
    try:
        main()
    finally:
        for process in list(running):
            stop(process)
