import pytest
import torch

import tiny
from tastemaker.policy.conditioning import TextCache
from tastemaker.policy.load import load

CPU = torch.device("cpu")


class Encoder:
    """Counts what it is asked for; a text's encoding is its length, 4 bytes."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [{"text": torch.tensor([float(len(text))])} for text in texts]


def test_every_distinct_text_is_encoded_once():
    encoder = Encoder()
    cache = TextCache(encoder)
    found = cache.conditioning(["ab", "c", "ab"], "", CPU)
    assert found.positive_rows("text").tolist() == [[2.0], [1.0], [2.0]]
    assert found.negative_rows("text").tolist() == [[0.0]] * 3
    assert found.table["text"].shape == (2, 1)
    cache.conditioning(["c", "ab", "defg"], "", CPU)
    assert encoder.asked == ["", "ab", "c", "defg"]


def test_rows_are_taken_with_their_order():
    found = TextCache(Encoder()).conditioning(["ab", "c", "ab", "defg"], "xyz", CPU)
    for rows in ([3, 0, 0], torch.tensor([3, 0, 0])):
        taken = found.take(rows)
        assert len(taken) == 3
        assert taken.positive_rows("text").flatten().tolist() == [4.0, 2.0, 2.0]
        assert taken.negative_rows("text").flatten().tolist() == [3.0] * 3
        assert taken.table is found.table
    assert found.take(range(1, 3)).positive_rows("text").flatten().tolist() == [1.0, 2.0]


def test_no_prompts_make_no_rows():
    empty = TextCache(Encoder()).conditioning([], "", CPU)
    assert len(empty) == 0 and empty.positive_rows("text").shape == (0, 1)
    assert len(empty.take([])) == 0


def test_the_cache_is_bounded_and_forgets_the_least_recently_used():
    encoder = Encoder()
    cache = TextCache(encoder, limit=12)
    found = cache.conditioning(["a", "bb", "ccc", "dddd"], "", CPU)  # more than it may keep
    assert found.positive_rows("text").flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert len(cache) == 3
    cache.conditioning(["bb"], "dddd", CPU)
    cache.conditioning(["eeeee"], "bb", CPU)
    assert encoder.asked == ["", "a", "bb", "ccc", "dddd", "eeeee"]
    cache.conditioning(["ccc"], "bb", CPU)
    assert encoder.asked[-1] == "ccc"


def test_the_encoding_is_that_of_the_pipeline_whatever_the_cache_held(model):
    policy, other = load(model, lora=None), load(model, lora=None)
    pipe = policy.pipeline()
    expected = pipe.encode_prompt(["a red cat", "sun"], CPU, 1, True, negative_prompt=["fog"] * 2)
    found = policy.encode(["a red cat", "sun"], negative="fog")
    assert torch.allclose(found.positive_rows("text"), expected[0], atol=1e-6)
    assert torch.allclose(found.negative_rows("text"), expected[1], atol=1e-6)
    other.encode(["sun"])
    again = other.encode(["two dogs", "sun"], negative="fog").take([1])
    assert torch.equal(again.positive_rows("text"), found.positive_rows("text")[1:])


def test_prompts_that_are_cut_off_are_counted(model):
    policy = load(model, lora=None)
    long = "a" * (tiny.TOKENS - 2)
    policy.encode([long])
    with pytest.warns(UserWarning, match=r"2 of 3 prompts are longer than the 16 tokens .* 'aaaaaaaaaaaaaab'"):
        policy.encode([long + "b", long + "c", "sun", long + "c", long])
    policy.encode([long + "b"])  # said once
