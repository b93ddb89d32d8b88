"""The estimate against what is known of a large model, and against what a small one really keeps."""

import json
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from full_size import MODELS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny
import tiny_xl
from tastemaker import memory
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.budget import _largest, fit
from tastemaker.memory import Setup, estimate
from tastemaker.metering import Cost, decoding, denoising, measure, network, text_weights
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.text_metering import Readers, readers, trained
from toy_runs import iteration_of, plan_of

GIB = 2**30
LARGE = MODELS["sd1.5"].parts
UNET, VAE = LARGE["unet"], LARGE["vae"]
NARROW = LARGE | {"unet": UNET | {"block_out_channels": [32] * 4, "attention_head_dim": 4}}  # decoding takes the most


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


def test_the_weights_of_a_large_model_in_half_precision() -> None:
    found = estimate(Setup(LARGE | {"vae": VAE | {"force_upcast": False}}, LoRA(), mixed_precision="fp16"))
    assert found.of("network") / 2 == pytest.approx(860e6, rel=0.001)
    assert found.of("network") / GIB == pytest.approx(1.60, abs=0.005)
    weights = sum(found.of(what) for what in ("network", "decoder", "text encoder"))
    assert weights / GIB == pytest.approx(2.0, abs=0.03)
    upcast = estimate(Setup(LARGE, LoRA(), mixed_precision="fp16"))  # as its config says, or does not say
    assert upcast.of("decoder") == 2 * found.of("decoder")


def guided_row(kernel: str) -> Cost:
    """A plain bf16 network without autocast, one guided row of 512 x 512 pictures, LoRA of rank 4."""
    unet = network.__wrapped__(json.dumps(UNET), LoRA(rank=4), "bf16").to(torch.bfloat16)
    with torch.device("meta"):
        x, t, text = (torch.empty(2, *shape, dtype=torch.bfloat16) for shape in ((4, 64, 64), (), (77, 768)))
    return measure(unet, lambda: unet(x, t, text, return_dict=False)[0], kernel=kernel)


def test_activations_are_counted_for_the_kernel_of_the_device() -> None:
    assert guided_row("math").saved / GIB == pytest.approx(7.1, rel=0.15)
    assert guided_row("efficient").saved / GIB == pytest.approx(1.5, rel=0.15)


def test_a_large_model_learns_under_10_gb_and_with_checkpointing_keeps_under_a_gib() -> None:
    plain = estimate(Setup(LARGE, LoRA(), mixed_precision="fp16"))
    checkpointed = estimate(Setup(LARGE, LoRA(), mixed_precision="fp16", gradient_checkpointing=True))
    assert checkpointed.needed < plain.needed < 10e9
    assert checkpointed.of("saved activations") < checkpointed.during("learning") < GIB
    assert plain.of("saved activations") > 3 * checkpointed.of("saved activations")
    line = next(line for line in plain.lines if line.what == "saved activations")
    assert f"{memory.size(checkpointed.of('saved activations'))} with gradient checkpointing" in line.how


def test_full_tuning_keeps_fp32_weights_moments_and_autocasts_copies() -> None:
    setup = Setup(LARGE, None, mixed_precision="bf16", sets=("base", "old"))
    found = estimate(setup)
    count = 859_520_964
    assert found.of("network") == 0 and found.of("trained weights") == found.of("gradients") == 4 * count
    assert found.of("optimizer") == found.of("weight sets") == 8 * count  # with LoRA "base" costs nothing
    assert found.of("autocast's copies") / GIB == pytest.approx(1.6, abs=0.1)  # bf16, one of nearly every weight
    assert estimate(replace(setup, use_8bit_adam=True)).of("optimizer") / count == pytest.approx(2 + 8 / 256, rel=0.01)


def really_saved(unet: nn.Module, call: Any) -> int:
    """Bytes that a real forward on the CPU keeps beside the weights."""
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _ = call()  # alive, so that no address is used twice
        return sum(kept.values())


