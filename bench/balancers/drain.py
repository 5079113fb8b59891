#!/usr/bin/env python3
"""Take two servers behind a balancer out in turns, under load, and count what clients lose.

    python3 drain.py --lathe ../../target/release/lathe --checkpoint RUN --balancer nginx --drains 3

Starts two servers over a checkpoint and the balancer with the configuration of docs/deploy, its
addresses replaced. Clients ask through the balancer without a pause, half of them for streams, and
keep their connections. Meanwhile one server after the other gets SIGTERM, is waited for, and is
started again. Every answer must be 200 and whole. Prints one line a drain, and a record with
--json; exits with 1 if anything was lost. Needs nginx or haproxy on the PATH, and nothing else.
"""

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
TOKENS = 24


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def healthy(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def wait_for(port, seconds=60):
    until = time.monotonic() + seconds
    while not healthy(port):
        if time.monotonic() > until:
            sys.exit(f"nothing healthy at port {port} within {seconds} s")
        time.sleep(0.05)


class Server:
    def __init__(self, options, port):
        self.options, self.port, self.process = options, port, None

    def start(self):
        command = [self.options.lathe, "serve", self.options.checkpoint, "--port", str(self.port)]
        command += ["--lame-duck", str(self.options.lame_duck), "--allow-host", "lathe"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.port)

    def drain(self):
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        return code, time.monotonic() - begun


class Balancer:
    """nginx or HAProxy with the documented configuration."""

    def __init__(self, name, ports, folder):
        self.port = free_port()
        source = (DEPLOY / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[name]).read_text()
        for written, real in zip(("8080", "8081", "8082"), (self.port, *ports)):
            source = source.replace(f"127.0.0.1:{written}", f"127.0.0.1:{real}")
        path = Path(folder) / f"{name}.conf"
        if name == "nginx":
            source = f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n" + source
            temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            more = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in temporary)
            source = source.replace("http {\n", f"http {{\naccess_log {folder}/access.log;\n{more}")
        path.write_text(source)
        command = {"nginx": ["nginx", "-c", str(path)], "haproxy": ["haproxy", "-db", "-f", str(path)]}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command[name], stdout=quiet, stderr=quiet)
        wait_for(self.port)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class Clients:
    """Asks without a pause, and counts."""

    def __init__(self, port, count):
        self.port, self.over, self.lock = port, threading.Event(), threading.Lock()
        self.whole, self.lost = 0, []
        self.threads = [threading.Thread(target=self.work, args=(at,)) for at in range(count)]
        for thread in self.threads:
            thread.start()

    def work(self, at):
        stream, connection = at % 2 == 0, None
        while not self.over.is_set():
            connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                problem, closed = self.ask(connection, stream)
            except (OSError, http.client.HTTPException) as error:
                # A kept connection may be closed by the balancer just as it is used again.
                problem, closed = repr(error), True
            with self.lock:
                self.whole += problem is None
                if problem is not None:
                    self.lost.append(problem)
            if closed:
                connection.close()
                connection = None

    def ask(self, connection, stream):
        ask = {"prompt": "The", "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(ask), {"content-type": "application/json"})
        answer = connection.getresponse()
        text, closed = answer.read().decode(), answer.will_close
        if answer.status != 200:
            return f"status {answer.status}: {text[:120]}", closed
        if stream:
            return None if text.endswith("data: [DONE]\n\n") else "a stream broke off", closed
        tokens = json.loads(text)["usage"]["completion_tokens"]
        return None if tokens == TOKENS else f"{tokens} tokens", closed

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def run(options):
    servers = [Server(options, free_port()) for _ in range(2)]
    for server in servers:
        server.start()
    record = {"balancer": options.balancer, "lame_duck": options.lame_duck, "drains": []}
    with tempfile.TemporaryDirectory() as folder:
        balancer = Balancer(options.balancer, [server.port for server in servers], folder)
        clients = Clients(balancer.port, options.clients)
        time.sleep(2)
        for drain in range(options.drains):
            server, before = servers[drain % 2], clients.whole
            code, seconds = server.drain()
            time.sleep(1)
            server.start()
            time.sleep(2)
            line = {"exit": code, "seconds": round(seconds, 2), "answers": clients.whole - before}
            line["lost"] = len(clients.lost)
            record["drains"].append(line)
            print(f"{options.balancer} drain {drain + 1}: {line}", flush=True)
        clients.end()
        balancer.stop()
    for server in servers:
        server.drain()
    record.update(answers=clients.whole, lost=len(clients.lost), problems=clients.lost[:9])
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lathe", default="lathe")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--balancer", choices=["nginx", "haproxy"], required=True)
    parser.add_argument("--drains", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--lame-duck", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    record = run(options)
    print(f"{options.balancer}: {record['answers']} answers, {record['lost']} lost {record['problems']}")
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if record["lost"] else 0)


if __name__ == "__main__":
    main()
