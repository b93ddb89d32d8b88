"""The model card of a run: README.md, from its records alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tastemaker import __version__, config, manual
from tastemaker.evaluation.statistics import FEW
from tastemaker.exports.finished import Finished
from tastemaker.folder import write_text
from tastemaker.planning import leaves
from tastemaker.policy.families import FAMILIES
from tastemaker.policy.hub import INDEX, MOVED
from tastemaker.policy.load import BUILT_IN, find
from tastemaker.policy.single_file import SUFFIX
from tastemaker.reports import citation, secrets
from tastemaker.rewards import TABLE as REWARDS

README = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.j2")
STAMP = "\n<!-- tastemaker: an edited card is kept, another is written anew; sha256 {} -->\n"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MARKDOWN = re.compile(r"([\\`*_\[\]#!|~$@]|:(?=//)|(?<=www)\.)")
SHAPE = re.compile(r" ?`?\[B[\w,]*\]`?| in \[0,1\]")  # in a docstring: of no use to a reader of the card
SETTERS = {"paper": "the paper's default", "model": "the base model's default", "argument": "the user"}
SETTERS |= {"flag": "the user", "recipe config": "config.yaml"}  # of a run that was begun from another's
PLACES = ("output_dir", "device", "push_to_hub", "hub_model_id", "report_to")  # of the machine, not of the model
ALWAYS = ("seed", "lora.rank", "mixed_precision")  # said even where nobody chose them
SHOWN = 3  # prompts of a list


class Plain(str):
    """A text that is Markdown already."""


def write(run: Finished | str | Path, repo: str | None = None) -> Path:
    """Write the card of a run into its folder; one that somebody edited stays as it is.

    run: a folder, or the run already read. repo: owner/name on the hub, from where the card tells how to load the
    model; without, it tells how from the folder. Errors: ValueError when the run has not ended.
    """
    run = run if isinstance(run, Finished) else Finished.read(run)
    path = run.folder / README
    if not is_edited(path):
        text = render(run, repo)
        write_text(path, text + STAMP.format(_digest(text)))
    return path


def is_edited(path: Path) -> bool:
    """Whether a card is there that is not just as it was written."""
    if not path.exists():
        return False
    found = path.read_text(encoding="utf-8", errors="replace")
    text = found.rpartition(STAMP.partition("{")[0])[0]
    return found != text + STAMP.format(_digest(text))  # what stands behind the stamp is somebody's, too


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def render(run: Finished, repo: str | None = None) -> str:
    """The card's text."""
    from jinja2 import Environment, StrictUndefined

    # `finalize` sees all that a run's files say: their texts are texts, whatever marks they hold.
    made = Environment(undefined=StrictUndefined, finalize=escape, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(
        code=code, cell=cell, literal=literal, number=number, thousands=lambda n: Plain(f"{n:,.0f}"), bare=Plain
    )
    template = made.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(run=run, repo=repo, head=Plain(_head(run)), **_model(run), **_training(run), **_judged(run))


def escape(value: Any) -> str:
    """A value as text that Markdown shows as it is: no mark, tag or table cell of it does anything."""
    if isinstance(value, Plain):
        return value
    text = " ".join(str(value).split())
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, shown)
    return MARKDOWN.sub(r"\\\1", text)


def code(value: Any) -> Plain:
    """A value as a code span."""
    text = " ".join(str(value).split()) or " "
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return Plain(f"{fence}{space}{text}{space}{fence}")


def cell(value: Any) -> Plain:
    """A value as a code span in a table, where a bar would end the cell."""
    return Plain(code(value).replace("|", "\\|"))


def literal(value: Any) -> Plain:
    """A text as Python writes it, on one line."""
    return Plain(json.dumps(str(value), ensure_ascii=False))


def number(value: float | None, form: str = ".4g") -> Plain:
    """A number; a dash where there is none."""
    return Plain("–" if value is None else format(value, form))


def _base(run: Finished) -> tuple[str, str]:
    """The base model's name as it is called today, and what kind of name that is."""
    name = MOVED.get(str(run.settings["model"]), str(run.settings["model"]))
    if name in BUILT_IN or name.endswith(SUFFIX):
        return name, "built-in" if name in BUILT_IN else "file"
    return name, "hub" if HUB_ID.fullmatch(name) else "folder"


def _head(run: Finished) -> str:
    """The YAML between the lines: what the hub files the model under. No licence: that is the owner's to say."""
    base, kind = _base(run)
    lora, algorithm = run.settings["lora"] is not None, str(run.settings["algorithm"]["name"])
    tags = ["text-to-image", "diffusers", *(["lora"] if lora else []), "tastemaker", "reinforcement-learning"]
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if kind == "hub":
        head |= {"base_model": base, "base_model_relation": "adapter" if lora else "finetune"}
    return yaml.safe_dump(head | {"tags": [*tags, algorithm]}, sort_keys=False, allow_unicode=True)


def _model(run: Finished) -> dict[str, Any]:
    """What it is, and how it is loaded."""
    base, kind = _base(run)
    loading = [f"{key}={literal(run.settings[key])}" for key in ("revision", "variant") if run.settings[key]]
    return {
        "version": __version__,
        "base": base,
        "kind": kind,
        "without": Plain("".join(f", {one}=None" for one in _without(run))),
        "loading": Plain("".join(f", {one}" for one in loading)),
        "lora": run.settings["lora"],
        "before_after": (run.folder / "before_after.png").is_file(),
        "curve": (run.folder / "curve.svg").is_file(),
    }


