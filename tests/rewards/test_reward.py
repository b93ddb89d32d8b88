import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tastemaker import rewards
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import Scores, adapt, check, score

N = 4
PROMPTS = Prompts.of([f"p{k}" for k in range(N)], [{"k": k} for k in range(N)])


def pictures(n: int = N) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def brightness(images: Tensor, prompts: Any) -> Tensor:
    return images.mean((1, 2, 3))


VALUE = brightness(pictures(), PROMPTS)


class Judge:
    device = torch.device("cpu")

    def __call__(self, images: Tensor, prompts: Prompts) -> Scores:
        value = brightness(images, prompts)
        return Scores(value, {"twice": 2 * value}, tuple(f"saw {text}" for text in prompts))


@pytest.mark.parametrize(
    "reward",
    [
        brightness,
        lambda images, prompts: brightness(images, prompts).numpy(),
        lambda images, prompts: brightness(images, prompts).tolist(),
        lambda images, prompts: list(brightness(images, prompts)),
        lambda images, prompts: brightness(images, prompts).numpy()[::-1][::-1],
        lambda images, prompts: (brightness(images, prompts), {}),
        lambda images, prompts, metadata: (brightness(images, prompts).numpy(), {"texts": prompts}),
        lambda images, prompts, metadata=None: brightness(images, prompts),
        lambda images, prompts, scale=1.0: scale * brightness(images, prompts),
        functools.partial(lambda scale, images, prompts: scale * brightness(images, prompts), 1.0),
        lambda *rest: brightness(rest[0], rest[1]),
        Judge(),
        Judge,
    ],
)
def test_every_form_is_accepted(reward: Any) -> None:
    judge = adapt(reward)
    scores = judge(pictures(), PROMPTS)
    assert isinstance(scores, Scores) and scores.value.dtype is torch.float32
    assert torch.equal(scores.value, VALUE)
    check(reward, pictures(), PROMPTS)
    assert adapt(judge) is judge and judge.name


def test_arguments_of_two_and_of_three() -> None:
    seen: list[Any] = []
    adapt(lambda images, prompts: seen.append(prompts) or [0.0] * N)(pictures(), PROMPTS)
    adapt(lambda images, prompts, metadata: seen.append((prompts, metadata)) or [0.0] * N)(pictures(), PROMPTS)
    adapt(lambda i, p, prompt_metadata=0: seen.append((p, prompt_metadata)) or [0.0] * N)(pictures(), PROMPTS)
    assert seen == [PROMPTS, (PROMPTS.texts, PROMPTS.metadata), (PROMPTS.texts, PROMPTS.metadata)]
    adapt(lambda images, prompts: seen.append(list(prompts)) or [0.0] * 2)(pictures(2), ["a", "b"])
    assert seen[-1] == ["a", "b"]


def test_names() -> None:
    assert adapt(brightness).name == "brightness" and adapt(Judge()).name == "Judge"
    assert adapt(lambda a, b: 0).name == "reward" and adapt(functools.partial(brightness)).name == "brightness"
    assert adapt(adapt(brightness), "light").name == "light" and adapt(Judge()).device == torch.device("cpu")
    assert adapt(brightness).device is None


def test_parts_and_notes() -> None:
    scores = adapt(Judge())(pictures(), PROMPTS)
    assert torch.equal(scores.parts["twice"], 2 * VALUE) and scores.notes[1] == "saw p1"
    info = {"size": np.arange(N), "loud": 3.0, "why": ["x"] * N, "short": [1.0]}  # only [B] numbers are parts
    scores = adapt(lambda images, prompts: (np.zeros(N), info))(pictures(), PROMPTS)
    assert set(scores.parts) == {"size"} and scores.parts["size"].tolist() == [0, 1, 2, 3]


def test_dtypes() -> None:
    # whole numbers must not truncate later statistics; fp64 stays for exact tests; half precision is widened
    for made, dtype in [
        (torch.arange(N), torch.float32),
        (torch.ones(N, dtype=torch.bool), torch.float32),
        (torch.ones(N).half(), torch.float32),
        (torch.ones(N).bfloat16(), torch.float32),
        (torch.ones(N).double(), torch.float64),
        (np.ones(N), torch.float32),
        ([1, 2, 3, 4], torch.float32),
    ]:
        assert adapt(lambda images, prompts, made=made: made)(pictures(), PROMPTS).value.dtype is dtype


