"""`tastemaker live RUN`: the report of a run in the browser, renewed while training goes on."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tastemaker import flags
from tastemaker.layers import Switch
from tastemaker.reports.loopback import port_of

USAGE = """tastemaker live RUN [--port 8765] [--open]

  RUN     the folder of a run, under way or ended
  --port  of this machine's own address, 127.0.0.1 (default: any that is free)
  --open  show it in the browser

  The page is made again when the run has written something. Nobody but this machine can reach it; from elsewhere:
  ssh -L 8765:127.0.0.1:8765 MACHINE. Ctrl-C ends it; the run goes on.
"""


def main(argv: Sequence[str]) -> int:
    """Serve until somebody ends it."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    flags.refuse("live", tree, values=("port",), switches=("open",))
    port, show = port_of(tree.get("port", "0")), tree.get("open") is Switch.ON
    if len(words) != 1:
        raise ValueError(f"live takes the folder of one run; found {' and '.join(words) or 'none'}.")
    return _serve(Path(words[0]).expanduser(), port, show)


def _serve(folder: Path, port: int, show: bool) -> int:
    from tastemaker import reporting
    from tastemaker.reports import live
    from tastemaker.reports.records import Records

    Records.read(folder)  # a wrong folder is told of at once
    with live.bound(folder, lambda state: reporting.live(folder, state), port) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        if show:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
