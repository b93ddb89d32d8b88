"""What a device's memory allows: chosen by `--fit` and written down, or found out where there is a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

import runs
from tastemaker import config, fitting, planning
from tastemaker.plan import Plan
from tastemaker.process.schedule import Schedule

CUDA = torch.device("cuda", 1)
PLAN = Plan(1, 8, 2, 1, 1, 4, 1.0, items=1, micro_batch=3, sampling_batch=3)


def resolved(algorithm: str = "ddpo", own: dict[str, Any] | None = None, **flags: Any) -> config.Resolved:
    given = {"model": runs.model(), "reward": "jpeg_compressibility", "prompts": "shapes", **flags}
    return config.resolve(algorithm, {**given, "algorithm": {"images": 8, "updates": 1, "steps": 4, **(own or {})}}, {})


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (count, 10**12))


def test_too_little_free_memory_says_how_much_there_is_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2**29)
    needed = r"needs 0\.\d\d GiB within 90% of it"
    with pytest.raises(
        ValueError, match=rf"^0\.50 GiB of the memory of cuda:1 are free, .* one item .* {needed}"
    ) as one:
        fitting.within(resolved(), CUDA)
    assert "use --gradient_checkpointing and --vae_slicing, or --fit with an amount" in str(one.value)
    with pytest.raises(ValueError, match=r"or use --vae_slicing, or --fit with") as some:
        fitting.within(resolved(gradient_checkpointing=True), CUDA)
    with pytest.raises(ValueError, match=r"or lower --resolution\.$") as none:
        fitting.within(resolved(gradient_checkpointing=True, vae_slicing=True), CUDA)
    assert not any("is not enough" in str(error.value) for error in (one, some, none))
    with pytest.raises(ValueError, match=r"^--fit 0\.50 GiB is not enough"):  # asked for, it is spoken of
        fitting.within(resolved(fit="512MiB"), CUDA)


def test_enough_free_memory_limits_the_calls_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**9)
    asked = resolved()
    run, limit, words = fitting.within(asked, CUDA)
    assert run is asked.run and words == [] and limit is not None and limit > 1
    assert fitting.within(resolved(plan={"micro_batch": 3}), CUDA)[1] is None


@pytest.mark.parametrize("name", config.algorithms())
def test_graphs_count_whether_or_not_the_reward_is_differentiated(name: str) -> None:
    """As the algorithm says with no model there; the decoder's gradient is another matter."""
    asked = resolved(name)
    algorithm, setup = asked.algorithm, fitting._setup(asked, asked.run, 1)
    assert setup.depth == algorithm.calls(range(4)).depth >= 1
    assert setup.differentiates == algorithm.differentiates


def test_pairs_leave_room_for_half_the_items() -> None:
    """Diffusion-DPO holds the graphs of both pictures of a pair."""

    def most(name: str) -> int:
        limit = fitting.within(resolved(name, fit="8MB"), torch.device("cpu"))[1]
        assert limit is not None
        return limit

    assert most("diffusion_dpo") == most("ram") // 2 > 1
    rows = fitting.table(resolved("diffusion_dpo"), resolved("diffusion_dpo", fit="1GB").run, PLAN, CUDA)
    assert next(row[2] for row in rows if row[0] == "saved activations").startswith("learning: 3 rows x 2 calls")


def test_what_was_chosen_is_stated_and_what_was_asked_for_stays() -> None:
    def decided(**flags: Any) -> tuple[config.Resolved, int]:
        asked = resolved(**flags)
        run, limit, _ = fitting.within(asked, torch.device("cpu"))
        alpha = torch.linspace(0.1, 0.9, 5)
        grid = Schedule(torch.arange(4.0), alpha, (1 - alpha**2).sqrt())
        plan = planning.solve(asked.algorithm, run, grid, 1, limit)
        return fitting.decided(asked, replace(run), plan), plan.micro_batch

    found, rows = decided(fit="1GB")
    names = ("gradient_checkpointing", "vae_slicing", "plan.micro_batch")
    assert [found.origin[name] for name in names] == ["fit"] * 3
    assert (found.tree["gradient_checkpointing"], found.tree["vae_slicing"]) == (False, False)
    assert found.tree["plan"] == {"micro_batch": rows, "sampling_batch": None} and rows > 1
    found, _ = decided(fit="1GB", gradient_checkpointing=True, plan={"micro_batch": 2})
    assert [found.origin[name] for name in names] == ["flag", "fit", "flag"]
    assert found.tree["gradient_checkpointing"] is True and found.tree["plan"]["micro_batch"] == 2
    open_ = resolved()
    assert fitting.decided(open_, open_.run, None) is open_  # type: ignore[arg-type]


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("algorithm", "flags", "device", "why"),
    [
        ("ddpo", {"cpu_offload": True}, CPU, "--cpu_offload has no effect on a CPU"),
        ("draft", {"cpu_offload": True}, CUDA, "--cpu_offload has no effect where the reward is differentiated"),
        ("ddpo", {"vae_tiling": True}, CPU, "--vae_tiling has no effect on these pictures: a tile has 512 pixels"),
        ("draft", {"vae_tiling": True, "resolution": 64}, CPU, "--vae_tiling needs --gradient_checkpointing where"),
        ("ddpo", {"quantise": "4bit", "lora": None}, CPU, "quantise is '4bit', but without LoRA"),
        ("ddpo", {"load_in_4bit": True}, CPU, "Did you mean `--quantise 4bit`"),
        ("ddpo", {"enable_xformers_memory_efficient_attention": True}, CPU, "`--attention_backend xformers`"),
    ],
)
def test_switches_that_do_nothing_are_refused(algorithm: str, flags: Any, device: torch.device, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fitting.within(resolved(algorithm, **flags), device)


def test_what_is_drawn_and_learned_from_at_a_time_reaches_the_estimate() -> None:
    asked = resolved("ddpo", {"guidance": 2.0, "guidance_in_loss": False}, plan={"sampling_batch": 7})
    setup = fitting._setup(asked, asked.run, 1)
    assert (setup.guided, setup.learning_guided, setup.sampling_batch) == (True, False, 7)
    asked = resolved("ddpo", {"guidance": 1.0}, evaluation={"guidance": 3.0})
    setup = fitting._setup(asked, asked.run, 1)
    assert (setup.guided, setup.learning_guided, setup.sampling_batch) == (True, False, None)


def test_switches_reach_the_estimate_and_the_configuration() -> None:
    flags = {"vae_tiling": True, "resolution": 64, "cpu_offload": True, "quantise": "8bit"}
    asked = resolved(attention_backend="_native_math", compile=True, **flags)
    assert fitting.within(asked, torch.device("xpu"))[0] is asked.run
    setup = fitting._setup(asked, asked.run, 1)
    assert (setup.vae_tiling, setup.cpu_offload, setup.quantise, setup.kernel) == (True, True, "8bit", "math")
    text = yaml.safe_load(config.as_yaml(asked.tree, asked.origin))
    stated = {"attention_backend": "_native_math", "compile": True, **flags}
    assert {name: text[name] for name in stated} == stated
