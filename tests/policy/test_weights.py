import time
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from tastemaker.metering import network
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.policy.weights import Weights

PROMPTS = ["a red cat", "two dogs"]
SETS = ("base", "old", "ema")
DORA = LoRA(dora=True, rslora=True, alpha=3.0, targets=("to_q", "to_out.0", "conv1", "proj_in"))


def ask(policy, x=None):
    if x is None:
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    return policy.predict(x, 1, policy.schedule(4), policy.encode(PROMPTS), 3.0).eps


def shake(policy, size=0.3):
    """Other weights, as after training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def untouched(model, dtype):
    """The base network's answer by the shortest way, in the given dtype under the given autocast."""
    with quiet():
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", dtype=dtype).eval()
    policy = load(model, lora=LoRA(), mixed_precision="no" if dtype == torch.float32 else "bf16")
    conditioning, schedule = policy.encode(PROMPTS), policy.schedule(4)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    text = torch.cat([conditioning.negative_rows("text"), conditioning.positive_rows("text")])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = unet(torch.cat([x, x]), schedule.t[1].expand(4), text).sample
    away, toward = out.float().chunk(2)
    return away + 3.0 * (toward - away)


@pytest.mark.parametrize("lora", [LoRA(), DORA])
@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_base_is_the_base_model_bit_for_bit(model, precision, dtype, lora):
    policy, reference = load(model, lora=lora, mixed_precision=precision), untouched(model, dtype)
    assert torch.equal(ask(policy), reference)  # B starts at zero, DoRA's lengths at those of the base
    shake(policy)
    tuned = ask(policy)
    assert (tuned - reference).abs().max() > 1e-2
    with policy.using("base"):
        assert torch.equal(ask(policy), reference)
    with pytest.raises(KeyError), policy.using("base"):
        raise KeyError
    assert torch.equal(ask(policy), tuned)
    with policy.using("base"):
        assert torch.equal(ask(policy), reference)


@pytest.mark.parametrize("lora", [LoRA(), DORA, None])
def test_every_set_is_found_again_also_when_nested(model, lora):
    policy = load(model, lora=lora, sets=SETS)
    base = ask(policy).detach()
    shake(policy)
    policy.blend("old", keep=0.0)
    old = ask(policy).detach()
    shake(policy)
    current = ask(policy).detach()
    with policy.using("base"):
        assert torch.equal(ask(policy), base)
        with policy.using("old"):
            assert torch.equal(ask(policy), old)
            with pytest.raises(RuntimeError), policy.using("base"):
                raise RuntimeError
            assert torch.equal(ask(policy), old)
        assert torch.equal(ask(policy), base)
    with policy.using("old"), policy.using("base"):
        assert torch.equal(ask(policy), base)
    with policy.using("ema"):  # as it was when loaded
        assert torch.equal(ask(policy), base)
    assert torch.equal(ask(policy), current)


@pytest.mark.parametrize("lora", [LoRA(), None])
def test_no_gradient_inside_and_all_of_it_afterwards(model, lora):
    policy = load(model, lora=lora, sets=SETS)
    before = policy.parameters()
    for name in SETS:
        with policy.using(name):
            assert not ask(policy).requires_grad
    after = policy.parameters()
    assert all(a is b and b.requires_grad for a, b in zip(before, after, strict=True))
    assert ask(policy).requires_grad