def test_the_graph_is_kept_by_a_call_and_cut_by_score() -> None:
    images = pictures().requires_grad_()
    adapt(brightness)(images, PROMPTS).value.sum().backward()
    assert images.grad is not None and torch.allclose(images.grad, torch.tensor(1 / 48))
    assert not score(brightness, images, PROMPTS).value.requires_grad


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (None, r"returned None; needed is one number a picture, a tensor \[4\]. Is a `return` missing"),
        ({"score": [0.0] * N}, r"returned a dict with score; .* Return the number to maximise, or a pair"),
        (0.5, "returned a single number for 4 picture.*Take out the `.mean"),
        (torch.tensor(0.5), "returned a single number"),
        (torch.zeros(N, 1), r"shape \[4, 1\].*Finish with `.squeeze\(1\)`"),
        (np.zeros((N, 1)), r"shape \[4, 1\]"),
        (torch.zeros(N, 2), r"shape \[4, 2\]"),
        (torch.zeros(N - 1), r"shape \[3\] for 4 picture"),
        ([[0.0], [0.0, 1.0], [0.0], [0.0]], r"\(list\)"),
        (["good"] * N, r"\['good'.*\(list\)"),
        ("good", r"'good' \(str\)"),
        (torch.zeros(N, dtype=torch.complex64), "complex64"),
        ((torch.zeros(N, 1), {}), r"shape \[4, 1\]"),
        (Scores(torch.zeros(N), {"size": torch.zeros(2)}), r"part `size` of reward `mine` is the shape \[2\]"),
        (Scores(torch.zeros(N), {}, ("a",)), "1 notes for 4 pictures"),
        (torch.full((N,), torch.nan), r"returned nan for 4 of 4 pictures .*NaN leaves a picture out, but not all"),
        (torch.tensor([0, 1, 2, torch.inf]), "returned inf for 1 of 4"),
    ],
)
def test_check_refuses(made: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error) as found:
        check(adapt(lambda images, prompts: made, "mine"), pictures(), PROMPTS)
    assert "`mine`" in str(found.value)


def test_check_refuses_what_depends_on_the_order_or_the_company() -> None:
    calls = itertools.count()

    def refused(reward: Any, error: str) -> None:
        with pytest.raises(ValueError, match=error):
            check(adapt(reward, "mine"), pictures(), PROMPTS)

    refused(lambda images, prompts: brightness(images, prompts).sort().values, "in another order")
    refused(lambda images, prompts: torch.arange(len(images)), "in another order")
    refused(lambda images, prompts: -torch.arange(len(images)) / 9, "in another order")
    refused(lambda images, prompts: sorted(float(text[1:]) for text in prompts), "in another order")
    refused(lambda i, p: brightness(i, p).argsort().argsort(), "must not depend on the other pictures")
    refused(lambda i, p: brightness(i, p) / brightness(i, p).std(correction=0), "must not depend on the other pictures")
    refused(lambda i, p: brightness(i, p).squeeze() if len(i) > 1 else brightness(i, p)[0], r"single number for 1 pict")
    refused(lambda images, prompts: images.mul_(255).mean((1, 2, 3)), "changes the pictures it is given")
    refused(lambda images, prompts: [0.0][5], r"failed on pictures \[4, 3, 4, 4\] in \[0, 1\]: IndexError: list index")
    # random judges are allowed: the difference is there without another order, too
    check(lambda i, p: torch.rand(len(i), generator=torch.Generator().manual_seed(next(calls))), pictures(), PROMPTS)
    # the prompt belongs to the picture, and the same for all is a score
    check(lambda images, prompts: [float(text[1:]) for text in prompts], pictures(), PROMPTS)
    check(lambda images, prompts: torch.zeros(len(images)), pictures(), PROMPTS)
    check(brightness, pictures(1), PROMPTS.take([0]))


def test_check_blames_the_model_for_its_own_nan() -> None:
    with pytest.raises(ValueError, match="the model makes them"):
        check(brightness, pictures() * torch.nan, PROMPTS)


def test_a_missing_score_with_a_reason_is_allowed() -> None:
    def judge(images: Tensor, prompts: Prompts) -> Scores:
        faces = torch.tensor([text != "p2" for text in prompts])
        value = torch.where(faces, brightness(images, prompts), torch.nan)
        return Scores(value, {}, tuple(None if face else "no face" for face in faces))

    check(judge, pictures(), PROMPTS)
    with pytest.raises(ValueError, match="nan for 4 of 4"):
        check(lambda i, p: Scores(torch.full((len(i),), torch.nan), {}, ("none",) * len(i)), pictures(), PROMPTS)


def test_score_masks_and_never_gives_zero() -> None:
    def fails(images: Tensor, prompts: Prompts) -> Tensor:
        raise ConnectionError("the judge is asleep")

    scores = score(fails, pictures(), PROMPTS)
    assert scores.value.isnan().all() and len(scores.notes) == N
    assert scores.notes[0] is not None and "ConnectionError: the judge is asleep" in scores.notes[0]
    assert "in fails" in scores.notes[0]  # the traceback, not the message alone
    made = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert score(lambda i, p: made, pictures(), PROMPTS).value.isnan().tolist() == [False, True, True, True]
    assert score(lambda i, p: [1.0, None, 2.0, 3.0], pictures(), PROMPTS).value.isnan().tolist()[1]
    assert score(lambda i, p: torch.zeros(N, 1), pictures(), PROMPTS).value.isnan().all()
    with pytest.raises(KeyboardInterrupt):
        score(lambda i, p: (_ for _ in ()).throw(KeyboardInterrupt), pictures(), PROMPTS)


