"""HTTP servers on this machine: one sends files, with faults on request; the other has the protocol of the Hub."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class Files(ThreadingHTTPServer):
    """Sends `files` by path. The first `faults` requests have the fault `fault`."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.fault = ""
        self.faults = 1
        self.asked: list[str] = []
        """Method, path and Range of every request."""
        self.address = f"http://127.0.0.1:{self.server_port}"


class FileHandler(BaseHTTPRequestHandler):
    """Sends files, from the start or from a byte on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Files)
        asked = self.headers.get("Range", "")
        server.asked.append(f"GET {self.path} {asked}".strip())
        fault = server.fault if len(server.asked) <= server.faults else ""
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        if fault == "wrong bytes":
            body = bytes(len(body))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and fault != "no ranges" else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        promised = len(body) - start + (1000 if fault == "too long" else 0)
        self.send_header("Content-Length", str(promised))
        self.headers_of(body)
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: len(rest) // 2] if fault == "breaks off" else rest)
        self.close_connection = True

    def headers_of(self, body: bytes) -> None:
        """Send the other headers of a file."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class HubHandler(FileHandler):
    """The part of the Hub that its client needs to download, to create a repository and to commit to it."""

    COMMIT: ClassVar[str] = "0" * 40

    def do_HEAD(self) -> None:
        server = self.server
        assert isinstance(server, Files)
        server.asked.append(f"HEAD {self.path}")
        body = server.files.get(self.path)
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.headers_of(body)
        self.end_headers()

    def headers_of(self, body: bytes) -> None:
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.send_header("ETag", f'"{sha256(body).hexdigest()}"')

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Files)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.asked.append(f"POST {self.path}")
        answer: dict[str, object]
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.send_error(401, "Unauthorized")
            return
        if self.path == "/api/repos/create":
            answer = {"url": f"{server.address}/me/flowers"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        elif not self.path.endswith("/commit/main"):
            self.send_error(404)
            return
        else:
            repository = self.path.removeprefix("/api/models").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    server.files[f"{repository}/resolve/main/{line['value']['path']}"] = content
            answer = {"commitUrl": f"{server.address}{repository}/commit/1", "commitOid": "1", "success": True}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Files]:
    """Run a server in a thread within the block."""
    with Files(handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process, changed so that another process may use the network of this machine."""
    kept = {name: value for name, value in os.environ.items() if name != "RESNETKIT_OFFLINE"}
    return kept | {"no_proxy": "127.0.0.1"} | changes
