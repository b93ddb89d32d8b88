"""`isolated`: a package that is installed for a reward alone, its process, and what is said when it does not work."""

from __future__ import annotations

import gc
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from reward_servers import pictures, prompts
from tastemaker.rewards import named
from tastemaker.rewards.environment import Isolated, _meant, environment

JUDGE = """
import os, sys

def brightness(images, prompts):
    print("packages print things")
    if "die" in prompts:
        os._exit(3)
    if "raise" in prompts:
        raise RuntimeError("no such picture")
    values = [sum(sum(sum(row) for row in plane) for plane in image) / 3 / 64 for image in images.tolist()]
    return [None if text == "none" else value for text, value in zip(prompts, values)]

class Where:
    def __call__(self, images, prompts):
        assert "torch" not in sys.modules and "TASTEMAKER_REWARD_TOKEN" not in os.environ
        return [float(sys.prefix != sys.base_prefix)] * len(prompts)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A wheel that no index has, and a folder for environments; pip is offline."""
    home = tmp_path_factory.mktemp("isolated")
    wheel = home / "oldjudge-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("oldjudge.py", JUDGE)
        about = "oldjudge-1.5.dist-info"
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: oldjudge\nVersion: 1.5\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(home))
        yield {"requirements": "oldjudge==1.5", "folder": str(home / "environments")}


def test_a_package_with_pins_of_its_own_judges_from_its_own_environment(place: dict[str, str]) -> None:
    images = pictures(4)
    reward = Isolated(function="oldjudge:brightness", **place)
    found = reward(images, ["a", "none", "b", "c"])
    torch.testing.assert_close(found.value[[0, 2, 3]], images.mean((1, 2, 3))[[0, 2, 3]])
    assert found.value[1].isnan() and reward._running[0][0].poll() is None
    raised = reward(images, ["raise"] * 4)
    assert raised.value.isnan().all() and raised.notes[0] == "RuntimeError: no such picture"
    asker, process = reward._running[0][1], reward._running[0][0]
    stranger = httpx2.get(f"{asker.url}/health", trust_env=False)
    assert stranger.status_code == 401 and asker.courier._secret not in " ".join(process.args)
    inside = environment(**place)
    assert inside == environment(**place)
    assert len(made(place)) == 1
    other = named({"name": "isolated", "function": "oldjudge:Where", **place})
    assert other(images, prompts(4)).value.tolist() == [1] * 4
    pids = [process, other.function._running[0][0]]
    del reward, other, asker
    gc.collect()
    assert [one.returncode for one in pids] == [0, 0]  # they ended with those who asked them


def made(place: dict[str, str]) -> list[Path]:
    return [one for one in Path(place["folder"]).iterdir() if one.is_dir()]


def test_the_same_words_in_another_place_are_another_environment(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        package = tmp_path / name / "judge"
        package.mkdir(parents=True)
        (package / "judge.py").write_text("")
    monkeypatch.chdir(tmp_path / "a")
    first, word = _meant("./judge"), _meant("oldjudge==1.5")
    os.utime("judge/judge.py", (1, 1))
    monkeypatch.chdir(tmp_path / "b")
    assert len({first, _meant("./judge"), _meant(str(tmp_path / "a" / "judge"))}) == 3 and word == "oldjudge==1.5"


def test_what_lies_on_the_callers_path_is_installed_all_the_same(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "path" / "oldjudge-1.5.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: oldjudge\nVersion: 1.5\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    inside = environment(place["requirements"], str(tmp_path / "environments"))
    assert list(inside.parents[1].rglob("oldjudge.py"))
    inside.unlink()  # as when its interpreter was removed: it is made anew
    assert environment(place["requirements"], str(tmp_path / "environments")) == inside and inside.exists()


def test_a_process_that_died_is_started_again(place: dict[str, str]) -> None:
    reward = Isolated(function="oldjudge:brightness", deadline=0.5, **place)
    assert reward(pictures(1), ["a"]).value.isfinite().all()
    first = reward._running[0][0]
    streams = Path(f"/proc/{first.pid}/fd")
    if streams.is_dir():  # it may say as much as it likes: nothing keeps it
        assert {os.readlink(streams / number) for number in "12"} == {os.devnull}
    dead = reward(pictures(1), ["die"])
    assert dead.value.isnan().all() and first.wait(10) == 3
    again = Isolated.__call__(reward, pictures(1), ["a"])
    assert again.value.isfinite().all() and reward._running[0][0].pid != first.pid != os.getpid()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"function": "oldjudge:nobody"}, r"oldjudge:nobody does not start in .*: AttributeError: .*nobody"),
        ({"function": "nowhere:f"}, r"nowhere:f does not start in .*: ModuleNotFoundError: No module named 'nowhere'"),
        ({"requirements": "nojudge==1"}, r"environment could not be made \(-m pip --python \.\.\.\): .*nojudge==1"),
        ({"python": "no-such-python", "requirements": "a"}, "no-such-python cannot be run"),
    ],
)
def test_what_does_not_work_is_told_of_at_the_start(place: dict[str, str], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)^reward `isolated`: .*{said}"):
        _ = Isolated(**{"function": "oldjudge:brightness", **place, **changes}).network
    assert len(made(place)) <= 1  # nothing half made is left


def test_wrong_settings_are_told_of_in_the_users_words() -> None:
    for settings, said in (
        ({"function": "a:b"}, "--reward: requirements is empty"),
        ({"requirements": "a==1", "function": "f"}, "--reward.function is 'f'; it is module:function."),
        ({"requirements": "a==1", "function": "a:f", "deadline": "-1"}, "timeout is -1.0"),
    ):
        with pytest.raises(ValueError) as no:
            named({"name": "isolated", **settings}, key="--reward")
        assert said in str(no.value), json.dumps(settings)