@pytest.mark.parametrize("lora", [LoRA(rank=2), LoRA(rank=2, dropout=0.5), LoRA(rank=2, dora=True, dropout=0.5), None])
def test_a_small_model_really_keeps_what_was_estimated(small: Path, lora: LoRA | None) -> None:
    policy = load(str(small), lora=lora)
    pipeline: Any = policy.pipeline()
    guess = estimate(Setup(small, lora, micro_batch=3), cuda=False)
    frozen = sum(p.nbytes for p in pipeline.unet.parameters() if not p.requires_grad)
    assert (guess.of("network"), guess.of("trained weights")) == (frozen, sum(p.nbytes for p in policy.parameters()))
    assert guess.of("decoder") == sum(p.nbytes for p in pipeline.vae.parameters())
    assert guess.of("text encoder") == sum(p.nbytes for p in pipeline.text_encoder.parameters())
    x = torch.randn(6, *policy.latent_shape)
    text = torch.randn(6, tiny.TOKENS, tiny.WIDTH)
    with policy.dropping(0):
        real = really_saved(pipeline.unet, lambda: pipeline.unet(x, torch.zeros(6), text, return_dict=False)[0])
    assert guess.of("saved activations") == pytest.approx(real, rel=0.02)


def test_pairs_really_keep_two_graphs_and_no_decoder(small: Path) -> None:
    policy = load(str(small), lora=LoRA(rank=2))
    algorithm = DiffusionDPO(images=6, updates=1, steps=2, guidance=2.0)
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=3))
    update = next(iter(algorithm.iteration(it)))
    assert len(update.batch) == 3
    pipeline: Any = policy.pipeline()
    real = really_saved(pipeline.unet, lambda: update.loss(update.batch).value)
    one = estimate(Setup(small, LoRA(rank=2), micro_batch=3))
    guess = estimate(Setup(small, LoRA(rank=2), micro_batch=3, depth=2))
    assert guess.of("saved activations") == pytest.approx(real, rel=0.05)
    assert guess.of("saved activations") == 2 * one.of("saved activations")
    assert guess.of("working memory") == one.of("working memory")


def test_activations_grow_with_the_rows_and_with_the_picture(small: Path) -> None:
    def saved(**changes: Any) -> int:
        return estimate(Setup(small, LoRA(rank=2), **changes)).of("saved activations")

    one = saved(guided=False)
    assert saved(guided=True) == pytest.approx(2 * one, rel=0.01)
    assert saved(guided=True, learning_guided=False) == one
    assert saved(guided=False, micro_batch=8) == pytest.approx(8 * one, rel=0.01)
    side = tiny.SIDE * 2
    assert saved(guided=False, height=2 * side, width=2 * side) == pytest.approx(4 * one, rel=0.05)


def test_the_fused_kernel_saves_its_inputs_its_output_and_a_number_a_row() -> None:
    queries = [nn.Parameter(torch.empty(2, 4, 128, 32, dtype=torch.bfloat16, device="meta")) for _ in range(3)]
    module = nn.ParameterList(queries)

    def call() -> torch.Tensor:
        return F.scaled_dot_product_attention(*(q * 1 for q in queries))

    rows = 2 * 4 * 128
    assert measure(module, call).saved == pytest.approx(4 * rows * 32 * 2 + rows * 4, abs=64)  # and two seeds
    assert measure(module, call, kernel="math").saved > 4 * rows * 32 * 2 + rows * 128 * 2
    assert measure(module, call, grad=False).saved == 0


def test_measuring_leaves_torch_and_the_network_as_they_were() -> None:
    before = {name: getattr(F, name) for name in ("linear", "conv2d", "group_norm", "scaled_dot_product_attention")}
    layer = nn.Linear(4, 4, device="meta")
    measure(layer, lambda: layer(torch.empty(2, 4, device="meta")), half=torch.bfloat16)
    with pytest.raises(RuntimeError, match="reduction dim"):
        measure(layer, lambda: layer(torch.empty(2, 5, device="meta")))
    assert all(getattr(F, name) is function for name, function in before.items())
    assert layer.weight.grad is None


def test_the_peak_is_that_of_the_largest_phase(small: Path) -> None:
    learning = estimate(Setup(small, LoRA(rank=2), micro_batch=8, sampling_batch=1), cuda=False)
    assert learning.peak == learning.during("always") + learning.during("learning")
    decoding = estimate(Setup(NARROW, LoRA(), mixed_precision="fp16", sampling_batch=8), cuda=False)
    assert decoding.peak == decoding.during("always") + decoding.during("decoding")
    assert estimate(Setup(small, LoRA(rank=2))).needed - estimate(Setup(small, LoRA(rank=2)), cuda=False).needed > 5e8
    assert [row[0] for row in learning.table()][-1] == "memory"


