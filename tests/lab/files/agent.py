"""Root's commands in domain 0, for the lab alone: reached through a port on the outer loopback.

One request a connection, a JSON line, and what belongs to it:

    {"run": "shell command", "timeout": 60}   ->  {"status": 0, "output": "..."}
    {"put": "/path", "size": 9, "mode": 420}  and 9 bytes  ->  {"status": 0}
    {"get": "/path"}                          ->  {"status": 0, "size": 9} and 9 bytes
"""

import json
import os
import signal
import socketserver
import subprocess
from pathlib import Path

PORT = 2323
BLOCK = 1 << 20
TOO_LATE = 124  # timeout(1)'s


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        request = json.loads(self.rfile.readline())
        for verb in ("run", "put", "get"):
            if verb in request:
                getattr(self, verb)(request)

    def answer(self, **said):
        self.wfile.write(json.dumps(said).encode() + b"\n")

    def run(self, request):
        process = subprocess.Popen(
            ["/bin/bash", "-c", request["run"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "HOME": "/root", "LC_ALL": "C.UTF-8"},
            cwd="/root",
        )
        try:
            output, _ = process.communicate(timeout=request["timeout"])
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = TOO_LATE
        self.answer(status=status, output=output.decode("utf-8", "replace"))

    def put(self, request):
        path, left = Path(request["put"]), request["size"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while left:
                block = self.rfile.read(min(left, BLOCK))
                if not block:
                    return
                file.write(block)
                left -= len(block)
        path.chmod(request["mode"])
        self.answer(status=0)

    def get(self, request):
        with open(request["get"], "rb") as file:
            self.answer(status=0, size=os.fstat(file.fileno()).st_size)
            while block := file.read(BLOCK):
                self.wfile.write(block)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", PORT), Handler).serve_forever()
