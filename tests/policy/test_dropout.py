"""The adapter's dropout: on only where a gradient is made by the current weights, and drawn from a number."""

import pytest
import torch
from torch import Tensor

import runs
from policy.test_weights import DORA, SETS, ask, shake
from tastemaker import config
from tastemaker.build import attribute
from tastemaker.policy.adapter import ADAPTER, LoRA
from tastemaker.policy.load import load

HALF = LoRA(rank=2, dropout=0.5, targets=("to_q", "conv1"))


def loaded(model, lora=HALF):
    policy = load(model, lora=lora, sets=SETS)
    shake(policy)
    return policy


def dropped(policy, number: int) -> Tensor:
    with policy.dropping(number):
        return ask(policy)


@pytest.mark.parametrize("lora", [HALF, LoRA(**vars(DORA) | {"dropout": 0.5})], ids=["lora", "dora"])
def test_it_is_drawn_from_the_number_and_leaves_the_stream_alone(model, lora):
    policy, plain = loaded(model, lora), loaded(model, LoRA(**vars(lora) | {"dropout": 0.0}))
    before = torch.get_rng_state()
    first, other = dropped(policy, 5), dropped(policy, 6)
    assert torch.equal(dropped(policy, 5), first) and not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ask(policy), ask(plain)) and not torch.allclose(ask(policy), first, atol=1e-3)
    with pytest.raises(KeyError), policy.dropping(5):
        raise KeyError
    assert torch.equal(ask(policy), ask(plain)) and torch.equal(dropped(plain, 5), ask(plain))


@pytest.mark.parametrize("lora", [HALF, LoRA(**vars(DORA) | {"dropout": 0.5})], ids=["lora", "dora"])
def test_it_is_off_without_a_gradient_and_in_other_sets(model, lora):
    policy = loaded(model, lora)
    wanted = {}
    for name in SETS:
        with policy.using(name):
            wanted[name] = ask(policy)
    current = ask(policy).detach()
    with policy.dropping(5):
        with torch.no_grad():
            assert torch.equal(ask(policy), current)
        for name in SETS:
            with policy.using(name):
                assert torch.equal(ask(policy), wanted[name])
        assert not torch.allclose(ask(policy), current, atol=1e-3)


def test_what_is_left_is_scaled_up(model):
    policy = loaded(model, LoRA(rank=2, dropout=0.25))
    network = policy.pipeline().unet
    layer = next(module for name, module in network.named_modules() if name.endswith("attn1.to_q"))
    seen: list[Tensor] = []
    for module in (layer, layer.lora_A[ADAPTER]):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    dropped(policy, 1)
    whole, part = seen
    kept = part != 0
    assert torch.allclose(part[kept], whole[kept] / 0.75)
    error = (0.25 * 0.75 / whole.numel()) ** 0.5
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=4 * error) and whole.numel() > 1000


def test_an_adapter_that_does_nothing_yet_begins_at_the_base(model):
    policy = load(model, lora=HALF)
    with policy.using("base"):
        base = ask(policy)
    assert torch.equal(dropped(policy, 3), base)


def test_layers_that_are_computed_twice_drop_the_same(model):
    gradients = []
    for checkpointing in (False, True):
        policy = load(model, lora=HALF, gradient_checkpointing=checkpointing)
        shake(policy)
        with policy.dropping(4):
            ask(policy).square().mean().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8) and one.any()


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match="lora.dropout is .*, it must be a share from 0 up to, but not, 1"):
        LoRA(dropout=share)


@pytest.mark.parametrize("name", ["ddpo", "dpok", "flow_grpo", "awm"])
def test_a_ratio_of_two_random_networks_is_refused(name, tmp_path):
    folder = tmp_path / "run"
    words = runs.words(folder, "--lora.dropout", "0.1", *(("--algorithm.per_prompt", "2") if name != "ddpo" else ()))
    ran = runs.call("train", name, *words[2:])
    assert ran.code == 2 and not folder.exists()
    said = f"tastemaker: --lora.dropout does not go with {name}: the ratio of new to old probabilities"
    assert ran.err.startswith(said), ran.err


def test_no_other_algorithm_takes_a_ratio():
    found = [name for name, entry in config.algorithms().items() if "clip" in vars(attribute(entry)())]
    assert sorted(found) == ["awm", "ddpo", "dpok", "flow_grpo"]


def test_a_run_learns_with_it_and_is_not_the_one_without(tmp_path):
    found = {}
    for share in ("0", "0.5"):
        folder = tmp_path / share
        words = runs.words(folder, "--lora.dropout", share, "--algorithm.updates", "1")
        runs.train(["train", "reinforce", *words[2:]])
        found[share] = runs.weights(folder)
        assert runs.settings(folder)["lora"]["dropout"] == float(share)
    assert found["0"] != found["0.5"]
    again = ["train", "reinforce", *words[2:], "--gradient_checkpointing", "--output_dir", str(tmp_path / "twice")]
    runs.train(again)  # layers are computed a second time in backward, which has to drop the same
    assert runs.weights(tmp_path / "twice") == found["0.5"]
