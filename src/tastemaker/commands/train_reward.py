"""`tastemaker train-reward KIND --data LABELS`: a reward from people's ratings or choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker import __version__, flags
from tastemaker.build import Where, build, suggest
from tastemaker.layers import Mark, Switch

if TYPE_CHECKING:
    from tastemaker.reward_training.training import Taught

KINDS = {
    "regression": "ratings: a table with columns image and rating, a folder of folders called 1, 2, ..., or AVA.txt",
    "preference": "choices: what `tastemaker vote` writes, a table with prompt, winner, loser, or Pick-a-Pic's columns",
}
USAGE = """tastemaker train-reward regression|preference --data LABELS [--model MODEL] [--output_dir FOLDER]

  A head on what a CLIP sees learns what people said; the network itself stays as it is. Then:
  tastemaker train NAME --reward FOLDER

"""
OTHERS = ("output_dir", "resume_from_checkpoint")


def main(argv: Sequence[str]) -> int:
    """Train, and say how good it is."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(usage(), end="")
        return 0
    if len(words) != 1 or words[0] not in KINDS:
        near = suggest(words[0], KINDS) if len(words) == 1 else None
        guess = f"  Did you mean `{near}`?" if near else ""
        found = " and ".join(words) or "none"
        raise ValueError(f"train-reward takes one kind of labels, {' or '.join(KINDS)}; found {found}.{guess}")
    resume = tree.pop("resume_from_checkpoint", None)
    if resume not in (None, "latest"):
        raise ValueError(
            f"--resume_from_checkpoint is {resume!r}; it is `latest`, of the folder that --output_dir names."
        )
    overwrite = tree.pop("overwrite", None)
    if overwrite not in (None, Switch.ON, Switch.OFF):
        raise ValueError(f"--overwrite takes no value, found {overwrite!r}.")
    output = tree.pop("output_dir", None)
    if isinstance(output, Switch):
        raise ValueError("--output_dir needs a value.")
    taught = _teach(words[0], tree, output, resume=resume is not None, overwrite=overwrite is Switch.ON, dashes="--")
    show(taught)
    return 0


