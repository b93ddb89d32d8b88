"""Diffusion-DPO: what it refuses, its pairs, its gradient by finite differences, what it costs, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import forward_runs as forward
import runs
import tiny
from tastemaker import config
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO, extremes
from tastemaker.iteration import deal
from tastemaker.policy.load import load
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.rollout import collect
from tastemaker.training.lines import read_lines
from toy import Toy
from toy_runs import SEED, apart, failing, gradient, iteration_of, made, plan_of

SMALL = forward.SMALL | {"per_prompt": 4}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"beta": 0.0}, "beta is 0.0; it must be positive"),
        ({"per_prompt": 1}, "per_prompt is 1, so no prompt has two pictures to compare: use 2 or more"),
        ({"pairs": "given", "per_prompt": 2}, "per_prompt is 2, but pairs that are given come once: leave it out"),
        ({"pairs": "given", "sampler": DDIM(0.0)}, "sampler has no effect with pairs=given.* leave it out, or use"),
        ({"pairs": "mine"}, "pairs is 'mine'; they are drawn or given"),
        ({"space": "v"}, "space is 'v'; it is one of x0, eps, velocity"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, object], said: str) -> None:
    forward.refuses(DiffusionDPO, settings, said)


def test_more_levels_than_steps_are_refused() -> None:
    forward.refuses_more_levels_than_steps(DiffusionDPO)
    forward.refuses_the_error_of_eps_on_a_flow(DiffusionDPO)


def test_the_best_and_the_worst_of_a_prompt_are_its_pair() -> None:
    lost = {1, 4, 5, 6}
    algorithm = DiffusionDPO(**SMALL | {"images": 12, "updates": 1})
    it = iteration_of(algorithm, Toy(), reward=failing(lambda b: b in lost))
    rollout = collect(it, algorithm.sampler)
    r = {b: float(x) for b, x in zip(rollout.prompts.ids, rollout.reward, strict=True)}
    wanted = []
    for group in (0, 4, 8):
        whole = [b for b in range(group, group + 4) if b not in lost]
        wanted += [(max(whole, key=r.__getitem__), min(whole, key=r.__getitem__))] if len(whole) > 1 else []
    ids = torch.tensor(rollout.prompts.ids)
    best, worst = extremes(rollout)
    assert list(zip(ids[best].tolist(), ids[worst].tolist(), strict=True)) == wanted and len(wanted) == 2


def test_pictures_that_score_the_same_are_no_pair() -> None:
    algorithm = DiffusionDPO(**SMALL)
    it = iteration_of(algorithm, Toy(), reward=lambda images, prompts: torch.ones(len(images)))
    assert all(len(update.batch) == 0 for update in algorithm.iteration(it))


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_the_gradient_is_the_formulas_by_finite_differences(flow: bool) -> None:
    """The loss is written out from outputs of the network, of the base beside it; its slope along random directions."""
    algorithm, policy, base = (
        DiffusionDPO(**SMALL | {"updates": 1}, beta=3.0, space="x0" if flow else "eps"),
        Toy(flow=flow),
        Toy(flow=flow),
    )
    for p in policy.parameters():
        p.data += 0.05  # away from the base
    it = iteration_of(algorithm, policy)
    update = next(iter(algorithm.iteration(it)))
    pairs, schedule = update.batch, policy.schedule(6)

    def loss() -> float:
        total = 0.0
        for m in range(len(pairs)):
            gains = []
            for items in (pairs.winner, pairs.loser):
                one = items.take(torch.tensor([m]))
                i = int(one.i)
                eps = torch.empty(4, 1, 1).normal_(
                    generator=Key(SEED, 0).generator("noised", 0, i, int(pairs.winner.name[m]))
                )
                x0 = one.rollout.x0[one.sample]
                x = schedule.alpha[i] * x0 + schedule.sigma[i] * eps.double()
                errors = []
                for network in (base, policy):
                    said = network.predict(x, i, schedule, one.rollout.conditioning.take(one.sample), 2.0)
                    apart = said.x0 - x0 if flow else said.eps - eps.double()
                    errors.append(float((apart**2).mean()))
                gains.append(errors[0] - errors[1])
            total -= float(
                torch.nn.functional.logsigmoid(torch.tensor(3.0 / 2 * (gains[0] - gains[1]), dtype=torch.float64))
            )
        return total / len(pairs)

    random = torch.Generator().manual_seed(1)
    start = [p.data.clone() for p in policy.parameters()]
    for _ in range(3):
        way = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in start]
        ends = []
        for size in (1e-5, -1e-5):
            for p, at, d in zip(policy.parameters(), start, way, strict=True):
                p.data = at + size * d
            with torch.no_grad():
                ends.append(loss())
        for p, at in zip(policy.parameters(), start, strict=True):
            p.data = at.clone()
        value = made(update).loss(pairs).value.mean()
        slopes = torch.autograd.grad(value, policy.parameters())
        along = sum(float((s * d).sum()) for s, d in zip(slopes, way, strict=True))
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("k", [2, 4])
def test_an_iteration_costs_what_the_plan_says(k: int) -> None:
    forward.costs_what_the_plan_says(DiffusionDPO(**SMALL | {"per_prompt": k}), micro=3)


def test_at_the_base_the_loss_is_log_2_and_leaving_it_costs_more_with_a_larger_beta() -> None:
    found = []
    for beta in (1.0, 50.0):
        algorithm = DiffusionDPO(**SMALL | {"learning_rate": 0.05}, beta=beta)
        it = iteration_of(algorithm, Toy(spread=0.0))
        stats = [gradient(it, update, algorithm)[1] for update in algorithm.iteration(it)]
        assert stats[0]["loss"] == pytest.approx(np.log(2)) and stats[0]["margin"] == 0
        found.append(stats[1]["loss"])
    assert abs(found[1] - np.log(2)) > abs(found[0] - np.log(2)) > 0


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_it_learns_from_pictures_it_draws(flow: bool) -> None:
    settings = forward.LEARNS | {"images": 64, "per_prompt": 4, "iterations": 15}
    forward.learns(DiffusionDPO(**settings, beta=2.0, space="x0" if flow else "eps"), flow=flow, gain=0.8)


# ---- pairs that are given


@pytest.mark.parametrize("model", [{}, {"algorithms": {"diffusion_dpo": {"per_prompt": 4, "sampler": "ddim"}}}])
def test_given_pairs_come_once_whatever_the_model_says(model: dict[str, Any]) -> None:
    """From Python and from the command line; a model's values are those of pairs that are drawn."""
    assert DiffusionDPO(pairs="given").per_prompt == 1
    asked = {"model": "shapes", "reward": "jpeg_compressibility", "prompts": "shapes"}
    typed = {**asked, "algorithm": {"pairs": "given"}}
    for target, flags in (("diffusion_dpo", typed), (DiffusionDPO(pairs="given"), asked)):
        found = config.resolve(target, flags, model)
        assert (found.algorithm.per_prompt, found.algorithm.sampler) == (1, DDIM(0.0))
        assert found.origin["algorithm.per_prompt"] == "paper"
    with pytest.raises(ValueError, match="^--algorithm.per_prompt is 4, but pairs that are given come once"):
        config.resolve("diffusion_dpo", {**asked, "algorithm": {"pairs": "given", "per_prompt": "4"}}, model)
    assert config.resolve("diffusion_dpo", asked, model).algorithm.per_prompt == (4 if model else 2)


