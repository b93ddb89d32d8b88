"""Is the run good?  One plain sentence with its numbers, from the first evaluation and the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tastemaker.reports.numbers import Number, place
from tastemaker.reports.records import Records

Part = str | Number
LABELS = {
    "good": "better",
    "mixed": "better, at a price",
    "costly": "costs more than it gains",
    "alarm": "alarm",
    "open": "no clear change",
    "bad": "worse",
    "none": "not judged yet",
}


class Verdict(NamedTuple):
    """tone: a key of LABELS. head: the answer. sentences: what it stands on. All of texts and numbers."""

    tone: str
    head: list[Part]
    sentences: list[list[Part]]

    @property
    def label(self) -> str:
        return LABELS[self.tone]


class Score(NamedTuple):
    """One score of the first evaluation against the last."""

    name: str
    role: str  # `trained on`, `part of NAME`, or `held out`
    before: Number
    after: Number
    change: Mapping[str, Number]  # mean, low, high, deviations, wins
    direction: str  # `rose`, `fell`, or nothing where the interval holds zero or there is none


def scores(records: Records) -> list[Score]:
    """A row a score that both evaluations have, the one that was trained on before the others."""
    if len(records.evaluations) < 2:
        return []
    first, last = records.evaluations[0], records.evaluations[-1]
    names = [name for name in last.get("reward", {}) if name in first.get("reward", {})]
    found = []
    for name in names:
        change, at = last.get("change", {}).get(name, {}), ("evaluations", last["iteration"], "change", name)
        forms = {"mean": "+.3g", "low": "+.3g", "high": "+.3g", "deviations": "+.2f", "wins": ".0%"}
        numbers = {key: Number(change.get(key), place(*at, key), form) for key, form in forms.items()}
        before, after = (
            Number(row["reward"][name].get("mean"), place("evaluations", row["iteration"], "reward", name, "mean"))
            for row in (first, last)
        )
        found.append(Score(name, role(name, names[0], names), before, after, numbers, direction(change)))
    return found


def role(name: str, trained: str, names: Sequence[str]) -> str:
    """What a score was to the run, by its name."""
    whole = next((other for other in names if other != name and name.startswith(f"{other}.")), None)
    return "trained on" if name == trained else f"part of {whole}" if whole else "held out"


def direction(change: Mapping[str, Any]) -> str:
    """`rose`, `fell`, or nothing where the interval holds zero or there is none."""
    low, high = change.get("low"), change.get("high")
    return "" if low is None or high is None else "rose" if low > 0 else "fell" if high < 0 else ""


def verdict(records: Records) -> Verdict:
    """What a reader should know first."""
    found = scores(records)
    if not found:
        return Verdict("alarm" if records.alarms else "none", [_unjudged(records)], _alarmed(records))
    trained, held = found[0], [one for one in found if one.role == "held out"]
    diverse = _diversity(records)
    fallen = [one for one in held if one.direction == "fell"]
    less = diverse is not None and diverse[1] == "fell"
    sentences = [_reward_sentence(records, trained), *(_held_sentence(one) for one in held)]
    sentences += [diverse[0]] if diverse else []
    tone = "alarm" if records.alarms else _tone(trained, fallen, less)
    return Verdict(tone, _head(records, trained, held, fallen, less), [*sentences, *_alarmed(records)])


def _tone(trained: Score, fallen: Sequence[Score], less_diverse: bool) -> str:
    """Held-out scores that fell by more standard deviations than the reward rose are a bad bargain."""
    if trained.direction != "rose":
        return "bad" if trained.direction == "fell" else "open"
    gain = trained.change["deviations"].value
    losses = [one.change["deviations"].value for one in fallen]
    if gain is not None and any(loss is not None and -loss > gain for loss in losses):
        return "costly"
    return "mixed" if fallen or less_diverse else "good"


def _head(
    records: Records, trained: Score, held: Sequence[Score], fallen: Sequence[Score], less_diverse: bool
) -> list[Part]:
    said = {"rose": "The reward rose", "fell": "The reward fell", "": "The reward shows no clear change"}
    head: list[Part] = [said[trained.direction], *_deviations(trained)]
    items: list[list[Part]] = [[one.name, *_deviations(one)] for one in fallen]
    items += [["diversity"]] if less_diverse else []
    for k, item in enumerate(items):
        head += ["; " if k == 0 else " and " if k == len(items) - 1 else ", ", *item]
    if items:
        head.append(" fell with it" if trained.direction == "rose" else " fell")
    elif trained.direction == "rose" and held:
        head.append("; nothing that was held out fell")
    if records.alarms:
        names = list(dict.fromkeys(str(row.get("alarm")) for row in records.alarms))
        head.append(f". Alarms: {', '.join(names)}")
    return [*head, "."]


def _deviations(one: Score) -> list[Part]:
    found = one.change["deviations"]
    return [] if found.value is None else [" (", found._replace(unit=" SD"), ")"]


def _unjudged(records: Records) -> str:
    last = records.metrics[-1]["iteration"] if records.metrics else None
    if stops := [row for row in records.alarms if row.get("stopped") and row.get("iteration") == last]:
        names = " and ".join(dict.fromkeys(str(row.get("alarm")) for row in stops))
        return f"Stopped by an alarm, {names}, before a second evaluation."
    if records.evaluations:
        return "Only the base model has been judged so far."
    return "No evaluation has been written yet." if records.metrics else "Nothing has been measured yet."


def _interval(change: Mapping[str, Number]) -> list[Part]:
    if change["low"].value is None:
        return [change["mean"], ""]
    return [change["mean"], " (95 % interval ", change["low"], " to ", change["high"], ")"]


def _reward_sentence(records: Records, one: Score) -> list[Part]:
    last = records.evaluations[-1]
    if one.change["mean"].value is None:
        return [f"{one.name} gave no picture a number in both the first and the last evaluation."]
    verb = {"rose": "rose", "fell": "fell", "": "went"}[one.direction]
    base, change = one.before.value, one.change["mean"].value
    share: list[Part] = []
    if base is not None and change is not None and base * (base + change) > 0:  # across 0 a share says nothing
        share = [", ", Number(100 * change / abs(base), "", "+.0f", " %")]
    pictures = Number(last.get("pictures"), place("evaluations", last["iteration"], "pictures"))
    prompts = str(last.get("prompts", "the evaluation's prompts"))
    where: list[Part] = [", on ", pictures, f" pictures of {prompts}, same prompts and same noise before and after."]
    return [f"{one.name} {verb} from ", one.before, " to ", one.after, ": ", *_interval(one.change), *share, *where]


def _held_sentence(one: Score) -> list[Part]:
    if one.change["mean"].value is None:
        return [f"Held out, {one.name} gave no picture a number in both."]
    verb = {"rose": "rose", "fell": "fell", "": "shows no clear change"}[one.direction]
    return [f"Held out, {one.name} {verb}: ", one.before, " to ", one.after, ", ", *_interval(one.change), "."]


def _diversity(records: Records) -> tuple[list[Part], str] | None:
    """The sentence on the diversity of a prompt's pictures, and which way it went."""
    first, last = (row.get("diversity") or {} for row in (records.evaluations[0], records.evaluations[-1]))
    change = last.get("change") or {}
    if first.get("mean") is None or change.get("mean") is None:
        return None
    at = ("evaluations", records.evaluations[-1]["iteration"], "diversity")
    way, verb = direction(change), {"rose": "rose", "fell": "fell", "": "shows no clear change"}
    before = Number(first["mean"], place("evaluations", records.evaluations[0]["iteration"], "diversity", "mean"))
    numbers = {key: Number(change.get(key), place(*at, "change", key), "+.3g") for key in ("mean", "low", "high")}
    share: list[Part] = [", ", Number(100 * change["mean"] / first["mean"], "", "+.0f", " %")] if first["mean"] else []
    after = Number(last["mean"], place(*at, "mean"))
    parts: list[Part] = [f"Diversity within prompts, {last.get('metric', '')}, {verb[way]}: ", before, " to ", after]
    return [*parts, ", ", *_interval(numbers), *share, "."], way


def _alarmed(records: Records) -> list[list[Part]]:
    if not records.alarms:
        watched = any("watch" in row for row in records.metrics)
        return [["No alarm was raised."]] if watched else []
    first = str(records.alarms[0].get("message", ""))
    more = f" ({len(records.alarms)} alarms in all, below)" if len(records.alarms) > 1 else ""
    return [[f"{first[:1].upper()}{first[1:]}{more}."]]
