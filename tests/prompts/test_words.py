import random
from collections import Counter
from pathlib import Path

import pytest

from tastemaker.prompts import words
from tastemaker.prompts.english import number, plural, with_article
from tastemaker.prompts.sources import TABLE, Listed, source

# name -> (entries, an entry, its metadata)
SETS = {
    "animals": (45, "kangaroo", {}),
    "simple_animals": (45, "kangaroo", {}),
    "animals_heldout": (6, "hippopotamus", {}),
    "eval_simple_animals": (6, "lobster", {}),
    "uncommon_animals": (40, "pangolin", {}),
    "objects": (50, "umbrella", {}),
    "everyday_objects": (50, "umbrella", {}),
    "imagenet": (1000, "toilet tissue", {"class": 999}),
    "imagenet_all": (1000, "tabby", {"class": 281}),
    "imagenet_animals": (398, "puffer", {"class": 397}),
    "imagenet_dogs": (118, "Mexican hairless", {"class": 268}),
    "nouns_activities": (135, "an ant playing chess", {}),
    "counting": (
        315,
        "eight mice",
        {
            "questions": ["How many mice are there in this image?", "What animal is in this image?"],
            "answers": ["eight", "mouse"],
        },
    ),
}


def entries(spec: object) -> list[tuple[str, object]]:
    found = source(spec, key="--prompts")  # type: ignore[arg-type]
    assert isinstance(found, Listed)
    return [found.entries[k] for k in range(len(found.entries))]


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_its_prompts(name: str) -> None:
    count, text, metadata = SETS[name]
    found = entries(name)
    assert len(found) == count and (text, metadata) in found
    assert source(name).draw(random.Random(0), 5) == source(name).draw(random.Random(0), 5)


def test_every_set_is_here_and_in_the_guide() -> None:
    assert set(SETS) | {"shapes", "shapes_heldout", "pairs"} == set(TABLE)
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "prompts.md").read_text().partition("## Sets")[2]
    for name, (count, _, _) in SETS.items():
        rows = [line for line in guide.splitlines() if line.startswith("|") and f"`{name}`" in line]
        assert len(rows) == 1 and f"| {count} |" in rows[0], name
    texts = {text for name in TABLE.keys() - {"pairs"} for text, _ in entries(name)}
    for line in guide.splitlines():
        if line.startswith("| `"):
            example = line.split("|")[-2].strip().strip("`")
            assert example in texts, example


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (2, "great white shark"),
        (7, "cock"),
        (99, "goose"),
        (134, "crane"),
        (150, "sea lion"),
        (151, "Chihuahua"),
        (207, "golden retriever"),
        (258, "Samoyed"),
        (269, "timber wolf"),
        (281, "tabby"),
        (291, "lion"),
        (340, "zebra"),
        (388, "giant panda"),
        (398, "abacus"),
        (409, "analog clock"),
        (504, "coffee mug"),
        (517, "crane"),
        (609, "jeep"),
        (701, "parachute"),
        (817, "sports car"),
        (920, "traffic light"),
        (954, "banana"),
        (963, "pizza"),
        (980, "volcano"),
        (999, "toilet tissue"),
    ],
)
def test_classes_stand_at_their_numbers(place: int, label: str) -> None:
    assert words.words("imagenet")[place] == label


def test_two_labels_of_imagenet_stand_for_two_classes_each() -> None:
    labels = Counter(words.words("imagenet"))
    assert {label for label, count in labels.items() if count > 1} == {"crane", "maillot"} and max(labels.values()) == 2
    assert [place for place, label in enumerate(words.words("imagenet")) if label == "maillot"] == [638, 639]


def test_lists_do_not_overlap_and_are_clean() -> None:
    common, heldout, uncommon = map(set, map(words.words, ("animals", "animals_heldout", "uncommon_animals")))
    assert not common & heldout and not common & uncommon and not heldout & uncommon
    for path in words.ASSETS.glob("*.txt"):
        found = words.words(path.stem)
        assert all(word == " ".join(word.split()) and word.isascii() for word in found), path
        assert path.stem == "imagenet" or len(set(found)) == len(found), path
        assert path.read_text().startswith("# "), path


def test_counting_reads_a_users_nouns(tmp_path: Path) -> None:
    (tmp_path / "nouns.txt").write_text("pair of scissors\nox\n")
    found = entries({"name": "counting", "nouns": str(tmp_path / "nouns.txt"), "low": "1", "high": 2, "kind": "thing"})
    assert [text for text, _ in found] == ["one pair of scissors", "one ox", "two pairs of scissors", "two oxen"]
    assert getattr(source({"name": "counting", "low": "1", "high": 2}), "name", "") == "counting (low 1, high 2)"
    assert found[3][1] == {
        "questions": ["How many oxen are there in this image?", "What thing is in this image?"],
        "answers": ["two", "ox"],
    }
    both = {"name": "nouns_activities", "nouns": "animals_heldout", "activities": str(tmp_path / "nouns.txt")}
    assert len(entries(both)) == 12 and entries(both)[0][0] == "a cheetah pair of scissors"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"low": "x"}, r"--prompts\.low is 'x'; it is a whole number"),
        ({"low": 2.5}, r"--prompts\.low is 2\.5; it is a whole number"),
        ({"lo": 2}, r"--prompts\.lo is not a setting of counting\. Did you mean `low`\? It has nouns, low, high, kind"),
        ({"low": 9}, r"--prompts\.low is 9 and high 8; they are numbers from 1 to 99"),
        ({"high": 100}, r"--prompts\.low is 2 and high 100; .* from 1 to 99"),
        ({"nouns": "animls"}, r"--prompts\.nouns is 'animls'; it is a word list \(activities, animals,"),
        ({"nouns": "no.txt"}, r"--prompts\.nouns: no\.txt does not exist"),
        ({"name": "animals", "low": 1}, r"--prompts\.low is not a setting of animals\. It has none"),
    ],
)
def test_settings_that_a_set_does_not_take(settings: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        source({"name": "counting", **settings}, key="--prompts")


def test_articles() -> None:
    for text in (
        "a cat|an ant|an octopus|a unicorn|a unit|a ukulele|a ewe|a European hare|a one-eyed cat|an onion|an umbrella|"
        "an uncle|an urchin|an uninvited guest|an hour|a house|an heirloom|a horse|an Apple|a user"
    ).split("|"):
        assert with_article(text.partition(" ")[2]) == text


def test_plurals() -> None:
    for pair in (
        "cat cats|fox foxes|butterfly butterflies|monkey monkeys|mouse mice|dormouse dormice|goose geese|sheep sheep|"
        "mongoose mongooses|deer deer|jellyfish jellyfish|wolf wolves|giraffe giraffes|leaf leaves|knife knives|"
        "witch witches|bush bushes|octopus octopuses|ox oxen|box boxes|child children|human humans|buffalo buffaloes|"
        "kangaroo kangaroos|reef reefs|safe safes|half halves|waltz waltzes"
    ).split("|"):
        assert plural(pair.split()[0]) == pair.split()[1]
    assert plural("polar bear") == "polar bears" and plural("glass of water") == "glasses of water"


def test_numbers() -> None:
    assert [number(n) for n in (0, 1, 12, 19, 20, 21, 90, 99)] == (
        "zero one twelve nineteen twenty twenty-one ninety ninety-nine".split()
    )
    assert len({number(n) for n in range(100)}) == 100
    with pytest.raises(ValueError, match="0 to 99"):
        number(100)