def _without(run: Finished) -> list[str]:
    """Parts that a whole model of this family has and the run's does not."""
    file = run.weights / INDEX
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")).get("_class_name") not in FAMILIES:
        return []
    from tastemaker.policy.pipelines import without

    return without(find(str(run.weights)))


def _training(run: Finished) -> dict[str, Any]:
    """How it was trained, what that cost, and whose work it stands on."""
    settings, rows = run.settings, run.metrics
    algorithm = settings["algorithm"]["name"]
    said = _headline(config.algorithms(), algorithm)
    calls = [row["network_calls"] for row in rows]
    return {
        "algorithm": algorithm,
        "algorithm_said": said,
        "papers": Plain("\n\n".join([*manual.citations(algorithm), citation.software(__version__)])),
        "prompts": _prompts(settings["prompts"]),
        "table": list(_table(run)),
        "seconds": sum(row["seconds"]["total"] for row in rows),
        "queries": sum(row["queries"] for row in rows),
        "images": sum(row["images"] for row in rows),
        "forward": sum(call["rows_forward"] for call in calls),
        "backward": sum(call["rows_backward"] for call in calls),
        "failed": sum(row["reward"].get("failed", 0) for row in rows),
    }


def _headline(table: Mapping[str, str], name: str) -> str:
    """What a name of a table says of itself; nothing for what is the user's own."""
    entry = table.get(name, "")
    said = manual.headline(entry.partition(":")[0] if table is config.algorithms() else entry) if entry else ""
    return SHAPE.sub("", said)


def _prompts(found: Any) -> dict[str, Any]:
    """The training prompts: a name, or of a list the first and the count."""
    if not isinstance(found, list):
        return {"name": found["name"] if isinstance(found, Mapping) else found, "texts": [], "count": 0}
    texts = [one.get("prompt", "") if isinstance(one, Mapping) else one[0] if isinstance(one, list) else one
             for one in found]  # fmt: skip
    return {"name": "", "texts": [str(text)[:200] for text in texts[:SHOWN]], "count": len(texts)}


def _table(run: Finished) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, who set it) of the algorithm, and of the run what somebody chose."""
    for path, value in leaves(run.settings):
        by = run.origins.get(path, "")
        chosen = path in ALWAYS or by not in ("default", "") or path.startswith("algorithm.")
        if chosen and path not in ("algorithm.name", "resolved") and not path.startswith(PLACES):
            yield path, _short(value), SETTERS.get(by, by)


def _short(value: Any) -> str:
    """A setting's value in a cell."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(str(value)) <= 80 else f"{len(value)} of them"
    return "none" if value is None or value == "" else str(value)


def _judged(run: Finished) -> dict[str, Any]:
    """The last evaluation beside the first: a row a score, the one that was trained on before the others."""
    first, last = run.evaluations[0], run.evaluations[-1]
    names = [name for name in last["reward"] if name in first["reward"] and name in last["change"]]
    trained, *others = names
    rows = [
        {"name": name, "role": _role(name, trained, names), "before": first["reward"][name]["mean"],
         "after": last["reward"][name]["mean"], **last["change"][name]}
        for name in names
    ]  # fmt: skip
    reward, held = rows[0], [name for name in others if _role(name, trained, names) == "held out"]
    return {
        "last": last,
        "rows": rows,
        "reward": trained,
        "reward_said": _headline(REWARDS, trained),
        "verdict": _verdict(reward),
        "held": held,
        "few": run.settings["evaluation"]["count"] < FEW,
        "own_prompts": str(last["prompts"]).endswith("(the training prompts)"),
        "call": _call(run, last),
    }


def _role(name: str, trained: str, names: Sequence[str]) -> str:
    whole = next((other for other in names if other != name and name.startswith(f"{other}.")), None)
    return "trained on" if name == trained else f"part of {whole}" if whole else "held out"


def _verdict(row: Mapping[str, Any]) -> str:
    """`rose`, `fell`, or nothing where the interval holds zero or there is none."""
    low, high = row["low"], row["high"]
    return "" if low is None or high is None else "rose" if low > 0 else "fell" if high < 0 else ""


def _call(run: Finished, last: Mapping[str, Any]) -> Plain:
    """The line that draws a picture as the evaluation did."""
    asked = [literal(_example(run)), f"num_inference_steps={last['steps']}"]
    asked.append(f"guidance_scale={number(last['guidance'], 'g')}")
    if run.settings["negative_prompt"]:
        asked.append(f"negative_prompt={literal(run.settings['negative_prompt'])}")
    for side in ("height", "width"):
        pixels = run.settings[side] or run.settings["resolution"]
        asked += [f"{side}={pixels}"] if pixels else []
    return Plain(f'pipe({", ".join(asked)}).images[0].save("picture.png")')


def _example(run: Finished) -> str:
    """A prompt to try: the first of the pictures that were kept."""
    file = run.folder / "samples.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((secrets.text(row["prompt"]) for row in map(json.loads, lines) if "prompt" in row), "a picture")
