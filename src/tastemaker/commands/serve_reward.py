"""`tastemaker serve-reward NAME`: a reward for other processes and machines, which ask it with `--reward remote`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker import __version__, flags

TOKEN = "TASTEMAKER_REWARD_TOKEN"
PORT = 8077
USAGE = f"""tastemaker serve-reward NAME [--reward.KEY VALUE] [--host 127.0.0.1] [--port {PORT}] [--token_file FILE]

  NAME          a reward, path/to/file.py:function, or a sum; its settings are --reward.KEY
  --host        the address that others reach it by (default 127.0.0.1: this machine alone); another needs a token
  --port        (default {PORT}; 0: any that is free)
  --token_file  a file with the token that clients show; or set {TOKEN}, there and here
  --device      where pictures are judged: auto, cuda, mps, xpu or cpu (default auto)
  --rows        pictures of a request (default 256)
  --pixels      of a picture (default 4194304, which is 2048 x 2048)
  --megabytes   of a request (default 64)
  --memory      megabytes of all requests that wait (default 512); above it clients are asked to come back
  --batch       pictures of several requests that go into one call of the reward (default 0: a request is a call, so
                that scores are to the bit those of the same call made elsewhere)
  --seconds     that a request may take (default 120)

  Then, there: tastemaker train ... --reward remote --reward.url http://HOST:PORT. Ctrl-C or SIGTERM ends it when what
  waits is answered, after 30 seconds at most. Needs: pip install 'tastemaker[serve]'
"""
NUMBERS = {"rows": 256, "pixels": 2048 * 2048, "megabytes": 64, "memory": 512, "batch": 0, "seconds": 120}
LOCAL = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str]) -> int:
    """Serve until somebody ends it."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    if "token" in tree:
        raise ValueError(f"--token: a token is never a flag, for command lines are seen and kept: set {TOKEN}.")
    values = ("host", "port", "token_file", "device", "reward", *NUMBERS)
    flags.refuse("serve-reward", tree, values=values)
    if len(words) != 1:
        raise ValueError(f"serve-reward takes one reward, and then flags; found {' and '.join(words) or 'none'}.")
    numbers = {key: _number(tree, key, default) for key, default in {"port": PORT, **NUMBERS}.items()}
    host, settings = tree.get("host", LOCAL[0]), tree.get("reward", {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"--reward is {settings!r}: name the reward first, serve-reward {settings}.")
    token = _token(tree.get("token_file"))
    if host not in LOCAL and not token:
        raise ValueError(f"--host {host} lets others in: set {TOKEN} to a token that they show, or give --token_file.")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _serve({"name": words[0], **settings} if settings else words[0], host, numbers, token, tree)
    except KeyboardInterrupt:
        print("ended")
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _number(tree: Mapping[str, Any], key: str, default: int) -> int:
    text = tree.get(key, str(default))
    least, most = (0, 2**16 - 1) if key == "port" else (0 if key == "batch" else 1, 2**31)
    if not (isinstance(text, str) and text.isdecimal() and least <= int(text) <= most):
        raise ValueError(f"--{key} is {text!r}; it is a whole number from {least} to {most}.")
    return int(text)


def _token(file: str | None) -> str:
    """What clients have to show. Errors: ValueError for one that is empty or could not be sent."""
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"--token_file {file} does not exist.")
        found, where = path.read_text(encoding="utf-8", errors="replace").strip(), "--token_file"
    else:
        found, where = os.environ.get(TOKEN, "").strip(), TOKEN
        if not found:
            return ""
    if not (found.isascii() and found.isprintable() and " " not in found and len(found) >= 8):
        raise ValueError(f"{where} holds no token: 8 or more letters and digits on one line.")
    return found


def _serve(spec: Any, host: str, numbers: Mapping[str, int], token: str, tree: Mapping[str, Any]) -> int:
    from tastemaker import rewards

    judge = rewards.named(spec, key="--reward")  # a wrong name is told of first
    from tastemaker.devices import pick
    from tastemaker.rewards import server
    from tastemaker.rewards.wire import Limits

    server.extra()
    limits = Limits(numbers["rows"], numbers["pixels"], numbers["megabytes"] * 2**20)
    room = max(numbers["memory"] * 2**20, limits.bytes)
    service = server.Service(limits, room, scoring=numbers["seconds"], batch=numbers["batch"], version=__version__)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, numbers["port"]), family=family) as door:
        made = server.app(judge, service, token=token, device=pick(tree.get("device", "auto")))
        named, port = f"[{host}]" if ":" in host else host, door.getsockname()[1]
        about = made.state.desk.identity
        print(
            f"{judge.name} {about.version}, {about.weights[:12]}, at http://{named}:{port}  (Ctrl-C ends it)",
            flush=True,
        )
        server.runner(made).run(sockets=[door])
    print("ended")
    return 0