@pytest.mark.parametrize(
    ("precision", "lora"),
    [
        ("no", LoRA(rank=2, init="kaiming")),
        ("bf16", LoRA()),
        ("fp16", LoRA(targets=("to_q", "ff.net.2", "conv1"))),
        ("bf16", DORA),
        ("bf16", None),
    ],
)
def test_every_trainable_tensor_learns(model, precision, lora):
    """Also after a rollout without a graph, which must leave no low-precision copies behind."""
    policy = load(model, lora=lora, mixed_precision=precision, gradient_checkpointing=lora is None)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    for _ in range(2):  # a LoRA's A has no gradient as long as its B is zero
        optimizer.zero_grad()
        with torch.no_grad():
            x = ask(policy)
        (ask(policy, x).square().mean() * 1024).backward()  # as a GradScaler does: fp16 gradients vanish without
        optimizer.step()
    named = policy.named_parameters()
    assert {p.dtype for p in named.values()} == {torch.float32}
    still = [name for name, p in named.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert still == []
    trained = set(map(id, policy.parameters()))
    others = [n for n, p in policy.pipeline().unet.named_parameters() if id(p) not in trained and p.grad is not None]
    assert others == []


def test_an_outer_autocast_leaves_no_stale_copies(model):
    policy = load(model, lora=LoRA(), mixed_precision="bf16", sets=("base", "old"))
    shake(policy)
    current = ask(policy).detach()
    with torch.autocast("cpu", torch.bfloat16):
        with policy.using("old"):
            old = ask(policy)
        again = ask(policy)
        again.sum().backward()
    assert torch.equal(again.detach(), current) and not torch.equal(old, current)
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_gradient_checkpointing_changes_no_gradient(model):
    gradients = []
    for switch in (False, True):
        policy = load(model, lora=LoRA(), gradient_checkpointing=switch)
        shake(policy)
        policy.decode(ask(policy)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-9) and gradients[0].any()


def test_full_tuning_trains_the_whole_network_in_fp32(model):
    policy = load(model, lora=None, mixed_precision="bf16")
    network = policy.pipeline().unet
    assert list(policy.named_parameters()) == [name for name, _ in network.named_parameters()]
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(module.training for module in network.modules())


def test_a_half_precision_network_is_made_fp32_where_it_is_trained():
    layers = {"to_q": nn.Linear(4, 4), "to_out": nn.Linear(4, 4)}
    whole = nn.ModuleDict(layers).bfloat16()
    assert {p.dtype for p in Weights(whole, sets=("old",)).state().values()} == {torch.float32}
    whole.bfloat16()
    adapted = Weights(whole, LoRA(targets=("to_q",)))
    assert {p.dtype for p in adapted.parameters()} == {torch.float32}
    assert {p.dtype for p in whole.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_adapter_is_the_one_asked_for(model):
    policy = load(model, lora=LoRA(rank=3, alpha=6.0, targets=("to_q", "proj_in")))
    named = policy.named_parameters()
    assert all(name.split(".lora_")[0].endswith(("to_q", "proj_in")) for name in named)
    assert all(p.shape[0] == 3 for name, p in named.items() if ".lora_A." in name)
    assert not any(p.any() for name, p in named.items() if ".lora_B." in name)
    network = policy.pipeline().unet
    assert not any(module.training for module in network.modules())
    assert {m.scaling["learner"] for m in network.modules() if hasattr(m, "lora_A")} == {2.0}
    assert not any(m.cast_input_dtype_enabled for m in network.modules() if hasattr(m, "cast_input_dtype_enabled"))


def layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.ModuleDict({"conv": nn.Conv2d(3, 5, 3), "linear": nn.Linear(6, 7)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [True, False])
def test_the_options_are_their_formulas(dtype, dora):
    """alpha / sqrt(rank) B A; and m V / |V| of V = W + that, a length for each output."""
    base, adapted = layers().to(dtype).float(), layers().to(dtype)
    weights = Weights(adapted, LoRA(rank=2, alpha=3.0, rslora=True, dora=dora, targets=("conv", "linear")))
    shake(weights)
    named = weights.named_parameters()
    random = torch.Generator().manual_seed(1)
    inputs = {"conv": torch.randn(2, 3, 4, 4, generator=random), "linear": torch.randn(2, 6, generator=random)}
    for name, x in inputs.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            found = adapted[name](x).float()
        a, b = (named[f"{name}.lora_{part}.weight"].flatten(1) for part in "AB")
        with torch.no_grad():
            w = base[name].weight
            v = w.flatten(1) + 3.0 / 2**0.5 * b @ a
            if dora:
                v = named[f"{name}.lora_magnitude_vector.weight"].view(-1, 1) * v / v.norm(dim=1, keepdim=True)
            w.copy_(v.view_as(w))
        assert torch.allclose(found, base[name](x), atol=1e-5 if dtype == torch.float32 else 0.1)
        assert ("conv.lora_magnitude_vector.weight" in named) == dora


def test_dora_is_counted_by_the_memory_estimate(model):
    counted = network(Path(model, "unet", "config.json").read_text(), DORA, "no")
    policy = load(model, lora=DORA)
    trained = sum(p.numel() for p in counted.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in policy.parameters())
    rows = [p.numel() for name, p in policy.named_parameters().items() if "magnitude" in name]
    assert len(rows) == len(policy.parameters()) / 3 and min(rows) >= 8


def test_the_adapter_starts_the_same_in_every_process_and_precision(model):
    def start(**settings):
        torch.manual_seed(torch.seed() % 1000)  # whatever the global stream is
        policy = load(model, lora=LoRA(), **settings)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    state = torch.get_rng_state()
    first = start()
    assert torch.equal(first, start(mixed_precision="bf16"))
    assert not torch.equal(first, start(seed=1))
    torch.set_rng_state(state)
    load(model, lora=LoRA())
    assert torch.equal(torch.get_rng_state(), state)
    gaussian = torch.cat([p.flatten() for n, p in load(model, lora=LoRA()).named_parameters().items() if "_A." in n])
    assert gaussian.std().item() == pytest.approx(1 / 4, rel=0.05)


@pytest.mark.parametrize("lora", [LoRA(), DORA])
def test_state_goes_round(model, lora):
    policy = load(model, lora=lora, sets=("base", "old"))
    shake(policy)
    kept = {name: tensor.clone() for name, tensor in policy.state().items()}
    assert {name.split("/")[0] for name in kept} == {"current", "old"}
    again = load(model, lora=lora, sets=("base", "old"))
    holders = again.parameters()
    again.load_state(kept)
    assert all(a is b for a, b in zip(holders, again.parameters(), strict=True))
    assert torch.equal(ask(again), ask(policy))
    with again.using("old"), policy.using("old"):
        assert torch.equal(ask(again), ask(policy))


@pytest.mark.parametrize("wrong", [{"lora": LoRA(rank=8)}, {"lora": None}, {"lora": LoRA(), "sets": ("base", "ema")}])
def test_a_state_of_another_shape_is_refused(model, wrong):
    state = load(model, lora=LoRA(), sets=("base", "old")).state()
    policy = load(model, **wrong)
    before = ask(policy)
    with pytest.raises(ValueError, match="do not fit this model and LoRA"):
        policy.load_state(state)
    assert torch.equal(ask(policy), before)


def test_blend_moves_a_set_toward_the_current_weights(model):
    policy = load(model, lora=LoRA(), sets=("base", "ema"))
    start = [p.detach().clone() for p in policy.parameters()]
    shake(policy)
    policy.blend("ema", keep=0.9)
    state = policy.state()
    for name, begun, now in zip(policy.named_parameters(), start, policy.parameters(), strict=True):
        assert torch.allclose(state[f"ema/{name}"], 0.9 * begun + 0.1 * now)
    policy.blend("ema", keep=0.0)
    assert all(torch.equal(policy.state()[f"ema/{n}"], p) for n, p in policy.named_parameters().items())
    with pytest.raises(ValueError, match="keep is 1.5"):
        policy.blend("ema", keep=1.5)
    for name in ("old", "base"):
        with pytest.raises(ValueError, match=f"{name}.*loaded with base, ema"):
            policy.blend(name, keep=0.5)
    with pytest.raises(ValueError, match=r"'old' are not kept.*base, ema"), policy.using("old"):
        pass


def test_exchanging_seven_hundred_tensors_takes_under_a_millisecond():
    network = nn.ModuleList(nn.Linear(2, 2) for _ in range(350))
    weights = Weights(network, sets=("old",))

    def seconds():
        start = time.perf_counter()
        with weights.using("old"):
            pass
        return time.perf_counter() - start

    assert min(seconds() for _ in range(200)) / 2 < 1e-3  # there and back; whatever else the machine does


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"targets": ()}, r"lora.targets is \(\)"),
        ({"targets": "to_q"}, "lora.targets is 'to_q'"),
        ({"init": "zeros"}, "lora.init is 'zeros'.*gaussian, kaiming"),
    ],
)
def test_settings_of_lora_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**settings)


def test_a_target_that_matches_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"lora.targets: .* ends with `to_queue`"):
        load(model, lora=LoRA(targets=("to_q", "to_queue")))
    with pytest.raises(ValueError, match=r"Did you mean `to_out.0`"):
        load(model, lora=LoRA(targets=("to_out",)))
