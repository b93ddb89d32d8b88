"""One iteration against TRL's, in pairs:  python benchmarks/peers_trl.py --trl ENV/bin/python [--trainer alignprop]

TRL is run in an environment of its own, never in the project's:

    python3 -m venv ENV
    ENV/bin/pip install "torch==2.13.0" "trl==0.22.2" "diffusers==0.35.2" "transformers==4.57.6" "peft<0.18" \
        "accelerate<1.12" pillow

Two processes (`peers_sides.py`) live as long as the benchmark, each holding the same model folder; on a word through a
pipe one of them does one iteration while the other waits. They alternate, and who begins alternates too. Both have all
cores and choose their own number of threads.

ddpo: 64 images x 20 steps with guidance, JPEG reward, two updates.
alignprop: 32 images x 20 steps with guidance, mean brightness as reward, one update. `--truncation per_step` is a coin
for every step, TRL's default and our `truncation: per_step`; `fixed` differentiates the last step alone on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers_sides import Settings

GOALS = {"ddpo": 1.00, "alignprop": 0.50}
IMAGES = {"ddpo": 64, "alignprop": 32}
HERE = Path(__file__).resolve().parent


class Worker:
    """One side: a process that does an iteration on a word."""

    def __init__(self, name: str, python: str, settings: Settings) -> None:
        self.name, self.log = name, Path(settings.folder) / f"{name}.log"
        command = [python, str(HERE / "peers_sides.py"), name, json.dumps(settings._asdict())]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
            )
        self.ready = self._answer()["ready"]

    def iteration(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8").splitlines()[-15:]
            raise SystemExit("\n".join([f"{self.name} ended:", *tail]))
        found: dict[str, Any] = json.loads(line)
        return found


def alternate(ours: Worker, trl: Worker, pairs: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of iterations, ours and theirs; first one of each that does not count."""
    for worker in (ours, trl):
        print(f"warm-up of {worker.name}: {worker.iteration()['seconds']:.2f} s", flush=True)
    found = []
    for k in range(pairs):
        order = (ours, trl) if k % 2 == 0 else (trl, ours)
        done = {worker.name: worker.iteration() for worker in order}
        found.append((done["ours"], done["trl"]))
        a, b = (done[name]["seconds"] for name in ("ours", "trl"))
        print(f"  ours {a:6.2f} s   TRL {b:6.2f} s   ratio {a / b:.3f}", flush=True)
    return found


def compare(asked: argparse.Namespace) -> int:
    from harness import RESULTS, machine, write_result

    from tastemaker.policy.load import folder as model_folder
    from tastemaker.shapes.captions import train

    model = model_folder(asked.model)
    if model is None:
        raise SystemExit(f"--model {asked.model}: a built-in model or a folder is needed, TRL reads it from there.")
    images = asked.images or IMAGES[asked.trainer]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "prompts.json").write_text(json.dumps(train()), encoding="utf-8")
        # the first is a warm-up; the last, which would write our checkpoint, is never asked for
        last = asked.pairs + 2
        settings = Settings(asked.trainer, str(model), place, images, asked.steps, last, asked.truncation)
        workers = [Worker(name, python, settings) for name, python in (("ours", sys.executable), ("trl", asked.trl))]
        found = alternate(*workers, pairs=asked.pairs)
        for worker in workers:
            worker.end()
    ratios = [ours["seconds"] / trl["seconds"] for ours, trl in found]
    ratio = statistics.median(ratios)
    sides = {name: [pair[k] for pair in found] for k, name in enumerate(("ours", "trl"))}
    for name, done in sides.items():
        first, last_ = (statistics.mean(one["reward"] for one in part) for part in (done[:4], done[-4:]))
        median = statistics.median(one["seconds"] for one in done)
        print(f"{name}: median {median:.2f} s; training reward {first:.3f} -> {last_:.3f} (first and last four)")
    print(f"median ratio ours / TRL {ratio:.3f} (goal: at most {GOALS[asked.trainer]:.2f})")
    truncation = {"truncation": asked.truncation} if asked.trainer == "alignprop" else {}
    setting = {"trainer": asked.trainer, "model": asked.model, "images": images, "steps": asked.steps} | truncation
    result = {"benchmark": "peers-trl", **setting, "ratio": ratio, "ratios": ratios, **sides}
    result["versions"] = {worker.name: worker.ready for worker in workers}
    print(write_result("peers-trl", result | {"machine": machine()}, asked.results or RESULTS))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True, help="the python of TRL's environment, made as the text above says")
    parser.add_argument("--trainer", choices=tuple(GOALS), default="ddpo")
    parser.add_argument("--truncation", choices=("per_step", "fixed"), default="per_step", help="of alignprop")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--images", type=int, help="a multiple of 4; 64 of ddpo, 32 of alignprop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path)
    return compare(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
