"""The rules of alarms, on rows that are written by hand: what begins, what ends, what is never read."""

from statistics import NormalDist
from typing import Any

import pytest

from tastemaker.evaluation.alarms import MOVED, NAMES, SUSPICION, Alarm, Alarms, Rules, check_stops

CALM = {
    "pictures": 100.0,
    "held_out.judge": -1.0,
    "held_out_sd.judge": 0.5,
    "held_out.truth": 0.9,
    "held_out_sd.truth": 0.2,
    "drift": 0.0,
    "periodicity": 0.1,
    "saturation": 0.02,
    "spread": 0.1,
    "diversity": 0.08,
}


def row(iteration: int, *, reward: float = 1.0, clipped: float | None = None, **watch: Any) -> dict[str, Any]:
    updates = [] if clipped is None else [{"clip_fraction": clipped}, {"loss": 1.0}]
    numbers = CALM | {name.replace("__", "."): value for name, value in watch.items()}
    drawn = numbers["pictures"] or 0  # as many as are looked at
    return {"iteration": iteration, "reward": {"mean": reward}, "updates": updates, "watch": numbers, "images": drawn}


def told(rows: list[dict[str, Any]], **settings: Any) -> list[tuple[int, str, bool]]:
    return [(one.iteration, one.name, one.begins) for one in heard(rows, **settings)]


def heard(rows: list[dict[str, Any]], **settings: Any) -> list[Alarm]:
    rules = Rules(Alarms(**settings), ["judge"])
    return [alarm for one in rows for alarm in rules.see(one)]


def test_a_run_that_stays_as_it_is_raises_nothing() -> None:
    assert told([row(k) for k in range(8)]) == [] == told([])


def checked(fall: float, *, error: float = 0.1, trained: float = 0.5, **more: Any) -> dict[str, Any]:
    """What a check adds to a row."""
    found = {"checked": 32.0, "checked_trained": trained, "checked__judge": -fall, "checked_error__judge": error}
    return found | {"checked__truth": -9.0, "checked_error__truth": 0.0} | more


def test_a_fall_of_the_held_out_reward_on_fixed_pictures_while_the_trained_one_rises() -> None:
    """The limit, and what the error leaves unsure one time in twenty."""
    limit = Alarms().parting
    assert limit is not None
    unsure = NormalDist().inv_cdf(0.95) * 0.1
    below, above = ((limit + unsure) * factor for factor in (0.98, 1.02))
    assert told([row(0), row(1, **checked(below))]) == []
    assert told([row(0), row(1, **checked(above))]) == [(1, "parting", True)]
    (alarm,) = heard([row(0), row(1, **checked(above))])
    assert alarm.value == pytest.approx(above - unsure, rel=1e-3) and alarm.threshold == limit
    assert alarm.message.startswith("on 32 fixed pictures the reward has risen by 0.5 SD and held-out `judge` has")
    assert told([row(0), row(1, **checked(9.0, trained=-0.1))]) == []  # both fall: no parting
    assert told([row(0), row(1, held_out__judge=-9.0)]) == []  # by other pictures it is a suspicion
    assert told([row(0), row(1, **checked(9.0, checked_trained=None))]) == []  # a reward that failed


def test_a_check_without_scores_changes_nothing() -> None:
    failed = checked(2.0, checked_trained=None)
    rows = [row(0), row(1, **checked(2.0)), row(2, **failed), row(3, **checked(2.0)), row(4, **checked(0.0))]
    assert told(rows) == [(1, "parting", True), (4, "parting", False)]
    low = {"held_out__judge": -1.2}
    assert asks([row(0), row(1, **low, **failed), row(2, **low), row(3, **low)], row(4, **low))  # not looked into yet
    rules = Rules(Alarms(), ["judge", "other"])
    fell, silent = checked(2.0), checked(0.0, checked__judge=None, checked__other=0.0, checked_error__other=0.1)
    heard = [one.begins for each in (row(0), row(1, **fell), row(2, **silent)) for one in rules.see(each)]
    assert heard == [True]  # that of another reward says nothing of the one that fell


def test_it_begins_once_and_is_over_when_a_later_check_says_so() -> None:
    rows = [row(0), row(1, **checked(2.0)), row(2), row(3, **checked(2.0)), row(4), row(5, **checked(0.1)), row(6)]
    assert told(rows) == [(1, "parting", True), (5, "parting", False)]


