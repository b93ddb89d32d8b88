"""`vlm`: every mode against scripted endpoints, answers that cannot be read, the cache, BERTScore by hand, a run."""

from __future__ import annotations

import base64
import functools
import io
import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image

import runs
from reward_servers import SECRET, Clock, pictures, scripted
from tastemaker import fitting
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.rewards import named
from tastemaker.rewards.asking import Unreadable, graded, stands
from tastemaker.rewards.bertscore import Recall, rescaled
from tastemaker.rewards.reward import check
from tastemaker.rewards.vlm import KEY, Vlm

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the image contains a red blue circle square two cats on mat and is there".split()
)


def said(text: Any, first: dict[str, float] | None = None, **choice: Any) -> httpx2.Response:
    """A chat's answer; `first` gives probabilities of the first token."""
    found: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    if first:
        likely = [{"token": token, "logprob": math.log(p)} for token, p in first.items()]
        found["logprobs"] = {"content": [likely[0] | {"top_logprobs": likely}]}
    return httpx2.Response(200, json={"choices": [found]})


def judge(
    answer: Callable[[dict[str, Any]], httpx2.Response], *, secret: str = "", **settings: Any
) -> tuple[Vlm, list[dict[str, Any]]]:
    """A `vlm` whose server answers so, with the requests that it made and a server's list of one model."""
    reward, asked = Vlm(**settings), list[dict[str, Any]]()

    def chat(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "seer-7b"}]})
        assert request.url.path == "/v1/chat/completions"
        asked.append(json.loads(request.content))
        return answer(asked[-1])

    scripted(reward, chat, Clock(), secret=secret)
    return reward, asked


def picture(body: dict[str, Any]) -> Image.Image:
    """The picture of a request, which travels inside it."""
    (message,) = body["messages"]
    url = message["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def question(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][1]["text"]
    return text


TWO = Prompts.of(["a red circle", "two {blue} squares"])


# ---- yes


def test_yes_is_its_share_of_the_first_tokens_probabilities() -> None:
    tokens = {"Yes": 0.4, " yes": 0.2, "\u0120NO": 0.2, "maybe": 0.1}
    reward, asked = judge(lambda body: said("Yes", tokens), mode="yes")
    found = reward(pictures(2), TWO)
    torch.testing.assert_close(found.value, torch.full((2,), 0.75))
    torch.testing.assert_close(found.parts["sure"], torch.full((2,), 0.8))
    body = next(one for one in asked if "blue" in question(one))
    assert (body["model"], body["temperature"], body["seed"]) == ("seer-7b", 0, 0)
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    assert question(body).startswith("Does this image show the following? two {blue} squares\n")
    seen = torch.frombuffer(bytearray(picture(body).tobytes()), dtype=torch.uint8).reshape(8, 8, 3)
    assert torch.equal(seen.permute(2, 0, 1), (255 * pictures(2)[1]).round().byte())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (said("Yes"), "gave no probabilities"),
        (said("A cat", {"A": 0.9}), "neither yes nor no is likely"),
        (said("Yes", {"Yes": 1e-320 * 0 + 5e-324}), ""),
    ],
)
def test_yes_without_probabilities_is_no_score(answer: httpx2.Response, why: str) -> None:
    found = judge(lambda body: answer, mode="yes")[0](pictures(1), ["a cat"])
    assert found.value.isnan().all() == bool(why) and why in str(found.notes[0])


# ---- grade: row 39


def test_a_grade_is_asked_for_by_schema_and_read_strictly() -> None:
    reward, asked = judge(lambda body: said('{"reason": "half of it", "grade": 3}'), mode="grade", best=4)
    found = reward(pictures(2), TWO)
    assert found.value.tolist() == [0.75] * 2 and found.parts["grade"].tolist() == [3.0] * 2
    assert found.notes == ("half of it",) * 2
    schema = asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["grade"] == {"type": "integer", "minimum": 0, "maximum": 4}
    assert '{"reason": one short sentence, "grade": a whole number from 0 to 4}' in question(asked[0])


