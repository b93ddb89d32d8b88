import pytest
import torch
from diffusers import AutoencoderKL

import tiny
from tastemaker.policy import latent
from tastemaker.policy.load import load, quiet


def reference(folder):
    with quiet():
        return AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()


def latents(policy, rows=5):
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[{}, {"shift_factor": 0.1, "scaling_factor": 0.5}, {"shift_factor": 0.0}])
def shifted(request, tmp_path):
    return load(str(tiny.save(tmp_path, vae=request.param)), lora=None), reference(tmp_path), request.param


def test_pictures_are_those_of_the_vae(shifted):
    policy, vae, config = shifted
    x0 = latents(policy)
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor", 0.0)
    with torch.no_grad():
        pictures = policy.decode(x0)
        expected = vae.decode(x0 / scale + shift).sample / 2 + 0.5
    assert pictures.dtype == torch.float32 and pictures.shape == (5, 3, 16, 16)
    assert torch.allclose(pictures, expected.clamp(0, 1), atol=1e-6)


def test_latents_of_pictures_are_those_of_the_vae(shifted):
    policy, vae, config = shifted
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor", 0.0)
    with torch.no_grad():
        expected = (vae.encode(images * 2 - 1).latent_dist.mean - shift) * scale
    found = policy.encode_images(images)
    assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad


def test_parts_and_a_second_computation_change_nothing(model, monkeypatch):
    policy, vae = load(model, lora=None), reference(model)
    x0 = latents(policy).requires_grad_()
    calls = []
    monkeypatch.setattr(policy, "_decode", lambda part, decode=policy._decode: calls.append(len(part)) or decode(part))
    pictures = policy.decode(x0)
    pictures.square().sum().backward()
    assert calls == [5]  # so few pixels keep their graph
    whole = x0.grad.clone()
    monkeypatch.setattr(latent, "GRAPH_PIXELS", 2 * 16 * 16)
    monkeypatch.setattr(latent, "KEPT_PIXELS", 5 * 16 * 16 - 1)
    calls.clear()
    x0.grad = None
    parts = policy.decode(x0)
    assert calls == [2, 2, 1]
    parts.square().sum().backward()
    assert calls == [2, 2, 1, 1, 2, 2]  # every part once more, backwards
    assert torch.allclose(parts, pictures, atol=1e-6) and torch.allclose(x0.grad, whole, rtol=1e-4, atol=1e-7)
    again = latents(policy).requires_grad_()
    ((vae.decode(again / 0.18215).sample / 2 + 0.5).clamp(0, 1)).square().sum().backward()
    assert torch.allclose(whole, again.grad, rtol=1e-4, atol=1e-7) and whole.any()


def test_without_a_graph_there_is_no_second_computation(model, monkeypatch):
    policy = load(model, lora=None)
    monkeypatch.setattr(latent, "CALL_PIXELS", 1)
    rows = []
    monkeypatch.setattr(policy, "_decode", lambda part, decode=policy._decode: rows.append(len(part)) or decode(part))
    assert not policy.decode(latents(policy)).requires_grad
    with torch.no_grad():
        policy.decode(latents(policy, 2).requires_grad_())
    assert rows == [1] * 7


def test_a_vae_that_overflows_in_half_precision_stays_fp32(tmp_path):
    for upcast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        folder = tiny.save(tmp_path / str(upcast), vae={"force_upcast": upcast})
        policy = load(str(folder), lora=None, mixed_precision="bf16")
        assert policy.pipeline().vae.dtype == dtype
        assert policy.decode(latents(policy)).dtype == torch.float32
        assert policy.encode_images(torch.rand(2, 3, 16, 16)).dtype == torch.float32
        assert load(str(folder), lora=None).pipeline().vae.dtype == torch.float32
