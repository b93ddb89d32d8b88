"""The server of an `isolated` reward: one file without imports of ours, run by the interpreter of its environment.

python hermit.py MODULE:FUNCTION VERSION.  Speaks the protocol of `tastemaker.rewards.wire` on a free port of this
machine, which it prints; answers nobody without TASTEMAKER_REWARD_TOKEN; ends when its standard input does, which is
when its owner dies. Written for Python 3.8, for such environments are old.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import math
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROTOCOL, BYTES, ROWS = 1, 256 * 2**20, 256
TURN = threading.Lock()  # the function is called by one request after the other


def images(body: bytearray) -> tuple[Any, dict[str, Any]]:
    """Pictures float32 [B,3,H,W] as torch, numpy or, without both, a memoryview has them; what is said beside them."""
    start = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:start])
    entry, said = header["images"], json.loads(header["__metadata__"]["request"])
    shape = entry["shape"]
    if entry["dtype"] != "F32" or len(shape) != 4 or 4 * math.prod(shape) != len(body) - start:
        raise ValueError("images are float32 [B,3,H,W]")
    if len(said["prompts"]) != shape[0]:
        raise ValueError("a prompt a picture")
    held = memoryview(bytearray(memoryview(body)[start:])).cast("f", shape)
    try:
        import torch
    except ImportError:
        try:
            import numpy
        except ImportError:
            return held, said
        return numpy.asarray(held), said
    return torch.frombuffer(held.cast("B"), dtype=torch.float32).reshape(shape), said


def answer(function: Any, body: bytearray, identity: str) -> dict[str, Any]:
    """The scores of a request; where the function raises, why there are none."""
    pictures, said = images(body)
    n = len(said["prompts"])
    ids = said.get("ids", list(range(n)))
    scores: list[float | None] = [None] * n
    notes: list[str | None] = [None] * n
    try:
        with TURN:
            found = function(pictures, said["prompts"])
        found = found.tolist() if hasattr(found, "tolist") else list(found)
        if len(found) != n:
            raise ValueError(f"{len(found)} scores for {n} pictures")
        scores = [float(one) if one is not None and math.isfinite(one) else None for one in found]
    except Exception as error:
        notes = [f"{type(error).__name__}: {error}"] * n
    valid = [one is not None for one in scores]
    return {"protocol": PROTOCOL, "identity": identity, "ids": ids, "scores": scores, "valid": valid, "notes": notes}


def handler(function: Any, about: dict[str, Any], token: str) -> type[BaseHTTPRequestHandler]:
    """What answers requests."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds for a piece of a request

        def do_GET(self) -> None:
            if self.known():
                self.say(200, about)

        def do_POST(self) -> None:
            if not self.known():
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > BYTES:
                return self.say(413, {"error": f"a body has at most {BYTES} bytes"})
            body = bytearray(self.rfile.read(int(length)))
            try:
                self.say(200, answer(function, body, about["identity"]))
            except Exception as error:
                self.say(400, {"error": f"{type(error).__name__}: {error}"})

        def known(self) -> bool:
            said = self.headers.get("Authorization", "")
            if hmac.compare_digest(said.encode(), ("Bearer " + token).encode()):
                return True
            self.say(401, {"error": "this server asks for a token"})
            return False

        def say(self, status: int, what: dict[str, Any]) -> None:
            text = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *about: Any) -> None:
            """Nothing is logged of what is asked."""

    return Handler


def leave_with_owner() -> None:
    """Ends the process when standard input ends."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


def main(spec: str, version: str) -> None:
    """Serve; the first line printed is JSON: the port, or what went wrong."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print, in C too, is no answer
    threading.Thread(target=leave_with_owner, daemon=True).start()
    try:
        module, _, name = spec.partition(":")
        found = getattr(importlib.import_module(module), name)
        function = found() if isinstance(found, type) else found
    except BaseException as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=said, flush=True)
        raise
    about: dict[str, Any] = {"name": spec, "version": version, "weights": "", "settings": ""}
    digest = hashlib.sha256(json.dumps(list(about.values())).encode()).hexdigest()[:16]
    about.update(protocol=PROTOCOL, identity=digest, rows=ROWS, bytes=BYTES, pixels=BYTES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(function, about, os.environ.pop("TASTEMAKER_REWARD_TOKEN")))
    print(json.dumps({"port": server.server_port}), file=said, flush=True)
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # nobody reads them from here on, and a file of progress bars would fill the disk
        os.dup2(silent, stream)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