UNREADABLE = [
    "",
    None,
    "I'd say 3 out of 4.",
    "I cannot help with that.",
    '```json\n{"reason": "x", "grade": 3}\n```',
    '{"reason": "x", "grade": 3} Hope this helps!',
    '{"grade": 3}',
    '{"reason": "x", "grade": 3, "more": 1}',
    '{"reason": "x", "grade": 5}',
    '{"reason": "x", "grade": -1}',
    '{"reason": "x", "grade": 2.5}',
    '{"reason": "x", "grade": true}',
    '{"reason": "x", "grade": "3"}',
    '{"reason": "x", "grade": null}',
    '{"reason": "x", "grade": 0, "grade": 4}',
    '{"reason": 3, "grade": 3}',
    '{"reason": "x", "grade": ' + "9" * 5000 + "}",
    "[" * 100_000,
    "3",
]


def test_what_is_no_grade_is_no_score_and_never_a_zero() -> None:
    for text in UNREADABLE:
        with pytest.raises(Unreadable):
            graded(text or "", 4)
    answers = iter([said(text) for text in UNREADABLE] + [said(None, refusal="no")])
    reward, _ = judge(lambda body: next(answers), mode="grade", best=4, at_once=1)
    n = len(UNREADABLE) + 1
    found = reward(pictures(n), [f"picture {k}" for k in range(n)])
    assert found.value.isnan().all() and all(str(note).startswith("no score: ") for note in found.notes)


@pytest.mark.parametrize("mode", ["yes", "grade", "questions", "describe"])
def test_empty_answers_and_refusals_are_no_score(mode: str) -> None:
    asked = Prompts.of(["a cat"], [{"questions": ["What?"], "answers": ["cat"]}])
    refused = said("", message={"content": "a cat", "refusal": "I cannot"})
    for answer in (said(""), said(None), refused, said("a cat", finish_reason="content_filter")):
        reward, _ = judge(lambda body, answer=answer: answer, mode=mode)  # type: ignore[misc]
        assert reward(pictures(1), asked).value.isnan().all()


def test_what_is_no_chat_is_asked_again_and_a_refusal_costs_its_picture_alone() -> None:
    odd = [httpx2.Response(200, content=b) for b in (b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}')]
    answers = iter([*odd, said('{"reason": "", "grade": 10}')])
    reward, asked = judge(lambda body: next(answers), mode="grade")
    assert reward(pictures(1), ["a cat"]).value.tolist() == [1] and len(asked) == 4

    def one(body: dict[str, Any]) -> httpx2.Response:
        if "bad" in question(body):
            return httpx2.Response(400, json={"error": {"message": f"content filter, {SECRET}"}})
        return said('{"reason": "", "grade": 5}')

    reward, asked = judge(one, mode="grade", secret=SECRET)
    found = reward(pictures(3), ["good", "bad", "good"])
    assert found.value.isnan().tolist() == [False, True, False] and len(asked) == 3
    assert str(found.notes[1]).endswith("/v1/chat/completions answered 400: content filter, ***")


# ---- questions


def test_questions_of_counting_prompts_are_asked_and_their_answers_looked_for() -> None:
    replies = {
        "How many ants are there in this image?": "There are 2 of them.",
        "What animal is in this image?": "ANTS!",
    }
    reward, asked = judge(lambda body: said(replies[question(body).removesuffix(" Answer briefly.")]), mode="questions")
    entries = dict(source({"name": "counting", "low": 2, "high": 3}).entries)  # type: ignore[attr-defined]
    names = ["two ants", "three ants"]
    found = reward(pictures(2), Prompts.of(names, [entries[name] for name in names]))
    assert found.value.tolist() == [1, 0.5] and found.parts["all_right"].tolist() == [1, 0] and len(asked) == 4
    assert found.notes[0] == "There are 2 of them. | ANTS!"


def test_a_prompt_without_questions_is_no_score_and_nothing_is_asked() -> None:
    reward, asked = judge(lambda body: said("x"), mode="questions")
    odd = [None, {}, {"questions": ["a"]}, {"questions": "ab", "answers": "ab"}, {"questions": ["a"], "answers": []}]
    found = reward(pictures(5), Prompts.of(["p"] * 5, odd))
    assert found.value.isnan().all() and asked == [] and "hold no questions" in str(found.notes[0])


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("three", "There are Three cats.", True),
        ("three", "3", True),
        ("three", "thirty-three", False),
        ("cat", "two cats", True),
        ("cat", "a caterpillar", False),
        ("polar bear", "I see polar bears.", True),
        ("polar bear", "a bear, polar", False),
        ("twenty-one", "21 of them", True),
        ("", "anything", False),
    ],
)
def test_an_answer_stands_in_a_reply_by_its_words(answer: str, reply: str, right: bool) -> None:
    assert stands(answer, reply) is right


