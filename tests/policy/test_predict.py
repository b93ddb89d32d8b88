import time

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

import tiny
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet

PROMPTS = ["a red cat", "two dogs", "a red cat", "sun"]


@pytest.fixture(scope="module")
def policy(model):
    return load(model, lora=LoRA())


def latents(policy, rows=4):
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(1))


def plain(folder, **settings):
    with quiet():
        return StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, **settings)


def test_the_factory_is_fast_and_writes_what_diffusers_loads(tmp_path):
    start = time.perf_counter()
    tiny.save(tmp_path)
    assert time.perf_counter() - start < 2
    assert {path.name for path in tmp_path.iterdir()} >= {"model_index.json", "unet", "vae", "tokenizer"}
    assert plain(tmp_path).unet.config.sample_size == tiny.SIDE


def test_an_int_step_is_the_same_as_a_tensor_of_steps(policy):
    schedule, conditioning, x = policy.schedule(5), policy.encode(PROMPTS), latents(policy)
    with torch.no_grad():
        one = policy.predict(x, 2, schedule, conditioning, 3.0)
        many = policy.predict(x, torch.full((4,), 2), schedule, conditioning, 3.0)
        mixed = policy.predict(x, torch.tensor([0, 2, 1, 4]), schedule, conditioning, 3.0)
    assert torch.equal(one.x0, many.x0) and torch.equal(one.eps, many.eps)
    assert torch.allclose(mixed.eps[1], one.eps[1], atol=1e-6)
    assert not torch.allclose(mixed.eps[0], one.eps[0], atol=1e-3)


def test_rows_of_a_batch_are_the_rows_alone(policy):
    schedule, conditioning, x = policy.schedule(5), policy.encode(PROMPTS), latents(policy)
    with torch.no_grad():
        together = policy.predict(x, 1, schedule, conditioning, 3.0)
        alone = [policy.predict(x[[b]], 1, schedule, conditioning.take([b]), 3.0).x0 for b in range(4)]
    assert (together.x0 - torch.cat(alone)).abs().max() < 1e-5


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(policy):
    schedule, x = policy.schedule(5), latents(policy)
    conditioning = policy.encode(PROMPTS, negative="fog")
    with torch.no_grad():
        toward = policy.predict(x, 1, schedule, policy.encode(PROMPTS), 1.0).eps
        away = policy.predict(x, 1, schedule, policy.encode(["fog"] * 4), 1.0).eps
        guided = policy.predict(x, 1, schedule, conditioning, 7.5).eps
        weights = torch.tensor([1.0, 2.0, 7.5, 0.0])
        unequal = policy.predict(x, 1, schedule, conditioning, weights).eps
    assert (toward - away).abs().max() > 1e-3
    assert torch.allclose(guided, away + 7.5 * (toward - away), atol=1e-5)
    expected = away + weights.clamp(min=1).view(-1, 1, 1, 1) * (toward - away)
    assert torch.allclose(unequal, expected, atol=1e-5)


def test_rows_are_counted_with_the_guidance_rows(policy):
    schedule, conditioning, x = policy.schedule(5), policy.encode(PROMPTS), latents(policy)
    before = (policy.rows.forward, policy.rows.backward)
    with torch.no_grad():
        policy.predict(x, 1, schedule, conditioning, 3.0)
        policy.predict(x, 1, schedule, conditioning, 1.0)
        policy.predict(x, 1, schedule, conditioning, 0.0)
    assert (policy.rows.forward - before[0], policy.rows.backward - before[1]) == (16, 0)
    policy.predict(x, 1, schedule, conditioning, 3.0)
    assert (policy.rows.forward - before[0], policy.rows.backward - before[1]) == (24, 8)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_change_of_variables_is_diffusers_own(tmp_path, kind):
    folder = tiny.save(tmp_path, prediction_type=kind)
    policy, pipe = load(str(folder), lora=None), plain(folder)
    schedule, x = policy.schedule(10), latents(policy)
    pipe.scheduler.set_timesteps(10)
    text = pipe.encode_prompt(PROMPTS, torch.device("cpu"), 1, False)[0]
    for i in (0, 4, 9):
        t = int(pipe.scheduler.timesteps[i])
        with torch.no_grad():
            ours = policy.predict(x, i, schedule, policy.encode(PROMPTS), 1.0)
            theirs = pipe.scheduler.step(pipe.unet(x, t, text).sample, t, x).pred_original_sample
        assert int(schedule.t[i]) == t
        assert (ours.x0 - theirs).abs().max() < 1e-4 * theirs.abs().max()
        alpha, sigma = schedule.at(i, x)
        assert torch.allclose(alpha * ours.x0 + sigma * ours.eps, x, atol=1e-4)


def test_latents_of_another_width(v_model):
    policy = load(v_model, lora=LoRA())
    assert policy.latent_shape == (6, tiny.SIDE, tiny.SIDE)
    x0 = policy.predict(latents(policy), 0, policy.schedule(2), policy.encode(PROMPTS), 2.0).x0
    assert policy.decode(x0).shape == (4, 3, 2 * tiny.SIDE, 2 * tiny.SIDE)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_grid_is_that_of_the_models_scheduler(tmp_path, spacing):
    config = {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": spacing == "trailing"}
    policy = load(str(tiny.save(tmp_path, scheduler=config)), lora=None)
    reference = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    reference.set_timesteps(20)
    schedule = policy.schedule(20)
    assert schedule.t.tolist() == reference.timesteps.tolist()
    squares = [*reference.alphas_cumprod[reference.timesteps].tolist(), float(reference.final_alpha_cumprod)]
    assert torch.allclose(schedule.alpha**2, torch.tensor(squares), atol=1e-6)
    assert policy.schedule(20) is schedule
    for steps in (1, 61, 500):
        assert len(policy.schedule(steps)) == steps


def test_a_scheduler_of_another_kind_becomes_ddim(tmp_path, model):
    folder = tiny.save(tmp_path)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    pipe = plain(folder)
    pipe.scheduler = PNDMScheduler(**config, skip_prk_steps=True, set_alpha_to_one=False)
    with quiet():
        pipe.save_pretrained(folder)
    ours, reference = load(str(folder), lora=None).schedule(10), load(model, lora=None).schedule(10)
    assert torch.equal(ours.t, reference.t) and torch.equal(ours.alpha, reference.alpha)


def test_zero_terminal_snr_needs_a_v_model(tmp_path):
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match=r"--model .*predicts eps.*zero terminal SNR"):
        load(str(tiny.save(tmp_path / "eps", scheduler=zero)), lora=None)
    policy = load(str(tiny.save(tmp_path / "v", prediction_type="v_prediction", scheduler=zero)), lora=None)
    schedule = policy.schedule(4)
    assert schedule.alpha[0] == 0
    assert policy.predict(latents(policy), 0, schedule, policy.encode(PROMPTS), 2.0).x0.isfinite().all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_chain_longer_than_the_training_grid_is_refused(policy, steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, .* 1 to 1000"):
        policy.schedule(steps)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_prediction_is_fp32_under_mixed_precision(model, precision):
    policy = load(model, lora=LoRA(), mixed_precision=precision)
    assert {p.dtype for n, p in policy.pipeline().unet.named_parameters() if ".lora_" not in n} == {
        {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    }
    prediction = policy.predict(latents(policy), 1, policy.schedule(4), policy.encode(PROMPTS), 3.0)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    plainly = load(model, lora=LoRA())
    exact = plainly.predict(latents(policy), 1, policy.schedule(4), plainly.encode(PROMPTS), 3.0)
    assert 0 < (prediction.eps - exact.eps).abs().max() < 0.1