def test_the_oracle_is_never_read() -> None:
    assert told([row(0), *(row(k, **checked(0.0), held_out__truth=0.0) for k in range(1, 5))]) == []
    rules = Rules(Alarms(), ["judge"], trained=False)  # the trained reward is the oracle
    assert [alarm for one in [row(0), row(1, **checked(9.0))] for alarm in rules.see(one)] == []
    assert not asks([row(0)], row(1, held_out__judge=-9.0), trained=False)
    assert not asks([row(0)], row(1, held_out__truth=-9.0))


def asks(before: list[dict[str, Any]], now: dict[str, Any], *, trained: bool = True, **settings: Any) -> bool:
    rules = Rules(Alarms(**settings), ["judge"], trained=trained)
    for one in before:
        rules.see(one)
    return rules.asks(now)


FALL = 0.5 * SUSPICION  # of the judge, whose deviation is 0.5
BELOW, ABOVE = (-1 - FALL * factor for factor in (0.98, 1.02))


def test_a_fall_by_other_pictures_asks_for_the_fixed_ones() -> None:
    assert not asks([], row(0))
    assert not asks([row(0)], row(1, held_out__judge=BELOW)) and asks([row(0)], row(1, held_out__judge=ABOVE))
    assert asks([row(0), row(1, held_out__judge=-9.0)], row(2))  # the mean of the last two
    calm = [row(0), row(1, held_out__judge=-9.0), row(2), row(3)]
    assert asks(calm, row(4, held_out__judge=ABOVE)) and not asks(calm, row(4))  # of the last three, or of the last
    assert not asks(calm[:2], row(2), window=1)
    assert not asks([row(0)], row(1, held_out__judge=ABOVE), parting=None)
    assert not asks([row(0)], row(1, held_out__judge=None, pictures=None))  # nothing was seen or drawn


def test_a_check_that_found_nothing_is_what_later_pictures_are_compared_with() -> None:
    lower = {"held_out__judge": -1.2}
    calm = [row(k) for k in range(10)]
    rows = [*calm, row(10, **lower, **checked(0.0)), row(11, **lower, **checked(0.0))]
    assert asks(calm, row(10, **lower)) and asks(rows[:11], row(11, **lower))
    assert not asks(rows, row(12, **lower))  # 0.07 below the last three that were looked into, 0.2 below all before
    assert asks(rows, row(12, held_out__judge=-1.25))
    once = [*calm, row(10, **lower, **checked(0.0)), row(11)]
    assert not asks(once[:11], row(11)) and not asks(
        once, row(12)
    )  # nor is the one that was looked into held against it


def test_weights_that_moved_on_are_looked_into_at_every_doubling() -> None:
    limit = Alarms().drift
    assert limit is not None
    first, moved = MOVED * limit, [row(0), row(1, drift=MOVED * limit, **checked(0.0)), row(2, drift=0.0)]
    assert not asks([row(0)], row(1, drift=0.98 * first)) and asks([row(0)], row(1, drift=1.02 * first))
    assert not asks(moved, row(3, drift=1.98 * first)) and asks(moved, row(3, drift=2.02 * first))
    assert not asks([row(0)], row(1, drift=9.0), drift=None)
    assert not Rules(Alarms(), []).asks(row(1, drift=9.0))  # nobody is there to be asked


def test_what_does_not_vary_raises_no_suspicion() -> None:
    alike = [row(k, held_out_sd__judge=0.0) for k in range(2)]
    assert not asks(alike, row(2, held_out__judge=-9.0, held_out_sd__judge=0.0))


def test_checks_draw_at_most_twice_the_pictures_that_were_drawn_since() -> None:
    few = [row(k, pictures=10.0) for k in range(3)]
    low = row(3, pictures=10.0, held_out__judge=-9.0)
    assert not asks(few, low) and asks(few, low, checks=60)
    assert asks([*few, row(3, pictures=10.0)], row(4, pictures=10.0, held_out__judge=-9.0))