def failing(times: int, answer: Any = brightness) -> tuple[Any, list[int]]:
    """A judge that raises at its first calls, and the list of its calls."""
    calls: list[int] = []

    def judge(images: Tensor, prompts: Prompts) -> Any:
        calls.append(len(images))
        if len(calls) <= times:
            raise TimeoutError(f"no answer to call {len(calls)}")
        return answer(images, prompts)

    return judge, calls


def test_a_judge_that_raises_is_asked_once_more_and_the_notes_say_so() -> None:
    judge, calls = failing(1)
    scores = score(judge, pictures(), PROMPTS)
    assert torch.equal(scores.value, VALUE) and calls == [N, N]
    assert scores.notes == ("asked twice: the first call raised TimeoutError: no answer to call 1",) * N
    scores = score(failing(1, Judge())[0], pictures(), PROMPTS)
    assert scores.notes[1] == "asked twice: the first call raised TimeoutError: no answer to call 1\nsaw p1"
    assert torch.equal(scores.parts["twice"], 2 * VALUE)
    judge, calls = failing(2)
    scores = score(judge, pictures(), PROMPTS)
    assert scores.value.isnan().all() and calls == [N, N]
    note = scores.notes[0] or ""
    assert "no answer to call 1" in note and note.endswith("TimeoutError: no answer to call 2\n")


def test_an_answer_is_no_reason_to_ask_again() -> None:
    judge, calls = failing(0, lambda images, prompts: torch.full((N,), torch.nan))
    scores = score(judge, pictures(), PROMPTS)
    assert scores.value.isnan().all() and scores.notes == () and calls == [N]


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (lambda images: 0, r"takes \(images\); it is called with \(images, prompts\)"),
        (lambda: brightness, r"takes \(nothing\).*If it makes the reward, give what it returns"),
        (lambda a, b, c, d: 0, r"takes \(a, b, c, d\)"),
        (lambda images, prompts, *, scale: 0, "scale"),
        (3, "found a int. Give a function .*jpeg_compressibility"),
    ],
)
def test_adapt_refuses(reward: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        adapt(reward)


def test_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    file = tmp_path / "mine.py"
    file.write_text(
        "def bright(images, prompts, metadata):\n    return images.mean((1, 2, 3)), {}\n"
        "class Judge:\n    def __call__(self, images, prompts):\n        return images.amax((1, 2, 3))\n"
    )
    assert torch.equal(rewards.named(f"{file}:bright")(pictures(), PROMPTS).value, VALUE)
    assert rewards.named(f"{file}:bright").name == "bright" and rewards.named(f"{file}:Judge").name == "Judge"
    assert rewards.named("jpeg_compressibility").name == "jpeg_compressibility"
    assert rewards.named(brightness).name == "brightness" and rewards.named(Judge()).name == "Judge"
    for spec, error in {
        "jpeg_compresibility": "Did you mean `jpeg_compressibility`. Names that fit: `jpeg_compressibility`, `jpeg_in",
        "beauty": r"is not the name of a reward\. Names that fit: `.*`, `.*`, `.*`; or `path/to/file.py:function`",
        f"{tmp_path}/mime.py:bright": r"Did you mean `.*/mine\.py`",
        f"{file}:brigt": "Did you mean `bright`",
        str(file): "write `.*mine.py:NAME`",
    }.items():
        with pytest.raises(ValueError, match=f"^--reward: .*{error}"):
            rewards.named(spec, key="--reward")


def test_a_wrong_name_is_answered_without_torch() -> None:
    code = (
        "import sys\nfrom tastemaker import rewards\n"
        "try: rewards.named('beauty')\nexcept ValueError: assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there() -> None:
    assert all(getattr(rewards, name) is not None for name in rewards.__all__)
    assert rewards.Scores is Scores
    with pytest.raises(AttributeError, match="no attribute 'Sores'"):
        _ = rewards.Sores


def test_some_pictures_may_have_no_score() -> None:
    """NaN without a note, as the guide has it: those pictures are left out, at the trial too."""

    def dark_only(images: Tensor, prompts: Prompts) -> Tensor:
        value = brightness(images, prompts)
        return value.masked_fill(value > threshold, torch.nan)

    threshold = float(brightness(pictures(), PROMPTS).median())
    check(dark_only, pictures(), PROMPTS)
