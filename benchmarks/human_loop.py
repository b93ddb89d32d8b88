"""Do votes change what a model draws? And how many labels does a reward need?

    .venv/bin/python benchmarks/human_loop.py --part labels      a reward from 100, 500 and 2,000 ratings, and choices
    .venv/bin/python benchmarks/human_loop.py --part loop        300 votes -> a better model, two ways; --controls

The voter is the rule with noise of voter.py. `loop`, for every seed: the base draws five pictures of each training
prompt, the voter votes on 300 pairs of them through the same session as the page's, and then

    reward   `train-reward preference` on the votes, and AWM on that reward for 128 queries
    direct   Diffusion-DPO on the votes

Base and tuned model draw held-out prompts from the same noise, and the voter votes again, not knowing which is which.
The control is the same with every vote decided by a coin. A line a way, seed and control in results/human_loop.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import voter
from harness import RESULTS, machine
from PIL import Image

import tastemaker as tm
from tastemaker import cli
from tastemaker.evaluation.evaluate import Trial, draw_pictures, trial_prompts
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.subjects import of_flags, policy_of
from tastemaker.voting.session import Session
from tastemaker.voting.summary import second, summary

STEPS, GUIDANCE = 20, 3.0  # of all that is voted on
VOTES, EACH, JUDGED = 300, 5, 6  # votes in; pictures of a training prompt; pairs of a held-out prompt
PROMPTS = {"shapes": 120, "shapes_heldout": 40}  # of the two sets
COUNTS = (100, 500, 2000)
LINES = RESULTS / "human_loop.jsonl"
WAYS = {
    "reward": ["shapes_awm", "--algorithm.iterations", "8", "--reward"],
    "direct": ["shapes_diffusion_dpo", "--algorithm.pairs", "given", "--algorithm.per_prompt", "1",
               "--algorithm.iterations", "60", "--algorithm.beta", "20", "--algorithm.guidance", str(GUIDANCE),
               "--learning_rate", "5e-3", "--lr_scheduler", "cosine", "--prompts", "pairs", "--reward"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("labels", "loop", "table"), required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", type=Path, default=Path("runs/human"))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--controls", action="store_true", help="the coin's votes instead of the voter's")
    found = parser.parse_args()
    if found.part == "table":
        print(table([json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]))
        return
    for seed in map(int, found.seeds.split(",")):
        place = found.folder / f"{found.part}-{seed}"
        lines = (
            labels(place, seed)
            if found.part == "labels"
            else loop(place, seed, found.ways.split(","), coin=found.controls)
        )
        for line in lines:
            with LINES.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seed": seed, "machine": machine()}) + "\n")
            print(json.dumps(line))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The last line of every way, seed and control, and the learning curves, in Markdown."""
    last = {(one["way"], one["control"], one["seed"]): one for one in lines if one["part"] == "loop"}
    rows = ["| way | seed | votes for the tuned model | ties | count, colour, shape in % |", "|---|---|---|---|---|"]
    for (way, control, seed), one in sorted(last.items()):
        name = f"{way}{', coins for votes' if control else ''}"
        if "refused" in one:
            rows.append(f"| {name} | {seed} | no reward: nothing could be learned | | |")
            continue
        share, (base, tuned) = one["preferred"], one["oracle"].values()
        before, after = (", ".join(f"{100 * part:.0f}" for part in model.values()) for model in (base, tuned))
        told = " [{:.0f}, {:.0f}]".format(*(100 * share[end] for end in ("low", "high")))
        rows.append(
            f"| {name} | {seed} | {100 * share['mean']:.0f} %{told} of {share['votes']} | {share['ties']} "
            f"| {before} -> {after} |"
        )
    rows += [
        "",
        "| labels | " + " | ".join(f"{count:,}" for count in COUNTS) + " | the rule itself |",
        "|---|" + "---|" * 4,
    ]
    for one in lines:
        if one["part"] == "labels":
            cells = [f"{p['mean']:.3f} [{p['low']:.3f}, {p['high']:.3f}]" for p in one["curve"]]
            rows.append(f"| {one['kind']} | {' | '.join(cells)} | {one['rule']:.3f} |")
    return "\n".join(rows)