def test_the_vaes_call_is_as_large_as_the_policys() -> None:
    from tastemaker.policy import latent

    assert memory.DECODE_PIXELS == latent.CALL_PIXELS


@pytest.fixture
def budget(small: Path) -> Any:
    """needed(micro_batch, ...) of the small model with one picture a sampling call."""

    def needed(micro_batch: int, **changes: Any) -> int:
        setup = Setup(small, LoRA(rank=2), micro_batch=micro_batch, sampling_batch=1)
        return estimate(replace(setup, **changes), cuda=False).needed

    return needed


def test_fit_takes_the_largest_micro_batch_without_checkpointing(small: Path, budget: Any) -> None:
    setup = Setup(small, LoRA(rank=2), sampling_batch=1)
    found = fit(budget(7) + 5, setup, most=100, cuda=False)
    assert (found.setup.micro_batch, found.setup.gradient_checkpointing, found.setup.vae_slicing) == (7, False, False)
    assert found.memory.needed == budget(7)
    assert found.words.endswith(
        f"up to 7 items a call, gradient checkpointing off, VAE slicing off; about {memory.size(budget(7))} are needed"
    )
    assert "up to 5 items a call" in fit(budget(7), setup, most=5, cuda=False).words


def test_fit_turns_to_checkpointing_when_nothing_else_fits(small: Path, budget: Any) -> None:
    room = budget(1) - 1
    assert budget(1, gradient_checkpointing=True) <= room
    found = fit(room, Setup(small, LoRA(rank=2), sampling_batch=1), most=100, cuda=False)
    assert found.setup.gradient_checkpointing and found.memory.needed <= room
    assert budget(found.setup.micro_batch + 1, gradient_checkpointing=True) > room


def test_fit_slices_the_vae_only_where_that_makes_the_room() -> None:
    setup = Setup(NARROW, LoRA(), mixed_precision="fp16", sampling_batch=8)
    whole, sliced = (estimate(replace(setup, vae_slicing=on), cuda=False).needed for on in (False, True))
    assert sliced < whole
    assert not fit(whole, setup, most=1, cuda=False).setup.vae_slicing
    assert fit(whole - 1, setup, most=1, cuda=False).setup.vae_slicing


def test_tiles_bound_what_decoding_takes(small: Path) -> None:
    wide = Setup(small, LoRA(rank=2), height=32, width=32)
    assert memory.tiles(wide) and not memory.tiles(Setup(small, LoRA(rank=2)))
    whole, tiled = (estimate(replace(wide, vae_tiling=on)).of("a decoding call") for on in (False, True))
    assert tiled < whole / 2
    # Where the gradient passes through them they overlap, and all of their activations are kept.
    vae = (small / "vae" / "config.json").read_text()
    kept = [decoding(vae, "no", (1, 4, 16, 16), "efficient", False, True, on).saved for on in (False, True)]
    assert kept[1] > 1.5 * kept[0]


@pytest.mark.slow
def test_fit_turns_to_tiles_when_nothing_else_fits() -> None:
    setup = Setup(NARROW, LoRA(), sampling_batch=1, width=768)
    sliced, tiled = (
        estimate(replace(setup, vae_slicing=True, vae_tiling=on), cuda=False).needed for on in (False, True)
    )
    assert tiled < sliced
    assert not fit(sliced, setup, most=1, cuda=False).setup.vae_tiling
    found = fit(sliced - 1, setup, most=1, cuda=False)
    assert found.setup.vae_tiling and "VAE tiling on; about" in found.words
    with pytest.raises(ValueError, match="is not enough"):
        fit(sliced - 1, setup, most=1, fixed=("vae_tiling",), cuda=False)


def test_a_decoder_that_visits_is_there_for_decoding(small: Path) -> None:
    here, away = (estimate(Setup(small, LoRA(rank=2), cpu_offload=on)) for on in (False, True))
    assert here.during("always") - away.during("always") == here.of("decoder") == away.of("decoder") > 0
    assert away.during("decoding") == here.during("decoding") + here.of("decoder")


