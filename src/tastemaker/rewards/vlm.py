"""`vlm`: a vision-language model as a judge, behind any server that speaks OpenAI's chat completions.

Pictures travel inside the request (`data:`), never as addresses. Temperature 0 and a seed: as repeatable as the server
is. How it is asked and read: `tastemaker.rewards.asking`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import weights
from tastemaker.rewards.asking import MODES, REFERENCE, Reply, Unreadable, Verdict, extras, texts, verdict
from tastemaker.rewards.bertscore import Recall, rescaled
from tastemaker.rewards.crew import together
from tastemaker.rewards.facts import DEBERTA
from tastemaker.rewards.kept import Kept
from tastemaker.rewards.reward import ContractError, Scores
from tastemaker.rewards.transport import Courier, Patience, Refusal, Silence, Spoilt, addresses

KEY = "TASTEMAKER_VLM_KEY"


@dataclass(frozen=True)
class Vlm:
    """What a vision-language model says of a picture, as a number from 0 to 1: vLLM, SGLang, Ollama, or any like them.

    describe: BERTScore's recall of "The image contains PROMPT" in its description (Black et al. 2023,
    arXiv:2305.13301); yes: how likely its answer begins with yes rather than no; grade: its grade by a rubric;
    questions: share of the prompt's questions (of `counting`) that it answers right. An answer that cannot be read is
    no score. The key, where the server asks for one, is TASTEMAKER_VLM_KEY of the environment.
    """

    url: str = "http://127.0.0.1:8000"
    """Where the server is, in front of /v1: several with commas."""
    model: str = ""
    """The model's name there; empty is the only one it has."""
    mode: str = "describe"
    """How it is asked: describe, yes, grade or questions."""
    question: str = ""
    """Another question than the mode's own; {prompt} stands for the prompt, {question} for one of its questions."""
    best: int = 10
    """The best grade."""
    answer_tokens: int = 64
    """How long an answer may be."""
    words: str = DEBERTA.name
    """The text network that compares a description with the prompt: a hub id or a folder in transformers' layout."""
    layer: int = 40
    """The layer of it whose vectors are compared."""
    baseline: float = 0.0
    """The recall of a picture of nothing, which becomes the 0: (recall - baseline) / (1 - baseline)."""
    device: str = "cpu"
    """Where the text network computes: on the CPU, descriptions are judged while the next pictures are drawn."""
    seed: int = 0
    """The seed that the server is asked to answer by."""
    at_once: int = 8
    """Requests that are under way at a time."""
    cache: str = ""
    """A folder that keeps answers, so that the same picture is not asked about twice; empty keeps none."""
    timeout: float = 60.0
    """Seconds that one try may take."""
    deadline: float = 300.0
    """Seconds that a call may take, with all its pictures and tries."""
    tries: int = 4
    """How often a request is made before it is given up."""
    startup_timeout: float = 60.0
    """Seconds to wait for the server before a run begins."""

    name: ClassVar[str] = "vlm"

    def __post_init__(self) -> None:
        _ = addresses(self.url), self._patience
        weights.check("float32", self.device)
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it is one of {', '.join(MODES)}.")
        for key, value in (("best", self.best), ("answer_tokens", self.answer_tokens), ("at_once", self.at_once)):
            if value < 1:
                raise ValueError(f"{key} is {value}; it is 1 or more.")
        if not 0 < self.startup_timeout < float("inf"):
            raise ValueError(f"startup_timeout is {self.startup_timeout}; it is a number above 0.")
        if not 0 <= self.baseline < 1:
            raise ValueError(f"baseline is {self.baseline}; it is a number from 0 to below 1.")

    @property
    def _patience(self) -> Patience:
        return Patience(self.timeout, self.deadline, self.tries)

    @cached_property
    def courier(self) -> Courier:
        """Who carries the requests."""
        found = tuple(one.removesuffix("/v1") for one in addresses(self.url))
        return Courier(found, self._patience, secret=os.environ.get(KEY, "").strip())

    @cached_property
    def recall(self) -> Recall:
        """What compares descriptions with prompts."""
        return Recall(self.words, self.layer, self.name, "words")

    @cached_property
    def judge(self) -> str:
        """The model's name at the server. Errors: ContractError where it cannot be reached or has other models."""
        try:
            until = self.courier.until(self.startup_timeout)
            names = self.courier.ask("/v1/models", _names, until=until, tries=float("inf"))
        except Silence as error:
            raise ContractError(
                f"reward `vlm`: {error}. Is it running? Its address is --reward.url, in front of /v1. Waited "
                f"{self.startup_timeout:g} s for it (--reward.startup_timeout)."
            ) from error
        except Refusal as error:
            if self.model and " 404: " in str(error):  # a server that does not list its models
                return self.model
            hint = f" Set {KEY} to the server's key." if " 401: " in str(error) else ""
            raise ContractError(f"reward `vlm`: {error}.{hint}") from error
        if self.model in names or (not self.model and len(names) == 1):
            return self.model or names[0]
        asked = f"has no model {self.model!r}" if self.model else "has not one model"
        raise ContractError(f"reward `vlm`: {self.url} {asked}: name one with --reward.model: {', '.join(names)}.")

    @property
    def network(self) -> Any:
        """The text network of descriptions. Runs ask for it before they load a model, and so hear in time of a server
        that is not there."""
        found = self.recall.network if self.mode == "describe" else None
        _ = self.judge
        return found if found is None or self.device == "auto" else found.to(self.device)

    @cached_property
    def _kept(self) -> Kept:
        return Kept(self.cache)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B] of pictures [B,3,H,W] in [0,1], on the CPU, without a gradient."""
        rows = prompts if isinstance(prompts, Prompts) else Prompts.of(prompts)
        _, until = self.judge, self.courier.until()
        found: list[Verdict | str] = ["nobody answered"] * len(images)

        def look(row: int) -> None:
            try:
                if not images[row].isfinite().all():
                    raise Unreadable("the picture holds numbers that are not finite")
                found[row] = self._judged(images[row], rows.texts[row], rows.metadata[row], until)
            except (Unreadable, Silence, Refusal) as error:
                found[row] = str(error)

        together([partial(look, row) for row in range(len(images))], self.at_once)
        return self._scores(found, rows.texts, images.device)

    def _judged(self, image: Tensor, prompt: str, metadata: Any, until: float) -> Verdict:
        """What is made of one picture; answers that can be read are kept."""
        levels = (255 * image.detach().float()).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        mark = hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest()
        more = extras(self.mode, self.best, self.answer_tokens)
        replies, fresh = list[Reply](), dict[str, Reply]()
        for text in texts(self.mode, self.question, prompt, metadata, self.best):
            key = Kept.key(mark, prompt, text, more, self.judge, self.seed)
            reply = _kept(self._kept.get(key))
            if reply is None:
                reply = fresh[key] = self.courier.ask(
                    "/v1/chat/completions", _reply, body=self._body(levels, text, more), until=until
                )
            replies.append(reply)
        made = verdict(self.mode, replies, metadata, self.best)
        for key, reply in fresh.items():
            self._kept.put(key, reply)
        return made

    def _body(self, levels: Any, text: str, more: dict[str, Any]) -> bytes:
        from PIL import Image

        held = io.BytesIO()
        Image.fromarray(levels).save(held, "PNG", compress_level=1)
        url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        said = {"model": self.judge, "messages": [{"role": "user", "content": content}], "temperature": 0}
        return json.dumps(said | {"seed": self.seed} | more).encode()

    def _scores(self, found: list[Verdict | str], prompts: Sequence[str], device: torch.device) -> Scores:
        value = torch.tensor([one.score if isinstance(one, Verdict) else torch.nan for one in found])
        names = dict.fromkeys(name for one in found if isinstance(one, Verdict) for name in one.parts)
        parts = {
            name: torch.tensor(
                [one.parts.get(name, torch.nan) if isinstance(one, Verdict) else torch.nan for one in found]
            )
            for name in names
        }
        good = [(row, one.note) for row, one in enumerate(found) if isinstance(one, Verdict)]
        if self.mode == "describe" and good:
            if self.device == "auto":
                self.recall.network.to(device)
            recall = self.recall([note for _, note in good], [REFERENCE.format(prompt=prompts[row]) for row, _ in good])
            parts["recall"] = torch.full_like(value, torch.nan)
            parts["recall"][[row for row, _ in good]] = recall
            value = rescaled(parts["recall"], self.baseline)
        notes = tuple(one.note if isinstance(one, Verdict) else f"no score: {one}" for one in found)
        return Scores(value, parts, notes)


def _names(body: bytes) -> list[str]:
    """The models that a server lists."""
    try:
        return [str(one["id"]) for one in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Spoilt("its list of models is none") from error


def _reply(body: bytes) -> Reply:
    """What a model said; a refusal and silence are empty texts. Errors: Spoilt for what is no answer of a chat."""
    try:
        choice = json.loads(body)["choices"][0]
        refused = choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter"
        text = "" if refused else choice["message"].get("content") or ""
        told = (choice.get("logprobs") or {}).get("content") or []
        likely = [told[0], *(told[0].get("top_logprobs") or [])] if told else []
        first = {str(one["token"]): float(one["logprob"]) for one in likely}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Spoilt("the answer is none of a chat") from error
    if not isinstance(text, str):
        raise Spoilt("the answer is none of a chat")
    return Reply(text, first)


def _kept(found: Any) -> Reply | None:
    """A reply as it was kept; None for anything else."""
    match found:
        case [str(text), dict(first)] if all(isinstance(p, float | int) for p in first.values()):
            return Reply(text, first)
    return None