def train_reward(
    kind: str, *, output_dir: str | Path | None = None, resume: bool = False, overwrite: bool = False, **settings: Any
) -> Taught:
    """A reward from people's labels, `train_reward("preference", data="votes.jsonl", output_dir="rewards/mine")`.

    kind: `regression`, of ratings, or `preference`, of choices. settings: those of `tastemaker train-reward --help`.
    Gives measures with intervals, the learning curve and the folder, which is a reward: `train(reward=folder)`.
    Errors: ValueError for labels that are wrong, by file and line, and settings that are none.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it is {' or '.join(KINDS)}.")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return _teach(kind, settings, output_dir, resume=resume, overwrite=overwrite, dashes="")


def _teach(
    kind: str, tree: Mapping[str, Any], output: str | Path | None, *, resume: bool, overwrite: bool, dashes: str
) -> Taught:
    from tastemaker.reward_training.settings import Training

    marks = {path: Mark("flag", f"{dashes}{path}") for path in _paths(tree)}
    if "data" not in tree:
        raise ValueError(f"{dashes}data is missing: name the labels, {KINDS[kind]}.")
    settings = build(Training, tree, Where(owner="train-reward", marks=marks))
    folder = choose(output, kind, resume=resume, overwrite=overwrite, dashes=dashes)
    try:
        return _taught(kind, settings, folder, anew=overwrite)
    except ValueError as error:
        raise ValueError(_as_typed(str(error), dashes)) from error


def _taught(kind: str, settings: Any, folder: Path, *, anew: bool) -> Taught:
    from tastemaker.devices import pick
    from tastemaker.folder import LOCK, claimed
    from tastemaker.reward_training.training import teach

    device, new = pick(settings.device), not folder.exists()
    with claimed(folder):
        try:
            return teach(kind, settings, folder, device=device, version=__version__, anew=anew)
        finally:
            if new and {path.name for path in folder.iterdir()} == {LOCK}:  # nothing came of it
                (folder / LOCK).unlink()
                folder.rmdir()
                with suppress(OSError):  # `rewards/`, where nothing else is in it
                    folder.parent.rmdir()


def choose(output: str | Path | None, kind: str, *, resume: bool, overwrite: bool, dashes: str = "--") -> Path:
    """The folder of a reward: `output`, or rewards/<kind>-<k> with the next free k, with `resume` the last.

    Errors: ValueError where it holds something else, or a reward that is neither gone on with nor overwritten.
    """
    from tastemaker.folder import LOCK, numbered
    from tastemaker.reward_training.fitting import CURSOR, STATES
    from tastemaker.reward_training.training import OURS
    from tastemaker.rewards.trained import CARD

    folder = Path(output).expanduser() if output else numbered(Path("rewards"), kind, last=resume)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{dashes}output_dir {folder} is a file: name a folder.")
    held = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    strange = [name for name in held if name not in OURS and not STATES.fullmatch(name)]
    if strange:
        raise ValueError(
            f"{dashes}output_dir {folder} holds {', '.join(strange[:3])}, which no training of a reward writes: name "
            "another folder."
        )
    if resume and CARD in held and CURSOR not in held:
        raise ValueError(
            f"{dashes}resume_from_checkpoint: the training in {folder} has ended, and there is nothing to go on with. "
            f"Train anew with {dashes}overwrite, or into another folder."
        )
    if resume and CURSOR not in held:
        print(f"{folder} holds no training that was stopped: it begins.")
    if held and not (resume or overwrite):
        raise ValueError(
            f"{dashes}output_dir {folder} holds a reward: name another folder, go on with a training that was stopped "
            f"by {dashes}resume_from_checkpoint latest, or train it anew with {dashes}overwrite."
        )
    return folder


def _paths(tree: Mapping[str, Any], before: str = "") -> list[str]:
    """Dotted paths of all that a tree holds, of its groups too."""
    found = []
    for key, value in tree.items():
        found.append(f"{before}{key}")
        found += _paths(value, f"{before}{key}.") if isinstance(value, Mapping) else []
    return found


def _as_typed(message: str, dashes: str) -> str:
    """A message that begins with a setting begins with its flag."""
    from tastemaker.reward_training.settings import Training

    word = message.split(maxsplit=1)[0].rstrip(":").partition(".")[0] if message else ""
    known = word in {field.name for field in fields(Training)} or word in OTHERS
    return f"{dashes}{message}" if known else message


def usage() -> str:
    """What the command takes: the kinds of labels, and every setting."""
    from tastemaker import manual
    from tastemaker.reward_training.settings import Training

    kinds = manual.listing(KINDS)
    rows = [*manual.settings(Training)]
    return f"""{USAGE}{kinds}
{manual.table(rows, dashes=True)}
  --output_dir FOLDER              (default rewards/KIND-K)
  --resume_from_checkpoint latest  goes on with the training in --output_dir that was stopped
  --overwrite                      trains the reward in --output_dir anew
"""


def show(taught: Taught) -> None:
    """The measures, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    name = next(iter(taught.validation))
    table = Table(box=None, pad_edge=True)
    for column in ("labels", name, "95 % interval"):
        table.add_column(column, justify="right")
    for point in taught.curve:
        one = point.measures[name]
        table.add_row(f"{point.labels:,}", f"{one.mean:.3f}", f"{one.low:.3f} to {one.high:.3f}")
    console.print(table)
    where = "labels of --test, by which nothing was chosen" if taught.test else f"{_aside(taught)}, by which it stopped"
    passed = f"; {taught.passed_over:,} rows passed over" if taught.passed_over else ""
    console.print(f"  measured on {where}{passed}", soft_wrap=True)
    for measures in (taught.validation, taught.test or {}):
        said = ", ".join(f"{key} {one}" for key, one in measures.items())
        if said:
            console.print(f"  {'validation' if measures is taught.validation else 'test'}: {said}", soft_wrap=True)
    console.print(f"  best of {len(taught.epochs)} epochs: {taught.best}", soft_wrap=True)
    console.print(f"  {taught.folder}   (tastemaker train NAME --reward {taught.folder})", soft_wrap=True)


def _aside(taught: Taught) -> str:
    return f"labels kept aside, whole {taught.split_by}s at a time"
