"""A hub of this process: as much of the HTTP interface as a push uses, so that the real client runs against it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import close_session, constants

TOKEN = "hf_" + "CanaryCanaryCanaryCanaryCanaryCana"


@dataclass
class Hub:
    """What it was asked, what it holds, and where it refuses."""

    address: str = ""
    refuse: dict[str, int] = field(default_factory=dict)  # part of a path -> status
    says: str = "not for {token}"  # the text of a refusal; {token} is what the client sent
    silent: threading.Event | None = None  # answers come only once it is set
    repos: dict[str, bool] = field(default_factory=dict)  # name -> private
    asked: list[str] = field(default_factory=list)  # method and path
    sent: list[dict[str, Any]] = field(default_factory=list)  # JSON of what was created
    tokens: set[str | None] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files by hash
    commits: list[dict[str, bytes]] = field(default_factory=list)  # path -> content, one entry a commit
    messages: list[str] = field(default_factory=list)
    holds: dict[str, dict[str, int]] = field(
        default_factory=dict
    )  # repository -> path -> bytes, of what can be fetched


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        body = self.chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else None
        self.answer(self.rfile.read(int(self.headers["Content-Length"])) if body is None else body)

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.silent is not None:
            self.hub.silent.wait(10)
        self.hub.tokens.add(self.headers.get("Authorization"))
        status = next((code for part, code in self.hub.refuse.items() if part in path), 0)
        if status:
            self.reply(status, {"error": self.hub.says.format(token=self.headers.get("Authorization", "")[7:])})
        else:
            self.reply(*self.serve(path, body))

    def serve(self, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.hub
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization'] or 'jane'}/{wanted['name']}"
            there = name in hub.repos
            hub.sent.append(wanted)
            hub.repos.setdefault(name, wanted.get("visibility") == "private" or wanted.get("private") is True)
            return (409 if there else 200), {"url": f"{hub.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return 200, {"files": [self.mode(one["path"]) for one in json.loads(body)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.place(one) for one in json.loads(body)["objects"]]}
        if path.startswith("/blobs/"):
            hub.blobs[path.removeprefix("/blobs/")] = body
            return 200, {}
        if "/commit/" in path:
            return 200, self.commit(path, [json.loads(line) for line in body.splitlines()])
        name = path.removeprefix("/api/models/").partition("/revision/")[0]
        files = [{"rfilename": file, "size": size} for file, size in hub.holds.get(name, {}).items()]
        return 200, {"id": name, "sha": "0" * 40, "private": hub.repos.get(name, False), "siblings": files, "tags": []}

    def mode(self, path: str) -> dict[str, Any]:
        large = path.endswith((".safetensors", ".png"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def place(self, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{found['oid']}"}}}

    def commit(self, path: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        files: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                files[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.commits.append(files)
        repo = path.removeprefix("/api/models/").partition("/commit/")[0]
        return {"commitUrl": f"{self.hub.address}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}

    def reply(self, status: int, found: Any) -> None:
        body = json.dumps(found).encode()
        with suppress(ConnectionError):  # the client may have given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client takes for the real one, and a token for it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not spoken here
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        close_session()