def test_given_pairs_need_no_other_setting_on_the_built_in_model(tmp_path: Path) -> None:
    asked = ("--model", "shapes", "--reward", "jpeg_compressibility", "--prompts", "pairs", "--prompts.path")
    few = ("--evaluation.count", "2", "--device", "cpu", "--output_dir", str(tmp_path / "run"), "--dry-run")
    ran = runs.call("train", "diffusion_dpo", *asked, str(saved(tmp_path)), "--algorithm.pairs", "given", *few)
    assert ran.code == 0 and "dry run" in ran.out, ran.err


def saved(folder: Path, count: int = 4, size: int = 16) -> Path:
    """Pairs of a light winner and a dark loser, as a file with pictures beside it."""
    rows = []
    for k in range(count):
        for role, level in (("winner", 200), ("loser", 40)):
            picture = np.full((size, size + k, 3), level + k, np.uint8)
            Image.fromarray(picture).save(folder / f"{role}-{k}.png")
        rows.append({"prompt": ("a cat", "a dog")[k % 2], "winner": f"winner-{k}.png", "loser": f"loser-{k}.png"})
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_given_pairs_are_learned_from_the_same_however_calls_are_cut(tmp_path: Path) -> None:
    """And each with the noise of its own id; encoded by the model's autoencoder."""
    file = saved(tmp_path)
    found = []
    for micro, sampling in ((8, 4), (3, 1)):
        policy = load(str(tiny.save(tmp_path / "model")), lora=None)
        algorithm = DiffusionDPO(pairs="given", images=4, steps=4, levels=2, beta=10.0)
        plan = plan_of(algorithm, policy, micro=micro, sampling=sampling)
        it = iteration_of(algorithm, policy, plan)
        it.prompts, _ = deal(source({"name": "pairs", "path": str(file)}), Key(SEED, 0), plan, it.world)
        update = made(next(iter(algorithm.iteration(it))))
        x0 = update.batch.winner.rollout.x0
        assert x0.shape == (8, *policy.latent_shape) and not torch.equal(x0[0], x0[1])
        found.append(gradient(it, update, algorithm)[0])
    assert apart(found[0], found[1]) < 1e-5


