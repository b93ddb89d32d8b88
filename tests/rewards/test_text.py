"""The reward `ocr`: edit distances by hand, a scripted engine, and the real one where it is installed."""

from __future__ import annotations

import itertools
import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import check, load_networks
from tastemaker.rewards.text import distance, letters, quoted

READ = {0: None, 1: ("OPEN",), 2: ("o p", "en"), 3: ("open", "all day"), 4: ("upon",), 5: ("x" * 20,)}


class Engine:
    """Reads what the first pixel says, in tenths."""

    made: list[Any] = []

    def __init__(self, **settings: Any) -> None:
        Engine.made.append(settings)

    def __call__(self, picture: Any) -> SimpleNamespace:
        assert picture.mode == "RGB" and picture.size == (10, 8)
        return SimpleNamespace(txts=READ[round(picture.getpixel((0, 0))[0] / 25.5)])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("rapidocr")
    module.RapidOCR = Engine
    monkeypatch.setitem(sys.modules, "rapidocr", module)


def pictures(*numbers: int) -> Tensor:
    return torch.tensor(numbers)[:, None, None, None].expand(-1, 3, 8, 10) / 10


SIGN = 'a sign that says "Open"'


def test_scores_by_hand(scripted: None) -> None:
    found = named("ocr")(pictures(*range(6)), [SIGN] * 6)
    torch.testing.assert_close(found.value, torch.tensor([0, 1, 1, 4 / 10, 2 / 4, 0]))
    assert found.parts["exact"].tolist() == [0, 1, 1, 0, 0, 0]
    assert found.parts["letters"].tolist() == [0, 4, 4, 10, 4, 20]
    assert found.notes[:3] == ("read: nothing", "read: OPEN", "read: o p en")
    part = named({"name": "ocr", "match": "part"})(pictures(*range(6)), [SIGN] * 6)
    torch.testing.assert_close(part.value, torch.tensor([0, 1, 1, 1, 2 / 4, 0]))


def test_a_prompt_without_quotes_has_no_score_and_the_contract_holds(scripted: None) -> None:
    reward = named("ocr")
    prompts = Prompts.of([SIGN, "no sign", SIGN, "the word 'uP on'"])
    found = reward(pictures(1, 1, 3, 4).bfloat16(), prompts)
    assert found.value.isnan().tolist() == [False, True, False, False]
    assert found.value[3] == 1 and "quotes no text: no sign" in str(found.notes[1])
    broken = reward(torch.cat([pictures(1), torch.full((1, 3, 8, 10), torch.nan)]), [SIGN] * 2)
    assert broken.value.isnan().tolist() == [False, True] and "not finite" in str(broken.notes[1])
    with pytest.raises(ValueError, match="The first note says: no score: the prompt quotes no text: no sign"):
        check(reward, pictures(1, 1), Prompts.of(["no sign"] * 2))
    made = len(Engine.made)
    check(reward, pictures(1, 1, 3, 4), prompts)
    assert torch.equal(reward(pictures(1), [SIGN]).value, found.value[:1]) and len(Engine.made) == made


def test_without_the_extra_the_message_has_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match=r"not installed here: pip install 'tastemaker\[ocr\]'$"):
        check(named("ocr"), pictures(1), Prompts.of(["no quotes"]))
    with pytest.raises(ValueError, match="not installed here"):
        load_networks([named("ocr")])
    with pytest.raises(ValueError, match=r"^--reward\.match is 'all'; it is one of whole, part"):
        named({"name": "ocr", "match": "all"}, key="--reward")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a "red" sign, "stop here"', "red stop here"),
        ("a sign “Grüß Gott”, „so“", "Grüß Gott so"),
        ("the cat's 'own' dog's bowl", "own"),
        ("‘this’ and «that»", "this that"),
        ("dogs' and cats' toys", ""),
        ('an empty "" one', ""),
    ],
)
def test_what_is_quoted(prompt: str, text: str) -> None:
    assert quoted(prompt) == text
    assert letters(" Grüß  GOTT\n") == "grüssgott"


def test_distances_are_those_of_the_definition() -> None:
    @cache
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    words = ["".join(x) for n in range(4) for x in itertools.product("ab", repeat=n)] + ["kitten", "sitting"]
    for a, b in itertools.product(words, words):
        assert distance(a, b) == slow(a, b)
        stretches = [a[i:j] for i in range(len(a) + 1) for j in range(i, len(a) + 1)]
        assert distance(a, b, part=True) == min(slow(stretch, b) for stretch in stretches)


def test_the_real_engine_reads_a_sign() -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(sheet).text((40, 40), "OPEN", fill="navy", font=ImageFont.load_default(48))
    image = torch.tensor(list(sheet.tobytes())).reshape(1, 128, 256, 3).permute(0, 3, 1, 2) / 255
    found = named("ocr")(torch.cat([image, torch.full_like(image, 0.5)]), [SIGN] * 2)
    assert found.value.tolist() == [1, 0] and found.notes == ("read: OPEN", "read: nothing")
