"""What the runs of the learning table say: its cells, its verdicts, and what else is asked of some rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import queries
from rows import Row

Line = Mapping[str, Any]  # one run, as learn.jsonl holds it
FALL, DEVIATIONS, POINTS = 0.15, 0.8, 5.0  # of the demo: share of the mean, SD of the base, points of the oracle
NEAR = 0.15  # SD of the base: a control that moved less is near zero
FAST = ("ddpo-64x20", "shapes_ddpo_fast")  # DDPO with guidance, and without
LEAN, LESS = ("diffusion_nft", "awm"), 8  # one of these has to take so many times fewer network rows than DDPO
FEWER = 20  # times fewer queries than DDPO that DRaFT-1 and AlignProp may take


def table(rows: Sequence[Row], runs: Sequence[Line]) -> str:
    """Every row with its runs, in Markdown, and what it says of them."""
    head = ("row", "runs", "iterations", "queries", "rows forward / backward", "seconds", "change (SD)", "control (SD)")
    head += ("count", "colour", "shape", "diversity", "verdict")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    notes: list[str] = []
    for row in rows:
        own = [run for run in runs if run["row"] == row.name and not run["control"]]
        control = [run for run in runs if run["row"] == row.name and run["control"]]
        lines.append("| " + " | ".join(_cells(row, own, control)) + " |")
        notes += _notes(row, own, control)
    return "\n".join([*lines, "", *notes, *_fast(runs), *_forward(rows, runs), *_queries(rows, runs)])


def _cells(row: Row, runs: Sequence[Line], control: Sequence[Line]) -> Iterator[str]:
    yield row.name
    yield f"{len(runs)} + {len(control)}"
    if not runs:
        yield from ["-"] * 10
        yield "not run yet"
        return
    seconds = statistics.median(run["seconds"] for run in runs)
    yield f"{runs[0]['iterations']}"
    yield f"{runs[0]['queries']:,}"
    yield f"{runs[0]['rows_forward']:,} / {runs[0]['rows_backward']:,}"
    yield f"{seconds:.0f} of {row.seconds:.0f} ({runs[0]['threads']} threads)"
    yield _interval(runs)
    yield _interval(control)
    for name in ("count", "colour", "shape"):
        before, after = (_mean([run["curve"][k][f"oracle_{name}"] for run in runs]) for k in (0, -1))
        yield f"{100 * before:.1f} -> {100 * after:.1f}"
    yield _diversity(runs)
    waiting = row.control and len(control) < row.seeds
    yield verdict(runs, control) + (", controls still to be run" if waiting else "")


def _diversity(runs: Sequence[Line]) -> str:
    """Mean over the runs that measured it, before and after."""
    ends = [[run["curve"][k].get("diversity") for k in (0, -1)] for run in runs]
    known = [(before, after) for before, after in ends if before is not None and after is not None]
    if len(known) < len(runs):
        return "-"
    return " -> ".join(f"{_mean(column):.3f}" for column in zip(*known, strict=True))


PAGE = """# What learns: the leaderboard

Every row is judged by one protocol ([benchmarks](../benchmarks/README.md)): before and after, on held-out prompts and
fixed noise, paired, in units of the base's standard deviation over pictures; over seeds with Student's 95 % interval.
The control is the same run with its rewards permuted within each scored batch: it knows nothing. Where the reward is
differentiated, it is the same run with the gradients of half of a call's pictures turned around. *Learns* means:
every seed went up, and the interval over seeds is clear of zero and of the control's; where some runs' own intervals
are not clear of zero, it says how many are. Count, colour and shape are what the world's oracle, which nothing trains
on, reads on the same pictures, in per cent; diversity is the mean squared distance of a prompt's pictures. Written by
`make leaderboard`, which makes what is missing.

Rows `*-jpeg` are trained on `jpeg_proxy` and judged by real files, in many short steps, for only these leave a control
where it was; `*-quick` the same in few and long ones, until most of them lose colours. Below the table stands how many
reward queries the latter take, in real files, to where DDPO stands after 2,500, and to 0.8 SD. Rows `*-judge` are
trained on `shapes_judge`, `*-sum` on both. Settings were chosen by trials on seed 0 and its held-out prompts
([log](../LOG.md)).

Row `demo` is what `make demo` runs, and `bare` the bare command on file size alone. The demo's settings were chosen by
trials on seeds 0, 1 and 2 and their held-out prompts; on seeds that no trial had seen the oracle is in
[reward hacking](guides/reward-hacking.md).

Rows `*-clip_score` and `*-aesthetic` look through the built-in CLIP and are judged without guidance, `draft-clip_score`
by chains of five steps, as it is trained; its rate was halved after runs of the same six seeds. What they are worth to
the oracle is on [its page](rewards/clip.md).

