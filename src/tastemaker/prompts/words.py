"""The named sets of prompts that every paper's readers know, from the word lists under `assets/`.

Texts as in ddpo-pytorch and AlignProp (bare nouns, "a cat washing the dishes", "three cats"), metadata `{}` where they
have nothing to say. What is random there is a list here: every combination stands in it once.
"""

from functools import cache
from pathlib import Path

from tastemaker.prompts import files
from tastemaker.prompts.english import number, plural, with_article
from tastemaker.prompts.entries import Entry

ASSETS = Path(__file__).parent / "assets"


@cache
def words(name: str) -> tuple[str, ...]:
    """A list under `assets/`: words between commas, notes behind #; a number and a colon count a line's first word."""
    lines = (ASSETS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found: list[str] = []
    for line in lines:
        first, numbered, rest = line.partition("#")[0].rpartition(":")
        assert not numbered or int(first) == len(found), f"{name}: {line}"
        found += [word.strip() for word in rest.split(",") if word.strip()]
    return tuple(found)


def animals() -> list[Entry]:
    """The 45 common animals of Black et al. 2023 (DDPO, arXiv:2305.13301): `cat`.

    ddpo-pytorch and AlignProp call them `simple_animals`.
    """
    return _plain(words("animals"))


def animals_heldout() -> list[Entry]:
    """The six animals that AlignProp (arXiv:2310.03739) judges by, none of them among the 45: `snail`.

    AlignProp calls them `eval_simple_animals`.
    """
    return _plain(words("animals_heldout"))


def uncommon_animals() -> list[Entry]:
    """Forty animals that captions seldom name, of our own selection: `pangolin`."""
    return _plain(words("uncommon_animals"))


def objects() -> list[Entry]:
    """Fifty things of every day, of our own selection: `umbrella`. ddpo-pytorch has its own `everyday_objects`."""
    return _plain(words("objects"))


def imagenet() -> list[Entry]:
    """The 1,000 classes of ImageNet, each by its first label: `golden retriever`; metadata: {"class": 207}.

    998 texts: crane and maillot are each the first label of two classes, and are drawn twice as often.
    """
    return _classes(0, 1000)


def imagenet_animals() -> list[Entry]:
    """The 398 animals of ImageNet, classes 0 to 397: `giant panda`; metadata: {"class": 388}."""
    return _classes(0, 398)


def imagenet_dogs() -> list[Entry]:
    """The 118 dogs of ImageNet, classes 151 to 268: `beagle`; metadata: {"class": 162}."""
    return _classes(151, 269)


def nouns_activities(nouns: str = "animals", activities: str = "activities") -> list[Entry]:
    """Every noun at every activity: `a cat washing the dishes`.

    nouns, activities: a word list of ours (animals, animals_heldout, uncommon_animals, objects; activities) or a .txt
    file of one a line.
    """
    who, doing = _words(nouns, "nouns"), _words(activities, "activities")
    return _plain([f"{with_article(noun)} {activity}" for noun in who for activity in doing])


def counting(nouns: str = "animals", low: int = 2, high: int = 8, kind: str = "animal") -> list[Entry]:
    """Every noun in every number from low to high: `three cats`, with the questions that a judge may ask.

    metadata: {"questions": ["How many cats are there in this image?", "What animal is in this image?"], "answers":
    ["three", "cat"]}, as in ddpo-pytorch; kind is the word for the nouns in the second question. nouns: as in
    `nouns_activities`. Departs from it at 1: `one cat`, not `one cats`.
    """
    if not 0 < low <= high <= 99:
        raise ValueError(f"low is {low} and high {high}; they are numbers from 1 to 99, low first.")
    found = _words(nouns, "nouns")
    return [_counted(noun, n, kind) for n in range(low, high + 1) for noun in found]


def _counted(noun: str, n: int, kind: str) -> Entry:
    many = plural(noun)
    questions = [f"How many {many} are there in this image?", f"What {kind} is in this image?"]
    text = f"{number(n)} {noun if n == 1 else many}"
    return text, {"questions": questions, "answers": [number(n), noun]}


def _plain(texts: tuple[str, ...] | list[str]) -> list[Entry]:
    return [(text, {}) for text in texts]


def _classes(first: int, end: int) -> list[Entry]:
    return [(label, {"class": place}) for place, label in enumerate(words("imagenet")[first:end], first)]


def _words(spec: str, setting: str) -> list[str]:
    """A word list by name, or a user's file of one a line."""
    if "." not in spec and (ASSETS / f"{spec}.txt").is_file():
        return list(words(spec))
    if not spec.endswith(".txt"):
        names = ", ".join(sorted(path.stem for path in ASSETS.glob("*.txt")))
        raise ValueError(f"{setting} is {spec!r}; it is a word list ({names}) or a .txt file of one a line.")
    rows = files.read(spec, setting)
    return [rows[k][0] for k in range(len(rows))]