@pytest.mark.slow
def test_bits_of_the_frozen_network() -> None:
    """Linear layers are packed, with their scales; convolutions and what is trained are not."""
    setup = Setup(LARGE, LoRA(rank=4), mixed_precision="bf16")
    whole, eight, four = (estimate(replace(setup, quantise=bits)) for bits in (None, "8bit", "4bit"))
    layers = [one for one in network(json.dumps(UNET), LoRA(rank=4), "bf16").modules() if type(one) is nn.Linear]
    packed = [one.weight for one in layers if not one.weight.requires_grad]
    count, rows = sum(one.numel() for one in packed), sum(len(one) for one in packed)
    assert whole.of("network") - eight.of("network") == count - 4 * rows
    assert whole.of("network") - four.of("network") == pytest.approx(count * (2 - 0.5 - 4 / 64), rel=1e-4)
    assert eight.of("trained weights") == four.of("trained weights") == whole.of("trained weights")


def test_fit_leaves_what_the_user_chose(small: Path, budget: Any) -> None:
    setup = Setup(small, LoRA(rank=2), micro_batch=3, sampling_batch=1, gradient_checkpointing=True)
    found = fit(budget(50), setup, most=100, fixed={"micro_batch", "gradient_checkpointing"}, cuda=False)
    assert (found.setup.micro_batch, found.setup.gradient_checkpointing) == (3, True)
    with pytest.raises(ValueError, match="is not enough"):
        fixed = {"micro_batch", "gradient_checkpointing"}
        fit(budget(3) - 1, replace(setup, gradient_checkpointing=False), most=100, fixed=fixed, cuda=False)


def test_too_little_memory_says_how_much_is_needed(small: Path, budget: Any) -> None:
    least = memory.size(budget(1, gradient_checkpointing=True, vae_slicing=True))
    with pytest.raises(ValueError, match=rf"--fit 0\.0 MiB is not enough: at least {least} are needed"):
        fit(1000, Setup(small, LoRA(rank=2), sampling_batch=1), most=9, cuda=False)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 400), st.integers(0, 5))
def test_the_search_finds_what_trying_all_would(steps: list[int], budget: int, start: int) -> None:
    sums = [start + sum(steps[:k]) for k in range(len(steps) + 1)]
    fitting = [count for count in range(1, len(sums)) if sums[count] <= budget]
    assert _largest(lambda count: sums[count], budget, 1, len(sums) - 1) == (fitting[-1] if fitting else 0)


def test_configs_that_are_missing_or_of_another_kind(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--model {tmp_path}: .* has no unet/config.json"):
        estimate(Setup(tmp_path, None))
    with pytest.raises(ValueError, match="what a PaintTransformer needs of memory is not known"):
        estimate(Setup({"unet": UNET | {"_class_name": "PaintTransformer"}, "vae": VAE}, None))


def test_of_a_hub_id_only_the_configs_are_fetched(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def fetch(*args: object, **kwargs: object) -> str:
        asked.append((args, kwargs))
        return str(small)

    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: None)  # the hub answers
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    by_id = estimate(Setup("someone/some-model-of-theirs", LoRA(rank=2), revision="v1"))
    assert by_id == estimate(Setup(small, LoRA(rank=2)))
    ((args, settings),) = asked
    assert args == ("someone/some-model-of-theirs",) and settings["revision"] == "v1"
    assert settings["allow_patterns"] == ["*/config.json"] and settings["local_files_only"] is False

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="--model someone/other: its config files are neither here nor"):
        estimate(Setup("someone/other", None))


GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "one_gpu.md").read_text(encoding="utf-8")
HALF = Setup(LARGE, LoRA(), mixed_precision="bf16")
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("row", "setup"),
    [
        ("LoRA, bf16 or fp16, `--gradient_checkpointing`", replace(HALF, **CHECKPOINTED)),
        pytest.param("whole network, bf16", replace(HALF, lora=None), marks=pytest.mark.slow),
    ],
)
def test_the_guides_table_is_the_estimate(row: str, setup: Setup) -> None:
    line = next(line for line in GUIDE.splitlines() if line.startswith(f"| {row} |"))
    assert float(line.split("|")[2]) == round(estimate(setup, cuda=True).needed / 1e9, 1)


