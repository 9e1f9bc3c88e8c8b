"""A real MLflow server that can be stopped, frozen and started again, and a proxy in front of it that misbehaves."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.ports import free_port


class MlflowServer:
    """`mlflow server` on loopback, which answers to its own name only.

    Args:
        root: folder of its store and its artifacts.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--allowed-hosts", f"127.0.0.1:{self.port}",
            "--backend-store-uri", f"sqlite:///{self.root}/store.db", "--artifacts-destination", str(self.root / "art"),
        ]  # fmt: skip
        environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environ, cwd=self.root, start_new_session=True
            )
        deadline = time.monotonic() + 600  # it imports for minutes on a machine that is busy
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
            except OSError:
                assert self._process.poll() is None, (self.root / "server.log").read_text()
                time.sleep(0.1)
            else:
                return
        raise TimeoutError((self.root / "server.log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


Verdict = int | str
"""What the proxy does with a request: "forward", "swallow" (forward, then lose the answer), or an HTTP status."""


class Proxy:
    """Forwards requests to a server, unless ``rule(method, path, body)`` says otherwise."""

    def __init__(self, upstream_port: int) -> None:
        self.rule: Callable[[str, str, bytes], Verdict] = lambda method, path, body: "forward"
        self.seen: list[tuple[str, str, Verdict]] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                verdict = proxy.rule(self.command, self.path, body)
                proxy.seen.append((self.command, self.path, verdict))
                if isinstance(verdict, int):
                    status, text = verdict, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "poisoned"}'
                    if verdict >= 500:
                        text = b"<html>broken</html>"
                else:
                    upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=30)
                    headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                    upstream.request(self.command, self.path, body, headers)
                    response = upstream.getresponse()
                    status, text = response.status, response.read()
                    upstream.close()
                if verdict == "swallow":
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
