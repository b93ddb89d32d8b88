"""Every check finds the bug that it is for: each is put into a healthy model, and has to be called by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tastemaker.algorithms import transitions
from tastemaker.build import attribute
from tastemaker.checks import TABLE
from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict
from tastemaker.examination import answer
from tastemaker.policy.weights import Weights
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM
from tastemaker.process.schedule import Schedule
from tastemaker.process.transition import Transition, log_prob

Cases = Callable[..., Case]
Patch = pytest.MonkeyPatch


def look(name: str, case: Case) -> Finding:
    return answer(attribute(TABLE[name]), case)


def is_wrong(found: Finding, *words: str) -> None:
    assert found.verdict is Verdict.WRONG, found
    assert all(word in found.advice for word in words), found.advice


def warns(found: Finding, *words: str) -> None:
    assert found.verdict is Verdict.WARNING, found
    assert all(word in found.advice for word in words), found.advice


def predicting(monkeypatch: Patch, case: Case, change: Callable[[Prediction, Any], Prediction]) -> None:
    """The policy answers otherwise; `change` is shown its answer and the step it was asked for."""
    own = case.policy.predict

    def predict(x: Tensor, i: Any, *rest: Any) -> Prediction:
        return change(own(x, i, *rest), i)

    monkeypatch.setattr(case.policy, "predict", predict)


# ---- first ratio


def test_a_network_that_is_random_where_it_learns(case: Cases, monkeypatch: Patch) -> None:
    def noisy(found: Prediction, i: Any) -> Prediction:
        if not torch.is_grad_enabled():
            return found
        return Prediction(found.x0 + 0.01 * torch.randn_like(found.x0), found.eps)

    one = case()
    predicting(monkeypatch, one, noisy)
    is_wrong(look("first ratio", one), "taking it anew does not help", "dropout")


def test_a_network_that_learns_in_another_precision(case: Cases, monkeypatch: Patch) -> None:
    one = case()
    policy: Any = one.policy
    own = policy._network

    def rounded(*given: Any) -> Tensor:
        found: Tensor = own(*given)
        return found.bfloat16().float() if torch.is_grad_enabled() else found

    monkeypatch.setattr(policy, "_network", rounded)
    is_wrong(look("first ratio", one), "with a gradient and without one")


def test_a_network_whose_answer_is_no_number(case: Cases, monkeypatch: Patch) -> None:
    def nan(found: Prediction, i: Any) -> Prediction:
        return Prediction(found.x0 * torch.nan, found.eps) if torch.is_grad_enabled() else found

    one = case()
    predicting(monkeypatch, one, nan)
    is_wrong(look("first ratio", one), "not a number")


def test_drawing_in_another_layout_is_what_a_run_mends(case: Cases, monkeypatch: Patch) -> None:
    """Drawing asks for one step, learning for one of each row."""

    def shifted(found: Prediction, i: Any) -> Prediction:
        return Prediction(found.x0 + (1e-3 if isinstance(i, int) else 0.0), found.eps)

    one = case()
    predicting(monkeypatch, one, shifted)
    warns(look("first ratio", one), "calls of 4 pictures and of 4 items", "takes old log-probabilities anew")


def test_a_reward_that_is_the_same_for_all(case: Cases) -> None:
    one = case("3", "flow_grpo", reward=lambda images, prompts: 0 * images.mean((1, 2, 3)))
    for name in ("first ratio", "log-probs", "gradients"):
        warns(look(name, one), "nothing to learn from")


# ---- log-probs


def test_log_probs_in_half_precision(case: Cases, monkeypatch: Patch) -> None:
    def rounded(p: Transition, x: Tensor) -> Tensor:
        z = ((x.bfloat16() - p.mean.bfloat16()) / p.std.bfloat16()).float()
        return log_prob(Transition(torch.zeros_like(z), torch.ones(())), z) - torch.log(p.std).flatten()

    one = case()
    assert look("log-probs", one).verdict is Verdict.OK
    monkeypatch.setattr(transitions, "log_prob", rounded)
    is_wrong(look("log-probs", one), "off the same in fp64", "times the clip")


def test_log_probs_of_another_step(case: Cases, monkeypatch: Patch) -> None:
    one = case("3", "flow_grpo")
    own = transitions.log_prob
    monkeypatch.setattr(transitions, "log_prob", lambda p, x: own(p._replace(std=1.001 * p.std), x))
    is_wrong(look("log-probs", one), "or not for the step that was drawn")


def test_a_network_in_half_precision(case: Cases, monkeypatch: Patch) -> None:
    one = case("eps", "ddpo", "--mixed_precision bf16")
    before = one.look()
    warns(
        look("half precision", one),
        "rounding the network to bf16",
        "times what a ratio may move",
        "fp16, which has three bits more",
    )
    assert torch.equal(one.look().eps, before.eps)  # what was wide for a moment is half again, with the same bits
    predicting(monkeypatch, one, lambda found, i: Prediction(found.x0 * torch.inf, found.eps))
    is_wrong(look("half precision", one), "not finite in bf16")


# ---- gradients


def layer(case: Case, name: str) -> nn.Module:
    """A layer of the network, by the end of its name."""
    policy: Any = case.policy
    return next(module for key, module in policy._denoiser.named_modules() if key.endswith(name))


@pytest.mark.parametrize("algorithm", ["ddpo", "draft"])
def test_a_layer_that_is_cut_out_of_the_graph(algorithm: str, case: Cases) -> None:
    one = case("eps", algorithm)
    hook = layer(one, "attn2.to_q.lora_B.learner").register_forward_hook(lambda module, given, found: found.detach())
    found = look("gradients", one)
    hook.remove()
    is_wrong(found, "2 tensors have no gradient, though the picture depends on them", "attn2.to_q.lora_A")
    assert found.measured.startswith("62 of 64 tensors, norm ")


def test_a_layer_that_the_network_never_asks_is_harmless(case: Cases) -> None:
    one = case()
    last = layer(one, "attn2.to_q.lora_B.learner")
    hook = last.register_forward_hook(lambda module, given, found: found.detach() * 0)
    found = look("gradients", one)
    hook.remove()
    warns(found, "2 tensors have no gradient, and moving them changes nothing", "--lora.targets")


def test_no_gradient_at_all(case: Cases, monkeypatch: Patch) -> None:
    one = case()
    predicting(monkeypatch, one, lambda found, i: Prediction(found.x0.detach(), found.eps.detach()))
    is_wrong(look("gradients", one), "no tensor has a gradient")
    zero = case()
    predicting(monkeypatch, zero, lambda found, i: Prediction(found.x0.detach() + 0 * found.x0, found.eps.detach()))
    is_wrong(look("gradients", zero), "no tensor has a gradient")


def test_gradients_that_are_no_numbers(case: Cases, monkeypatch: Patch) -> None:
    one = case()

    def nan(found: Prediction, i: Any) -> Prediction:
        if found.x0.requires_grad:
            found.x0.register_hook(lambda slope: slope * torch.nan)
        return found

    predicting(monkeypatch, one, nan)
    is_wrong(look("gradients", one), "no update has a finite gradient in fp32", "lora_")


# ---- weight sets


def test_using_that_forgets_to_restore(case: Cases, monkeypatch: Patch) -> None:
    one = case("eps", "diffusion_nft", "--algorithm.levels 2")

    @contextmanager
    def forgetful(self: Weights, name: str) -> Iterator[None]:
        with torch.no_grad():
            self._exchange(name)
            yield

    monkeypatch.setattr(Weights, "using", forgetful)
    is_wrong(look("weight sets", one), "after `base` was used the tuned weights are not back")


def test_using_that_forgets_to_restore_after_an_error(case: Cases, monkeypatch: Patch) -> None:
    @contextmanager
    def fragile(self: Weights, name: str) -> Iterator[None]:
        before = self._active
        with torch.no_grad():
            self._exchange(name)
            yield
            self._exchange(before)

    monkeypatch.setattr(Weights, "using", fragile)
    is_wrong(look("weight sets", case()), "after an error while `base` was in use")


@pytest.mark.parametrize("lora", ["", "--no-lora"])
def test_a_base_that_is_not_the_base(lora: str, case: Cases, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Weights, "using", lambda self, name: nullcontext())
    is_wrong(look("weight sets", case(more=lora)), "`base` is not the model without what was trained")


def test_a_set_that_is_not_what_was_copied(case: Cases, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Weights, "blend", lambda self, name, keep: None)
    found = look("weight sets", case("eps", "diffusion_nft", "--algorithm.levels 2"))
    is_wrong(found, "`old` is not the weights that were copied into it")
    assert found.measured == "old"


def test_using_that_leaves_gradients_off(case: Cases, monkeypatch: Patch) -> None:
    own = Weights.using

    @contextmanager
    def leaking(self: Weights, name: str) -> Iterator[None]:
        with own(self, name):
            yield
        torch.set_grad_enabled(False)

    monkeypatch.setattr(Weights, "using", leaking)
    with torch.enable_grad():  # gives back what it found
        is_wrong(look("weight sets", case()), "gradients are off after `base`")


def test_an_adapter_that_is_not_in_use(case: Cases) -> None:
    one = case()
    policy: Any = one.policy
    for module in policy._weights._layers:
        module._disable_adapters = True
    is_wrong(look("weight sets", one), "what is trained is not in use")


# ---- pictures


def decoding(monkeypatch: Patch, case: Case, change: Callable[[Tensor], Tensor]) -> Case:
    own = case.policy.decode
    monkeypatch.setattr(case.policy, "decode", lambda x0: change(own(x0)))
    return case


def test_pictures_that_leave_their_range(case: Cases, monkeypatch: Patch) -> None:
    one = decoding(monkeypatch, case(), lambda images: 2 * images - 1)
    is_wrong(look("decoding", one), "pictures leave [0, 1]")
    assert look("decoding", one).measured.startswith("from -")


def test_pictures_of_which_half_is_crushed_to_black(case: Cases, monkeypatch: Patch) -> None:
    """`clamp(0, 1)` without `/ 2 + 0.5`."""
    one = decoding(monkeypatch, case(), lambda images: (2 * images - 1).clamp(0, 1))
    is_wrong(look("decoding", one), "levels off those of diffusers in fp32")


def test_pictures_that_are_no_numbers(case: Cases, monkeypatch: Patch) -> None:
    one = decoding(monkeypatch, case(), lambda images: images * torch.nan)
    is_wrong(look("decoding", one), "pictures are not finite, with the VAE in float32", "force_upcast")
    is_wrong(look("encoding", one), "comes back as NaN")
    assert look("reward", one).advice == "the pictures hold NaN: see decoding."
    other = case()
    predicting(monkeypatch, other, lambda found, i: Prediction(found.x0 * torch.nan, found.eps))
    is_wrong(look("decoding", other), "the network, in fp32, draws NaN already")


def test_a_vae_that_loses_digits(case: Cases, monkeypatch: Patch) -> None:
    one = decoding(monkeypatch, case("eps", "ddpo"), lambda images: (images + 16 / 255).clamp(0, 1))
    warns(look("decoding", one), "16 of 255 levels off those of diffusers in fp32")


# ---- sampling


def test_a_chain_with_a_wrong_sigma(case: Cases, monkeypatch: Patch) -> None:
    one = case()
    own = one.policy.schedule

    def wrong(steps: int) -> Schedule:
        found = own(steps)
        return Schedule(found.t, found.alpha, found.sigma * torch.linspace(1, 4, steps + 1))

    monkeypatch.setattr(one.policy, "schedule", wrong)
    is_wrong(look("sampling", one), "in 4 steps at guidance 5", "diffusers' DDIMScheduler")


def test_a_sampler_that_steps_too_far(case: Cases, monkeypatch: Patch) -> None:
    one = case("dev", "ddpo", "--algorithm.sampler flow_sde")
    own = DDIM.transition

    def far(self: DDIM, prediction: Prediction, x: Tensor, i: Any, schedule: Schedule) -> Transition:
        p = own(self, prediction, x, i, schedule)
        return p._replace(mean=p.mean + 0.3 * (p.mean - x))

    monkeypatch.setattr(DDIM, "transition", far)
    is_wrong(look("sampling", one), "diffusers' FlowMatchEulerDiscreteScheduler")


def test_guidance_that_is_left_out(case: Cases, monkeypatch: Patch) -> None:
    one = case()
    own = one.policy.predict
    monkeypatch.setattr(one.policy, "predict", lambda x, i, schedule, texts, guidance: own(x, i, schedule, texts, 1.0))
    is_wrong(look("sampling", one), "ends elsewhere than by diffusers'")


def test_a_grid_that_diffusers_steps_beside_is_left_out(tmp_path: Path, case: Cases) -> None:
    import tiny

    folder = tiny.save(tmp_path / "linspace", scheduler={"timestep_spacing": "linspace"})
    found = look("sampling", case(model=str(folder)))
    assert found.verdict is Verdict.NOT_APPLICABLE and "'linspace'" in found.advice and "by design" in found.advice


# ---- prompts and rewards


def test_prompts_that_are_cut_off(case: Cases) -> None:
    one = case(prompts=["a cat", "an extraordinarily long description of a cat that nobody reads to its end"])
    found = look("prompts", one)
    warns(found, "the model reads 16 tokens of a prompt", "'an extraordinarily long description")
    assert (found.measured, found.bound) == ("1 of 2 cut off", "16 tokens each")
    assert look("decoding", one).verdict is Verdict.OK  # it does not warn of them once more


def test_a_reward_without_a_gradient(case: Cases) -> None:
    def blind(images: Tensor, prompts: list[str]) -> Tensor:
        return images.detach().mean((1, 2, 3))

    assert look("reward", case("eps", "ddpo", reward=blind)).verdict is Verdict.OK
    is_wrong(look("reward", case("eps", "draft", reward=blind)), "draft differentiates the reward", "without a graph")


def test_a_reward_that_gives_no_numbers(case: Cases) -> None:
    is_wrong(look("reward", case(reward=lambda images, prompts: images.mean((1, 2, 3)) * torch.nan)), "finite")


# ---- checks that cannot be made


def test_a_check_that_is_stopped_says_why(case: Cases) -> None:
    def falls(one: Case) -> Finding:
        raise KeyError("x\nand more")

    def needs(one: Case) -> Finding:
        raise torch.OutOfMemoryError

    def needs_too(one: Case) -> Finding:
        raise ValueError("with one picture a call") from torch.OutOfMemoryError()

    one = case()
    assert answer(falls, one) == Finding(
        Verdict.WRONG, "stopped", "", "the check was stopped by KeyError: 'x\\nand more'"
    )
    for check in (needs, needs_too):
        found = answer(check, one)
        assert found.verdict is Verdict.NOT_APPLICABLE and "memory is too small" in found.advice


def test_a_quantised_network_is_not_held_against_fp32(case: Cases) -> None:
    one = case("eps", "ddpo", "--mixed_precision bf16")
    one.run = replace(one.run, quantise="4bit")
    for name in ("sampling", "half precision"):
        assert "--quantise 4bit" in look(name, one).advice