def test_a_fall_within_its_error_is_not_looked_into() -> None:
    """Of four pictures an iteration: 2 ** 0.5 / 2 = 0.71 standard deviations of 0.5, and 0.61 for the mean of two."""
    for fall, said in ((0.34, False), (0.36, True)):
        assert asks([row(0, pictures=4.0)], row(1, pictures=4.0, held_out__judge=-1 - fall), checks=2) == said
    first, again = row(0, pictures=4.0), row(1, pictures=4.0, held_out__judge=-1.31)
    assert not asks([first], again, checks=2) and asks([first, again], again, checks=2)


def test_checks_are_not_drawn_again_at_once() -> None:
    sounding = [row(0), row(1, **checked(2.0)), row(2), row(3)]  # may be over: looked at again after `window`
    assert not asks(sounding[:3], row(3, held_out__judge=-9.0)) and asks(sounding, row(4))


CROSSINGS = {
    "diversity": ({"diversity": 0.041}, {"diversity": 0.039}),
    "drift": ({"drift": 0.09}, {"drift": 0.11}),
    "artifact": ({"periodicity": 0.59}, {"periodicity": 0.61}),
    "saturation": ({"saturation": 0.21}, {"saturation": 0.23}),
    "ratio": ({"clipped": 0.89}, {"clipped": 0.91}),
}
LIMITS = {"diversity": 0.5, "drift": 0.1, "artifact": 0.5, "saturation": 0.2, "ratio": 0.9}


@pytest.mark.parametrize("name", CROSSINGS)
def test_an_alarm_has_its_limit_and_can_be_switched_off(name: str) -> None:
    below, above = CROSSINGS[name]
    assert told([row(0), row(1, **below)], **LIMITS) == []
    assert told([row(0), row(1, **above)], **LIMITS) == [(1, name, True)]
    assert told([row(0), row(1, **above)], **LIMITS | {name: None}) == []
    assert told([row(0), row(1, **above)], **LIMITS | {"window": 1}) == [(1, name, True)]


def test_one_iteration_among_calm_ones_is_not_enough() -> None:
    rows = [row(k, saturation=0.3 if k == 3 else 0.02) for k in range(6)]
    assert told(rows, saturation=0.2) == [] and told(rows, saturation=0.2, window=1)[0] == (3, "saturation", True)


def test_all_pictures_alike_is_diversity_too_and_strips_have_a_base_of_their_own() -> None:
    assert told([row(0), row(1, spread=0.01)], diversity=0.5) == [(1, "diversity", True)]
    strips = [row(0, diversity=0.05, diversity_base=0.1), row(1, diversity=None), row(2, diversity=0.04)]
    assert told(strips, diversity=0.5)[0] == (2, "diversity", True)
    unsure = [*strips[:2], row(2, diversity=0.04, diversity_error=0.06)]
    assert told(unsure, diversity=0.5) == [] and told(unsure, diversity=0.53)[0] == (2, "diversity", True)


def test_rows_without_numbers_are_passed_over() -> None:
    empty = {"iteration": 3, "reward": {"failed": 2}, "updates": [], "watch": {"drift": None}}
    bare = {"iteration": 4, "reward": {"mean": 1.0}, "updates": []}  # of a run without the watch
    assert told([empty, bare, row(5), row(6, drift=9.0)], drift=0.1) == [(6, "drift", True)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pictures": 0}, "pictures is 0"),
        ({"window": 0}, "window is 0"),
        ({"strips": -1}, "strips is -1"),
        ({"checks": 1}, "checks is 1; it is 2 or more"),
        ({"transitions": 0.03}, "at most 0.02"),
        ({"transitions": 0.0}, "above 0"),
        ({"drift": -1.0}, "drift is -1.0; it is a number above 0, or none"),
        ({"parting": float("inf")}, "parting is inf"),
        ({"diversity": 1.5}, "diversity is 1.5; it is a share"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Alarms(**settings)


def test_stops_name_alarms_that_can_sound() -> None:
    check_stops(["any"], Alarms())
    check_stops(NAMES, Alarms())
    for stops, alarms, said in (
        (["partin"], Alarms(), "one or several of parting, diversity"),
        (["drift"], None, "alarms are off"),
        (["drift"], Alarms(drift=None), "give alarms.drift a number"),
    ):
        with pytest.raises(ValueError, match=f"^stop_on is .*{said}"):
            check_stops(stops, alarms)
