"""Captions name count, colour and shape; a quarter of them is held out, evenly spread."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from tastemaker.prompts.sources import source
from tastemaker.shapes import captions
from tastemaker.shapes.drawing import BACKGROUNDS, COLOURS, COUNTS, SHAPES, Scene


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene(1, "red", "circle", "plain"), "a red circle"),
        (Scene(1, "orange", "star", "plain"), "an orange star"),
        (Scene(2, "blue", "heart", "plain"), "two blue hearts"),
        (Scene(4, "green", "square", "plain"), "four green squares"),
    ],
)
def test_captions_are_english(scene: Scene, text: str) -> None:
    assert captions.caption(scene) == text
    assert captions.read(text) == captions.read(f"  {text.upper()} ") == (scene.count, scene.colour, scene.shape)


def test_the_background_is_never_named() -> None:
    assert {captions.caption(Scene(3, "pink", "star", kind)) for kind in BACKGROUNDS} == {"three pink stars"}


@pytest.mark.parametrize("text", ["", "a red", "a red dog", "five red circles", "a red circles", "red circle a"])
def test_other_texts_are_not_of_this_world(text: str) -> None:
    assert captions.read(text) is None


def test_every_caption_is_read_back() -> None:
    everything = captions.everything()
    assert len(everything) == len(set(everything)) == len(COLOURS) * len(SHAPES) * len(COUNTS) == 160
    assert {captions.read(text) for text in everything} == {(n, c, s) for n in COUNTS for c in COLOURS for s in SHAPES}


def test_a_quarter_is_held_out_with_everything_on_both_sides() -> None:
    train, heldout = captions.train(), captions.heldout()
    assert (len(train), len(heldout)) == (120, 40) and {*train, *heldout} == {*captions.everything()}
    for side in (train, heldout):
        counts, colours, shapes = zip(*(captions.read(text) or (0, "", "") for text in side), strict=True)
        assert (set(counts), set(colours), set(shapes)) == (set(COUNTS), set(COLOURS), set(SHAPES))


def test_some_training_captions_are_evenly_spread_and_among_more() -> None:
    before: set[str] = set()
    for count in (1, 4, 5, 24, 60, 119, 120):
        texts = captions.train(count)
        assert len(texts) == len(set(texts)) == count and before <= {*texts} <= {*captions.train()}
        assert list(texts) == [text for text in captions.train() if text in texts]
        before = {*texts}
        columns = list(zip(*(captions.read(text) or (0, "", "") for text in texts), strict=True))
        if count in (4, 24):
            for column, kinds in zip(columns, (COUNTS, COLOURS, SHAPES), strict=True):
                often = Counter(column)
                assert len(often) == min(count, len(kinds)) and max(often.values()) - min(often.values()) <= 1
    assert captions.train(4) == ("an orange triangle", "two red squares", "three blue hearts", "four green stars")


def test_the_set_takes_a_number_of_prompts() -> None:
    some = source({"name": "shapes", "count": "24"}).draw(random.Random(0), 48).texts
    assert set(some) == set(captions.train(24)) and not set(some) & set(captions.heldout())
    for count in ("0", "121"):
        with pytest.raises(ValueError, match=rf"^prompts\.count is {count}; there are 120 training captions"):
            source({"name": "shapes", "count": count})


def test_the_split_is_the_one_that_models_were_trained_with() -> None:
    """Another split would make held-out prompts of training prompts, silently."""
    texts = "\n".join(captions.heldout())
    assert texts.startswith("an orange star\na yellow circle\na yellow heart\na green circle\n")
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "d5e07f5931a40be9"


def test_both_sides_are_prompt_sets() -> None:
    for name, texts in (("shapes", captions.train()), ("shapes_heldout", captions.heldout())):
        assert set(source(name).draw(random.Random(0), len(texts)).texts) == set(texts)
