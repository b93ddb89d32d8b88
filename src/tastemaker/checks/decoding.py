"""The VAE: pictures in [0, 1], in half precision as in fp32; and a picture that is encoded and decoded again."""

from __future__ import annotations

import torch

from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict, graded
from tastemaker.policy import controls

LEVELS = (8.0, 32.0)  # of 255 that the worst pixel may be off in half precision: seldom seen; seen
LOUD = 20.0  # dB; a trained VAE gives pictures of its model back with 25 and more, an untrained one with 10


def decoding(case: Case) -> Finding:
    """Against diffusers' own decoder and image processor in fp32."""
    images, wanted = case.pictures, controls.decoded(case.policy, case.latents)
    dtype = str(controls.vae_dtype(case.policy)).removeprefix("torch.")
    bound = f"{LEVELS[0]:g} levels, in [0, 1]"
    if not images.isfinite().all():
        share = float((~images.isfinite()).float().mean())
        ways = "use --mixed_precision bf16, or set force_upcast to true in the model's vae/config.json"
        if not case.latents.isfinite().all():
            ways = f"the network, in {case.precision}, draws NaN already: use --mixed_precision bf16 or no"
        return Finding(
            Verdict.WRONG,
            f"{share:.0%} not finite",
            bound,
            f"pictures are not finite, with the VAE in {dtype}: {ways}.",
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        return Finding(
            Verdict.WRONG,
            f"from {low:.3g} to {high:.3g}",
            bound,
            "pictures leave [0, 1], and rewards would be shown what no picture file can hold: `decode` is at fault.",
        )
    levels = 255 * float((images - wanted).abs().max())
    verdict = graded(levels, good=LEVELS[0], bearable=LEVELS[1])
    advice = f"decoded in {dtype}, pictures are {levels:.0f} of 255 levels off those of diffusers in fp32. " + (
        "Rewards see that; --mixed_precision fp16 or no keeps more digits." if dtype != "float32" else ""
    )
    return Finding(verdict, f"{levels:.2g} levels, {dtype}", bound, "" if verdict is Verdict.OK else advice)


def encoding(case: Case) -> Finding:
    """How much of a picture is left once it was encoded and decoded: what preference pairs are learned from."""
    with torch.no_grad():
        again = case.policy.decode(case.policy.encode_images(case.pictures))
    error = float((again - case.pictures).square().mean())
    decibels = float(-10 * torch.log10(torch.tensor(error)))
    measured, bound = f"{decibels:.1f} dB", f"{LOUD:g} dB or more"
    if error != error:
        return Finding(Verdict.WRONG, "not finite", bound, "an encoded picture comes back as NaN: see decoding.")
    if decibels >= LOUD:
        return Finding(Verdict.OK, measured, bound)
    return Finding(
        Verdict.WARNING,
        measured,
        bound,
        "a picture of the model that is encoded and decoded is another one: the VAE is not trained, not this model's, "
        "or its scaling_factor is wrong; or these pictures, of a chain of few steps, are noise.",
    )