def test_a_run_on_given_pairs_asks_the_reward_for_nothing_but_its_judging(tmp_path: Path) -> None:
    file = saved(tmp_path)
    asked = (
        "--model",
        runs.model(),
        "--reward",
        "jpeg_compressibility",
        "--prompts",
        "pairs",
        "--prompts.path",
        str(file),
    )
    own = (
        "--algorithm.pairs",
        "given",
        "--algorithm.images",
        "4",
        "--algorithm.beta",
        "10",
    )
    few = ("--algorithm.steps", "4", "--iterations", "2", "--evaluation.count", "2", "--device", "cpu")
    ran = runs.call("train", "diffusion_dpo", *asked, *own, *few, "--output_dir", str(tmp_path / "run"))
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["queries"] for row in rows] == [0, 0]
    assert rows[0]["updates"][0]["loss"] == pytest.approx(np.log(2)) and rows[1]["updates"][0]["margin"] != 0


def test_a_run_whose_prompts_have_no_pairs_is_refused_before_any_work(tmp_path: Path) -> None:
    own = ("--algorithm.pairs", "given", "--reward", "jpeg_compressibility")
    ran = runs.call("train", "diffusion_dpo", "--model", str(tmp_path / "no model"), "--prompts", "animals", *own)
    assert ran.code != 0 and "pairs is `given`, but the prompt" in ran.err, ran.err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a cat", "winner": "winner-0.png"}, "there is no `loser`: give the file of that picture"),
        ({"prompt": "a cat", "winner": "no.png", "loser": "loser-0.png"}, "winner: there is no .*no.png"),
        ({"winner": "winner-0.png", "loser": "loser-0.png"}, "none of prompt, caption, text is there"),
    ],
)
def test_a_line_that_is_no_pair_is_refused_by_its_number(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_text(file.read_text() + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=rf"pairs.jsonl:5: {said}"):
        source({"name": "pairs", "path": str(file)})


def test_a_folder_of_pairs_is_read(tmp_path: Path) -> None:
    for k, text in enumerate(("a cat", "a dog")):
        (tmp_path / "all" / str(k)).mkdir(parents=True)
        (tmp_path / "all" / str(k) / "prompt.txt").write_text(f"{text}\n")
        for role in ("winner", "loser"):
            Image.new("RGB", (8, 8)).save(tmp_path / "all" / str(k) / f"{role}.webp")
    drawn = source({"name": "pairs", "path": str(tmp_path / "all")}).draw(Key(0, 0).random("prompts"), 2)
    assert sorted(drawn.texts) == ["a cat", "a dog"]
    assert all(Path(found["winner"]).name == "winner.webp" for found in drawn.metadata)
    (tmp_path / "all" / "1" / "loser.webp").unlink()
    with pytest.raises(ValueError, match=r"all.1: 0 files are called loser\.png, \.jpg, \.jpeg, \.webp; one is needed"):
        source({"name": "pairs", "path": str(tmp_path / "all")})


def test_prompts_without_pairs_and_files_that_are_no_pictures_are_told(tmp_path: Path) -> None:
    algorithm = DiffusionDPO(pairs="given", images=2, steps=4)
    it = iteration_of(algorithm, Toy())
    with pytest.raises(ValueError, match="has no winner and loser: use --prompts pairs --prompts.path"):
        made(next(iter(algorithm.iteration(it))))
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_text("no picture")
    row = json.dumps({"prompt": "a cat", "winner": "x.png", "loser": "y.png"})
    (tmp_path / "pairs.jsonl").write_text(row)
    it.prompts, _ = deal(
        source({"name": "pairs", "path": str(tmp_path / "pairs.jsonl")}), Key(SEED, 0), it.plan, it.world
    )
    with pytest.raises(ValueError, match=r"x.png is no picture that can be read"):
        made(next(iter(algorithm.iteration(it))))