# ---- pictures


def drawn(place: Path, prompts: str, each: int, seed: int) -> list[tuple[Path, str]]:
    """Pictures of a set's prompts by the base, with metadata.jsonl beside them; made once."""
    table = place / "metadata.jsonl"
    if not table.is_file():
        place.mkdir(parents=True, exist_ok=True)
        chosen = trial_prompts(source(prompts, key="prompts"), PROMPTS[prompts], each, seed)
        policy = policy_of(of_flags({"model": "shapes"}), {"device": "cpu"})
        trial = Trial(chosen, STEPS, GUIDANCE, DDIM(eta=0.0), seed, 32, "")
        rows = [row for part in chosen.split(trial.batch) for row in _saved(policy, trial, part, place)]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return [(place / row["file_name"], row["prompt"]) for row in rows]


def _saved(policy: Any, trial: Trial, part: Prompts, place: Path) -> Iterator[dict[str, str]]:
    pictures = draw_pictures(policy, trial, Key(trial.seed, "evaluation"), part).cpu()
    for b, text, picture in zip(part.ids, part.texts, pictures, strict=True):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(place / f"{b}.png")
        yield {"file_name": f"{b}.png", "prompt": text}


# ---- how many labels


def labels(place: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Measures of rewards from 2,000 labels and fewer, on labels of held-out prompts."""
    sets = {
        "data": drawn(place / "data", "shapes", 17, seed),
        "test": drawn(place / "test", "shapes_heldout", 13, seed),
    }
    sets["data"] = sets["data"][:2000]
    values = {name: voter.of_files([file for file, _ in found]).tolist() for name, found in sets.items()}
    for kind in ("regression", "preference"):
        files, right = {}, {}
        for name, found in sets.items():
            write = _ratings if kind == "regression" else _choices
            files[name], right[name] = write(place, name, found, values[name], seed)
        taught = tm.train_reward(
            kind, data=files["data"], test=files["test"], model="shapes", curve=COUNTS, seed=seed,
            output_dir=place / kind, overwrite=True,
        )  # fmt: skip
        curve = [{"labels": one.labels, **_first(one.measures)} for one in taught.curve]
        yield {"part": "labels", "kind": kind, "curve": curve, "rule": right["test"]}


def _first(measures: Any) -> dict[str, float]:
    return dict(next(iter(measures.values()))._asdict())


def _ratings(
    place: Path, name: str, found: Sequence[tuple[Path, str]], values: Sequence[float], seed: int
) -> tuple[str, float]:
    """A table of ratings, and the rule's own rank correlation with them."""
    from tastemaker.reward_training.measures import spearman

    given = [voter.rating(value, seed, name, k) for k, value in enumerate(values)]
    rows = [[file.relative_to(place), rated, text] for (file, text), rated in zip(found, given, strict=True)]
    file = _table(place / f"{name}-ratings.csv", ["image", "rating", "prompt"], rows)
    return file, spearman(torch.tensor(values), torch.tensor(given, dtype=torch.float32)).mean


def _choices(
    place: Path, name: str, found: Sequence[tuple[Path, str]], values: Sequence[float], seed: int
) -> tuple[str, float]:
    """A table of choices, every picture against the next of its prompt, and how often the rule is right about them."""
    groups: dict[str, list[int]] = {}
    for k, (_, text) in enumerate(found):
        groups.setdefault(text, []).append(k)
    rows, right, decided = [], 0, 0
    for text, members in groups.items():
        for a, b in zip(members, [*members[1:], members[0]], strict=True):
            said = voter.vote(found[a][0], found[b][0], seed, name, a, b)
            rows.append([text, found[a][0].relative_to(place), found[b][0].relative_to(place), said])
            decided += said != "tie"
            right += said != "tie" and (said == "left") == (values[a] > values[b])
    return _table(place / f"{name}-choices.csv", ["prompt", "left", "right", "vote"], rows), right / decided


def _table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return str(file)


# ---- the loop


def loop(place: Path, seed: int, ways: Sequence[str], *, coin: bool) -> Iterator[dict[str, Any]]:
    """The ways from the same votes."""
    pool = place / "pool"
    drawn(pool, "shapes", EACH, seed)
    votes = place / ("coin.jsonl" if coin else "votes.jsonl")
    with Session.open([pool], count=VOTES, seed=seed, output=votes) as session:
        for pair in session.left():
            said = voter.vote(pair.left, pair.right, seed, "in", pair.number)
            thrown = voter._mood(seed, "coin", pair.number).choice(["left", "right"])
            session.cast(pair, thrown if coin and said != "tie" else said, seconds=1.0)
        cast = summary(session.votes)
    reward, judge = place / ("coin-reward" if coin else "reward"), "jpeg_compressibility"
    said = {"part": "loop", "control": coin, "votes": cast.votes, "ties": cast.ties}
    try:
        taught = tm.train_reward("preference", data=votes, model="shapes", seed=seed, output_dir=reward, overwrite=True)
        said["accuracy"] = dict(taught.validation["accuracy"]._asdict())
    except ValueError as error:  # coins teach nothing, and it says so
        yield {**said, "way": "reward", "refused": str(error)}
    for way, words in WAYS.items():
        if way not in ways or (way == "reward" and "accuracy" not in said):
            continue
        run = place / f"{'coin-' if coin else ''}{way}-run"
        more = [judge, "--prompts.path", str(votes)] if way == "direct" else [str(reward)]
        _must(["train", *words, *more, "--seed", str(seed), "--output_dir", str(run), "--overwrite",
               "--held_out_rewards", "shapes_alignment", "--evaluation.prompts", "shapes_heldout",
               "--evaluation.guidance", str(GUIDANCE), "--lpips_weights", "off"])  # fmt: skip
        share, oracle = judged(run, place / f"judged-{run.name}", seed)
        yield {**said, "way": way, "settings": " ".join(words), "preferred": share, "oracle": oracle}


def judged(run: Path, place: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How often the voter prefers the tuned model's pictures, and what the oracle reads on both."""
    shutil.rmtree(place, ignore_errors=True)  # votes on pictures that were drawn before count for nothing
    _must(["evaluate", str(run), "--rewards", "shapes_alignment", "--evaluation.prompts", "shapes_heldout",
           "--evaluation.count", "40", "--evaluation.images_per_prompt", str(JUDGED), "--evaluation.steps", str(STEPS),
           "--evaluation.guidance", str(GUIDANCE), "--seed", str(1000 + seed), "--lpips_weights", "off",
           "--output", str(place)])  # fmt: skip
    with Session.open([place], count=40 * JUDGED, seed=seed) as session:
        for pair in session.left():
            session.cast(pair, voter.vote(pair.left, pair.right, seed, "out", pair.number), seconds=1.0)
        share, cast = second(session), summary(session.votes)
    return {**share._asdict(), "votes": cast.votes, "ties": cast.ties}, _oracle(place)


def _oracle(place: Path) -> dict[str, Any]:
    """Means of the oracle's parts by model, base first."""
    rows = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))["rows"]
    names = ("count", "colour", "shape")
    return {row["name"]: {name: row["scores"][f"shapes_alignment.{name}"]["mean"] for name in names} for row in rows}


def _must(words: Sequence[str]) -> None:
    if cli.main(list(words)) != 0:
        raise SystemExit(f"tastemaker {' '.join(words)} failed")


if __name__ == "__main__":
    main()
