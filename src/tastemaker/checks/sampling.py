"""Our chain against the call of the model's own pipeline in diffusers: same noise, steps and guidance."""

from __future__ import annotations

from tastemaker.checks.case import STEPS, Case
from tastemaker.checks.finding import Finding, Verdict, graded, idle
from tastemaker.policy import controls

LEVELS = (2.0, 8.0)  # of 255
SHARES = (0.01, 0.05)  # of the largest number of a latent: pictures of little contrast hide what latents show


def sampling(case: Case) -> Finding:
    """In fp32 on both sides, so that only what is computed can differ, and not how precisely."""
    policy, guidance = case.policy, case.plan.guidance
    if case.run.quantise is not None:
        return idle(f"--quantise {case.run.quantise}: its pipeline would have to compute in fp32, and cannot.")
    if controls.off_grid(policy, STEPS):
        return idle(
            f"this model's timesteps are spaced as {controls.spacing(policy)!r}, where diffusers' DDIM steps to "
            "timesteps that are not on its own grid; a chain here stays on the grid, so they differ by design."
        )
    with controls.exact(policy):
        ours = case.ends()
        theirs = controls.own_chain(
            policy,
            case.prompts,
            case.x.to(policy.device),
            steps=STEPS,
            guidance=guidance,
            negative=case.run.negative_prompt,
        )
        levels = 255 * float((policy.decode(ours) - policy.decode(theirs)).abs().max())
    share = float((ours - theirs).abs().max() / theirs.abs().max())
    found = [graded(levels, good=LEVELS[0], bearable=LEVELS[1]), graded(share, good=SHARES[0], bearable=SHARES[1])]
    verdict = max(found, key=[Verdict.OK, Verdict.WARNING, Verdict.WRONG].index)
    advice = (
        f"from the same noise, in {STEPS} steps at guidance {guidance:g}, a picture ends elsewhere than by diffusers' "
        f"{type(controls.own_scheduler(policy)).__name__} with this model's settings. A run would train another chain "
        "than the one its result is drawn with: do not train; report it with the model's scheduler_config.json."
    )
    measured = f"{levels:.2g} levels, latents {share:.1g}"
    return Finding(verdict, measured, f"{LEVELS[0]:g} levels, {SHARES[0]:g}", "" if verdict is Verdict.OK else advice)