class Held:
    """A tensor that waits for backward."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def really_left(networks: list[nn.Module], call: Any) -> int:
    """As `really_saved`, without what is let go before the call is over."""
    own = {p.untyped_storage().data_ptr() for one in networks for p in one.parameters()}
    held: list[weakref.ref[Held]] = []

    def pack(tensor: torch.Tensor) -> Held:
        kept = Held(tensor.detach())  # which leads back to no graph that it would keep
        held.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        _ = call()
        left = [kept.tensor.untyped_storage() for kept in (one() for one in held) if kept is not None]
    return sum({one.data_ptr(): one.nbytes() for one in left if one.data_ptr() not in own}.values())


def test_encoders_that_are_trained_stay_and_keep_what_was_estimated(small: Path) -> None:
    lora = LoRA(rank=2, text_encoders=True)
    policy: Any = load(str(small), lora=lora)
    setup = Setup(small, lora, micro_batch=3, sampling_batch=1)
    guess, encoder = estimate(setup, cuda=False), policy._pipeline.text_encoder
    frozen = sum(p.nbytes for p in encoder.parameters() if not p.requires_grad)
    assert (guess.of("encoders trained"), guess.of("text encoder")) == (frozen, 0)
    assert guess.of("trained weights") == sum(p.nbytes for p in policy.parameters())
    real = really_left([encoder], partial(policy._read, ["a", "b", "c", "d"]))
    assert guess.of("texts' activations") == pytest.approx(real, rel=0.03)
    checked = estimate(replace(setup, gradient_checkpointing=True), cuda=False)
    assert checked.of("texts' activations") == 0
    room = estimate(replace(setup, micro_batch=4), cuda=False).needed
    assert fit(room, replace(setup, micro_batch=1), most=9, cuda=False).setup.micro_batch == 4


def test_of_two_encoders_the_first_is_read_before_its_last_layer(tmp_path: Path) -> None:
    """And the UNet is given summaries with a gradient."""
    lora, folder = LoRA(rank=2, text_encoders=True), tiny_xl.save(tmp_path)
    policy: Any = load(str(folder), lora=lora)
    model = {part: (folder / part / "config.json").read_text() for part in ("unet", "text_encoder", "text_encoder_2")}
    real = really_left([one.network for one in policy._trained], partial(policy._read, ["a", "b"]))
    found = readers(model, lora, "no", "efficient")
    assert 2 * found.saved == pytest.approx(real, rel=0.06)  # a GPU's kernel pads 16 tokens to 32
    assert sum(found.trained) == sum(p.numel() for n, p in policy.named_parameters().items() if n.startswith("text"))
    table = policy._table(policy.encode(["a", "b"]), False)
    texts = [table.positive_rows(name).detach().requires_grad_() for name in policy.reads]
    x = torch.randn(2, *policy.latent_shape)
    real = really_saved(policy._denoiser, partial(policy._call, x, torch.zeros(2), *texts))
    guess = denoising(model["unet"], lora, "no", tuple(x.shape), tiny.TOKENS, False, True, "efficient").saved
    assert guess == pytest.approx(real, rel=0.06)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sd1.5", {"text_encoder": 0}),
        ("sdxl", {"text_encoder": 1, "text_encoder_2": 0}),
        ("sd3.5-medium", {"text_encoder": 0, "text_encoder_2": 0}),
        ("flux-dev", {"text_encoder": 0}),
    ],
)
def test_of_large_models_the_clips_are_trained_and_t5_visits(name: str, wanted: dict[str, int]) -> None:
    parts = {part: json.dumps(config) for part, config in MODELS[name].parts.items()}
    assert trained(parts) == wanted


def test_a_large_text_keeps_tens_of_megabytes() -> None:
    parts = {part: json.dumps(config) for part, config in LARGE.items()}
    found = readers(parts, LoRA(text_encoders=True), "bf16", "efficient")
    assert found.frozen == 2 * text_weights(parts["text_encoder"]) == 2 * 123_060_480
    assert sum(found.trained) == 12 * 4 * 2 * 4 * 768 and 20e6 < found.saved < found.peak < 45e6
    assert readers(parts, LoRA(), "bf16", "efficient") == Readers()
    bert = parts | {"text_encoder": json.dumps({"architectures": ["BertModel"]})}  # refused when it is loaded
    assert readers(bert, LoRA(text_encoders=True), "bf16", "efficient") == Readers()