# ---- describe


@functools.cache
def bert() -> str:
    """The folder of a tiny random BERT in transformers' layout."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = runs.home() / "tiny-bert"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_recall_is_that_of_the_definition(layer: int) -> None:
    """Token by token, one text at a time, without padding."""
    recall = Recall(bert(), layer, "vlm", "words")
    said = ["a red circle on the mat", "two cats", "is there a blue square and a circle"]
    wanted = ["the image contains a red circle", "the image contains two cats on a mat", "the image contains cats"]
    expected = []
    for one, other in zip(said, wanted, strict=True):
        held = []
        for text in (one, other):
            ids = torch.tensor([[2, *(WORDS.index(word) for word in text.split()), 3]])
            vectors = recall.network(ids, output_hidden_states=True).hidden_states[layer][0]
            held.append([vector / vector.norm() for vector in vectors])
        counted = held[1][1:-1]  # not the marks of beginning and end
        expected.append(sum(max(float(r @ c) for c in held[0]) for r in counted) / len(counted))
    torch.testing.assert_close(recall(said, wanted), torch.tensor(expected))
    torch.testing.assert_close(recall([*said, *wanted], [*wanted, *wanted])[3:], torch.ones(3))


def test_a_description_is_compared_with_the_prompt_and_the_baseline_is_the_zero() -> None:
    settings = {"words": bert(), "layer": 2}
    reward, asked = judge(lambda body: said("the image contains a red circle"), **settings)
    found = reward(pictures(2), ["a red circle", "two blue cats"])
    torch.testing.assert_close(found.value[0], torch.tensor(1.0))
    assert found.value[1] < 0.99 and found.notes == ("the image contains a red circle",) * 2
    assert question(asked[0]) == "Answer concisely: what is going on in this image?" and asked[0]["max_tokens"] == 64
    scaled, _ = judge(lambda body: said("the image contains a red circle"), baseline=0.82, **settings)
    other = scaled(pictures(2), ["a red circle", "two blue cats"])
    torch.testing.assert_close(other.value, rescaled(found.value, 0.82))
    torch.testing.assert_close(other.parts["recall"], found.value)
    assert rescaled(torch.tensor([0.82, 1.0]), 0.82).tolist() == pytest.approx([0, 1])


def test_the_contract_holds() -> None:
    def by_colour(body: dict[str, Any]) -> httpx2.Response:
        return said(json.dumps({"reason": "", "grade": picture(body).getpixel((0, 0))[0] // 26}))  # type: ignore[index]

    check(judge(by_colour, mode="grade")[0], pictures(5), Prompts.of(["a"] * 5))
    found = judge(by_colour, mode="grade")[0](torch.full((1, 3, 4, 4), torch.nan), ["a"])
    assert found.value.isnan().all() and "not finite" in str(found.notes[0])


# ---- the cache


def test_what_was_answered_is_kept_by_picture_prompt_question_and_model(tmp_path: Path) -> None:
    folder = str(tmp_path / "kept")
    good = {"mode": "grade", "cache": folder}

    def ask(reward: Vlm, asked: list[Any], images: Any = None, texts: Any = TWO) -> int:
        before = len(asked)
        assert reward(pictures(2) if images is None else images, texts).value.isfinite().all()
        return len(asked) - before

    answer = said('{"reason": "", "grade": 5}')
    reward, asked = judge(lambda body: answer, **good)
    assert [ask(reward, asked), ask(reward, asked)] == [2, 0]
    assert ask(*judge(lambda body: answer, **good)) == 0  # another process
    assert ask(reward, asked, pictures(2, seed=1)) == 2 and ask(reward, asked, texts=["other", "texts"]) == 2
    assert (
        ask(*judge(lambda body: answer, **good, best=9)) == 2 and ask(*judge(lambda body: answer, **good, seed=1)) == 2
    )
    other, again = judge(lambda body: answer, **good)
    other.__dict__["judge"] = "other-model"
    assert ask(other, again) == 2
    for file in tmp_path.rglob("*.json"):
        file.write_bytes(file.read_bytes()[:5])
    assert ask(*judge(lambda body: answer, **good)) == 2  # damaged ones are asked for again
    bad, asked = judge(lambda body: said("no idea"), mode="grade", cache=str(tmp_path / "bad"))
    assert bad(pictures(1), ["a"]).value.isnan().all() and not (tmp_path / "bad").exists()


# ---- the server


def test_the_key_is_sent_and_stands_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY, SECRET)
    reward = Vlm(mode="grade", cache=str(tmp_path))
    assert reward.courier.client.headers["Authorization"] == f"Bearer {SECRET}"
    found = judge(lambda body: httpx2.Response(401, text=f"bad key {SECRET}"), mode="grade", secret=SECRET)[0](
        pictures(1), ["a"]
    )
    assert "answered 401: bad key ***" in str(found.notes)
    assert SECRET not in repr(reward) + str(found) + caplog.text


def test_a_server_that_is_down_or_has_other_models_is_told_of_at_the_start() -> None:
    clock = Clock()

    def down(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    reward = Vlm(mode="yes", startup_timeout=20)
    scripted(reward, down, clock)
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8000 in \d+ tries; .*refused\. Is it running\?"):
        _ = reward.network
    assert 0 < sum(clock.slept) <= 20
    for names, model, text in (
        (["a", "b"], "", "has not one model: name one with --reward.model: a, b."),
        (["a"], "c", "has no model 'c'"),
    ):
        reward = Vlm(mode="yes", model=model)
        listed = httpx2.Response(200, json={"data": [{"id": name} for name in names]})
        scripted(reward, lambda request, listed=listed: listed, clock)  # type: ignore[misc]
        with pytest.raises(ValueError, match=text):
            _ = reward.network
    reward = Vlm(mode="yes", model="mine", url="http://there:1/v1/")
    scripted(reward, lambda request: httpx2.Response(404, text="no such page"), clock)
    assert reward.judge == "mine" and Vlm(url="http://there:1/v1/").courier.addresses == ("http://there:1",)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "vibes"}, "--reward.mode is 'vibes'; it is one of describe, yes, grade, questions."),
        ({"best": "0"}, "--reward.best is 0; it is 1 or more."),
        ({"baseline": "1"}, "--reward.baseline is 1.0; it is a number from 0 to below 1."),
        ({"url": f"http://x:{SECRET}@there"}, "--reward.url holds a name, a password or a query"),
    ],
)
def test_wrong_settings_are_told_of_in_the_users_words(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError) as no:
        named({"name": "vlm", **settings}, key="--reward")
    assert text in str(no.value) and SECRET not in str(no.value)


# ---- a run


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], httpx2.Response]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A scripted server on this machine: its address, and what it was asked."""
    asked = list[dict[str, Any]]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(httpx2.Response(200, json={"data": [{"id": "seer-7b"}]}))

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(answer(asked[-1]))

        def reply(self, response: httpx2.Response) -> None:
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def test_ddpo_alignment_runs_end_to_end_on_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint describes a picture by how bright it is. What memory it takes is other tests' matter."""
    monkeypatch.setattr(fitting, "table", lambda *about: [])

    def describe(body: dict[str, Any]) -> httpx2.Response:
        grey = picture(body).convert("L").resize((1, 1)).tobytes()[0]
        return said("a red circle on the mat" if grey % 2 else "two blue cats")

    output = tmp_path / "run"
    small = "--algorithm.images 4 --algorithm.updates 2 --algorithm.steps 3 --iterations 1 --evaluation.count 1"
    small += " --evaluation.images_per_prompt 1 --evaluation.steps 2 --algorithm.guidance 1 --evaluation.guidance 1"
    words = ["--model", "shapes", "--prompts", "shapes", "--mixed_precision", "no", "--device", "cpu"]
    words += ["--reward.words", bert(), "--reward.layer", "2", "--output_dir", str(output), *small.split()]
    with endpoint(describe) as (url, asked):
        runs.train(["train", "ddpo_alignment", *words, "--reward.url", url])
    (row,) = runs.metrics(output)
    assert row["reward"]["failed"] == 0 and 0 < row["reward"]["mean"] <= 1 and "recall" in row["reward"]["parts"]
    assert (output / runs.LORA).is_file() and len(asked) >= 4 + row["queries"]
    kept = [one for one in runs.rows(output, "samples") if one["kind"] == "training"]
    assert len(kept) == 4 and all(one["reward"] is not None for one in kept)