Rows of the forward process (`diffusion_nft`, `awm`, `ram`, `rwr`, `diffusion_dpo`) go on until some of them lose
colours; below the table stands after how many network rows they reach 0.8 SD. Their settings were chosen by trials on
seeds 0 and 1, of `diffusion_nft` on 0 and 2, of `rwr` on 0, 2 and 3, of both on the flow on 0.

Rows `*-flow` are on `shapes-flow`, the other algorithms' at learning rates from trials on seed 1; those of transitions
(`ddpo`, `reinforce`, `dpok`, `flow_grpo`) are noisy in the first three of their ten steps alone, by trials on seed 0.
All others are on `shapes`.

"""
PLOT = "\n![Smaller files against the pictures that were scored](images/{})\n"  # beside the page


def page(rows: Sequence[Row], runs: Sequence[Line]) -> str:
    """The table as a page, with what is still to be run."""
    missing = []
    for row in rows:
        for control in (False, True)[: 1 + row.control]:
            seeds = {run["seed"] for run in runs if run["row"] == row.name and run["control"] == control}
            if empty := sorted(set(range(row.seeds)) - seeds):
                kind = "controls" if control else "runs"
                missing.append(f"- {row.name}: {kind} of seed {', '.join(map(str, empty))}")
    still = "\n".join(["", "## Still to be run", "", *missing, ""]) if missing else ""
    groups = {row.group for row in rows}
    plots = "".join(PLOT.format(file) for group, file in queries.CHARTS.items() if group in groups)
    columns, _, notes = table(rows, runs).strip().partition("\n\n")
    listed = "\n" + "\n".join(f"- {note}" for note in notes.splitlines()) + "\n" if notes else ""
    return PAGE + columns + "\n" + listed + plots + still


def verdict(runs: Sequence[Line], control: Sequence[Line]) -> str:
    """Whether runs learn: every seed up, over seeds clear of zero and of the control; fewer than 3 each by itself."""
    own, other = _over_seeds(runs), _over_seeds(control)
    clear, wrong = sum(run["change"]["low"] > 0 for run in runs), []
    if not all(run["change"]["sd"] > 0 for run in runs):
        wrong.append("a seed went down")
    if len(runs) < 3 and clear < len(runs):
        wrong.append("a run is not clear of zero")
    if len(runs) > 1 and not own.low > 0:
        wrong.append("not clear of zero over seeds")
    if len(control) > 1 and len(runs) > 1 and not own.low > other.high:
        wrong.append("not clear of the control")
    if len(control) > 1 and abs(other.mean) > NEAR:
        wrong.append(f"the control is not near zero ({other.mean:+.2f})")
    few = f" ({len(runs)} seed{'s' * (len(runs) > 1)})" if len(runs) < 3 else ""
    if not few and clear < len(runs):
        few = f" ({clear} of {len(runs)} runs are clear of zero by themselves)"
    return ("; ".join(wrong) or "learns") + few


def _notes(row: Row, runs: Sequence[Line], control: Sequence[Line]) -> Iterator[str]:
    """What else is asked of the demo."""
    if row.group != "demo" or not runs:
        return
    before, after = (_mean([run["reward"][k] for run in runs]) for k in (0, 1))
    share = (after - before) / abs(before)
    sd = _mean([run["change"]["sd"] for run in runs])
    clear = all(run["change"]["low"] > 0 for run in runs)
    yield f"demo: JPEG size {-100 * share:+.1f} % (goal {-100 * FALL:.0f}) {_tick(share >= FALL)}"
    good = _tick(sd >= DEVIATIONS and clear)
    yield f"demo: {sd:+.2f} SD of the base (goal {DEVIATIONS}), every run clear of zero {good}"
    lost = {name: max(_lost(run, -1)[name] for run in runs) for name in ("colour", "shape")}
    points = ", ".join(f"{name} {-worst:+.1f}" for name, worst in lost.items())
    yield f"demo: oracle, worst seed, in points: {points} {_tick(max(lost.values()) <= POINTS)}"
    if control:
        moved = abs(_mean([run["change"]["sd"] for run in control]))
        good = _tick(moved < sd / 4)
        yield f"demo: the control moved {moved:.2f} SD, {moved / abs(sd):.0%} of it (goal below 25 %) {good}"


def crossing(run: Line, deviations: float = DEVIATIONS) -> tuple[float, float, int] | None:
    """Rows forward, rows backward and the place in the curve where a run first reached so many SD.

    Between two evaluations along a straight line; None where it never did.
    """
    curve = run["curve"]
    for k in range(1, len(curve)):
        before, after = curve[k - 1], curve[k]
        if after["sd"] >= deviations:
            share = (deviations - before["sd"]) / (after["sd"] - before["sd"])
            rows = (before[n] + share * (after[n] - before[n]) for n in ("rows_forward", "rows_backward"))
            return *rows, k  # type: ignore[return-value]
    return None


def _spent(name: str, runs: Sequence[Line]) -> tuple[tuple[float, float] | None, str, float]:
    """Network rows forward and backward until 0.8 SD, mean over seeds; what is said of it; points lost there at most.

    None where a run never got there.
    """
    own = [run for run in runs if run["row"] == name and not run["control"]]
    reached = [(run, found) for run in own if (found := crossing(run))]
    if not own or len(reached) < len(own):
        said = f"{name}: {len(own) - len(reached)} of {len(own)} runs never reached {DEVIATIONS} SD" if own else ""
        return None, said, 0.0
    forward, backward = (_mean([found[n] for _, found in reached]) for n in (0, 1))
    lost = [_lost(run, found[2]) for run, found in reached]
    points = ", ".join(f"{name_} {-max(one[name_] for one in lost):+.1f}" for name_ in ("colour", "shape"))
    said = (
        f"{name}: {DEVIATIONS} SD after {forward:,.0f} rows forward, {backward:,.0f} of them backward too "
        f"({len(own)} seed{'s' * (len(own) > 1)}); oracle at the next evaluation, worst seed, in points: {points}"
    )
    return (forward, backward), said, max(max(one.values()) for one in lost)


def _fast(runs: Sequence[Line]) -> Iterator[str]:
    """The two rows `fast`: network rows until 0.8 SD, and the oracle there."""
    (slow, first, _), (fast, second, points) = (_spent(name, runs) for name in FAST)
    yield from [first] if first else []
    if second:
        yield f"{second} {_tick(points <= POINTS)}" if fast else second
    if slow and fast:
        worst = max(fast[0] / slow[0], fast[1] / slow[1])
        good = _tick(worst <= 0.5)
        yield (
            f"fast: {fast[0] / slow[0]:.2f} of the rows forward, {fast[1] / slow[1]:.2f} of those backward "
            f"(goal 0.50) {good}"
        )


def _forward(rows: Sequence[Row], runs: Sequence[Line]) -> Iterator[str]:
    """The forward process: how many fewer network rows it takes to 0.8 SD than DDPO as it is, and than its fast row.

    On another model than `shapes` than that model's one row of DDPO.
    """
    for row in (row for row in rows if row.group == "forward"):
        others = [other.name for other in rows if other.target == "ddpo" and other.model == row.model]
        names = FAST if row.model == "shapes" else tuple(others)
        bases = [base for name in names if (base := _spent(name, runs)[0])]
        spent, said, points = _spent(row.name, runs)
        if not said:
            continue
        if spent and bases and len(bases) == len(names):
            times = [(base[0] / spent[0], base[1] / spent[1]) for base in bases]
            fewer = ", ".join(f"{f:.1f} and {b:.1f} x fewer than {to}" for (f, b), to in zip(times, names, strict=True))
            goal = row.target in LEAN
            good = f" {_tick(min(times[0]) >= LESS and points <= POINTS)}" if goal else ""
            said = f"{said}; {fewer}{good}"
        yield said


def _queries(rows: Sequence[Row], runs: Sequence[Line]) -> Iterator[str]:
    """The quick rows of reward gradients: their queries to DDPO's level."""
    names = [row.name for row in rows if row.group == "queries" and row.name != queries.DDPO]
    goals = ("draft-quick", "alignprop-quick")
    yield from queries.told(names, runs, least=DEVIATIONS, fewer=FEWER, points=POINTS, goals=goals)


def _lost(run: Line, k: int) -> dict[str, float]:
    """Points of the oracle's colour and shape that a run had lost at its k-th evaluation."""
    first, then = run["curve"][0], run["curve"][k]
    return {name: 100 * (first[f"oracle_{name}"] - then[f"oracle_{name}"]) for name in ("colour", "shape")}


def _over_seeds(runs: Sequence[Line]) -> Any:
    from tastemaker.evaluation.statistics import over_seeds

    return over_seeds([run["change"]["sd"] for run in runs])


def _interval(runs: Sequence[Line]) -> str:
    if not runs:
        return "-"
    found = _over_seeds(runs)
    each = " ".join(f"{run['change']['sd']:+.2f}" for run in sorted(runs, key=lambda run: run["seed"]))
    ends = f" [{found.low:+.2f}, {found.high:+.2f}]" if len(runs) > 1 else ""
    return f"{found.mean:+.2f}{ends} ({each})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tick(good: bool) -> str:
    return "- yes" if good else "- NO"
