"""Pushing against a hub of this process: what arrives, what a refusal says, and where the token is not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants, get_session

from fake_hub import TOKEN, Hub, running
from finished_runs import change, make
from tastemaker.exports import card, hub
from tastemaker.exports.finished import Finished

RECORDS = {"README.md", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "before_after.png", "curve.svg"}
# The hub's client hands files to its HTTP library in a way that this one advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(monkeypatch) as there:
        yield there


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what arrives


def test_a_lora_arrives_in_one_commit(far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "run")
    pushed = hub.push(folder, "jane/taste")
    assert pushed == (f"{far.address}/jane/taste", f"on the hub: {far.address}/jane/taste")
    (files,) = far.commits
    assert set(files) == RECORDS | {"pytorch_lora_weights.safetensors"}
    for name in ("README.md", "metrics.jsonl", "evaluations.jsonl", "before_after.png", "config.yaml"):
        assert files[name] == (folder / name).read_bytes(), name
    assert files["pytorch_lora_weights.safetensors"] == b"weights"
    assert b'pipe.load_lora_weights("jane/taste")' in files["README.md"]
    assert b"evaluation on animals_heldout" in files["curve.svg"]
    assert far.messages[0].startswith("ddpo on jpeg_compressibility") and far.repos == {"jane/taste": False}
    assert f"Bearer {TOKEN}" in far.tokens and TOKEN not in "".join(capfd.readouterr())
    assert not [name for name, found in contents(folder).items() if TOKEN.encode() in found]


def test_a_whole_network_arrives_as_a_pipeline_without_paths(far: Hub, tmp_path: Path) -> None:
    prompts = "/home/jane/" + "long/" * 30 + "prompts.txt"
    folder = make(
        tmp_path, lora=None, model="/home/jane/base", prompts=prompts, judged=f"{prompts} (the training ones)"
    )
    assert hub.push(folder, "jane/whole").url
    (files,) = far.commits
    parts = {"model_index.json", "unet/config.json", "unet/model.safetensors", "vae/config.json"}
    assert set(files) == RECORDS | parts | {"tokenizer/vocab.json"}
    assert json.loads(files["unet/config.json"]) == {"_name_or_path": "base"}
    assert files["tokenizer/vocab.json"] == b'["/home"]'
    assert not [name for name, found in files.items() if b"jane/" in found and name != "README.md"]
    assert b"/home/jane" not in files["README.md"] and b"long/" not in files["README.md"]
    assert yaml.safe_load(files["config.yaml"])["prompts"] == "prompts.txt"


def test_pictures_that_are_not_there_are_not_missed(far: Hub, tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "before_after.png").unlink()
    (folder / "curve.svg").unlink()
    assert hub.push(folder, "jane/taste").url
    assert set(far.commits[0]) == RECORDS - {"before_after.png", "curve.svg"} | {"pytorch_lora_weights.safetensors"}
    assert b"before_after" not in far.commits[0]["README.md"] and b"curve" not in far.commits[0]["README.md"]


def test_without_a_name_it_is_the_folders_in_ones_own_account(far: Hub, tmp_path: Path) -> None:
    pushed = hub.push(make(tmp_path / "my  run--1."), private=True)
    assert pushed.url == f"{far.address}/jane/my-run-1" and far.repos == {"jane/my-run-1": True}
    assert b"# jane/my-run-1" in far.commits[0]["README.md"]


def test_an_edited_card_arrives_as_it_was_edited(far: Hub, tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = card.write(folder)
    path.write_text("---\nlicense: mit\n---\nmine\n")
    assert hub.push(folder, "jane/taste").url
    assert far.commits[0]["README.md"] == b"---\nlicense: mit\n---\nmine\n"


def test_the_same_run_is_pushed_again(far: Hub, tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert hub.push(folder, "jane/taste").url and hub.push(folder, "jane/taste").url
    assert len(far.commits) == 2 and far.commits[0] == far.commits[1]


# ---- what is refused before the hub is asked


@pytest.mark.parametrize(
    "name", ["a b", "a/b/c", "https://huggingface.co/a/b", "", "-a", "a/b.", "a--b", "a.git", "a/.b", "a" * 97, "ä/b"]
)
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^hub_model_id is .*; it is owner/name"):
        hub.check_name(name, key="hub_model_id")


@pytest.mark.parametrize("name", ["a/b", "a", "Jane-1/my_run.v2"])
def test_a_name_that_can_be_one_passes(name: str) -> None:
    assert hub.check_name(name) == name


def test_what_cannot_be_shared_is_refused_before_anything_is_sent(far: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        hub.push(make(tmp_path / "half", iterations=1), "jane/taste")
    with pytest.raises(ValueError, match="--hub_model_id is 'a b'"):
        hub.push(make(tmp_path / "whole"), "a b")
    assert far.asked == []


@pytest.mark.parametrize("linked", ["lora/pytorch_lora_weights.safetensors", "before_after.png", "README.md"])
def test_a_link_out_of_the_folder_is_not_followed(far: Hub, tmp_path: Path, linked: str) -> None:
    folder = make(tmp_path / "run")
    (tmp_path / "private").write_text("private")
    (folder / linked).unlink(missing_ok=True)
    (folder / linked).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=f"{linked} is a link out of the run's folder"):
        hub.push(folder, "jane/taste")
    assert far.asked == []


def test_a_linked_folder_inside_a_pipeline_is_not_followed(far: Hub, tmp_path: Path) -> None:
    folder = make(tmp_path / "run", lora=None)
    (tmp_path / "private").mkdir()
    (folder / "pipeline" / "more").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="more is a link out"):
        hub.push(folder, "jane/taste")
    assert far.asked == []


def test_what_is_meant_to_be_private_does_not_go_where_it_is_public(far: Hub, tmp_path: Path) -> None:
    far.repos["jane/taste"] = False
    pushed = hub.push(make(tmp_path), "jane/taste", private=True)
    assert pushed.url is None and "is there already and public" in pushed.message and far.commits == []
    assert pushed.message.endswith("--hub_model_id jane/taste --private")


# ---- refusals of the hub and the network


def refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The message of a push that fails; nothing of the folder has changed, and the token is nowhere."""
    before = contents(folder)
    pushed = hub.push(folder, "jane/taste")
    said, after = capfd.readouterr(), contents(folder)
    assert pushed.url is None
    assert {name: found for name, found in after.items() if name != "README.md"} == before
    assert "README.md" in after and not [name for name, found in after.items() if TOKEN.encode() in found]
    assert TOKEN not in pushed.message + said.out + said.err
    first, command = pushed.message.splitlines()
    assert command == f"  tastemaker push '{folder}' --hub_model_id jane/taste"
    assert first.startswith("the push to the hub failed: ") and f"all is in {folder}" in first
    return first


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("/api/repos/create", 401, "it does not accept the token (401: not for (removed))"),
        ("/api/repos/create", 403, "the token may not write there (403: not for"),
        ("/api/repos/create", 404, "there is no such place, or the token may not see it (404: not for"),
        ("/api/repos/create", 500, "the hub failed (500: not for"),
        ("/preupload/", 403, "the token may not write there (403: not for"),
        ("/blobs/", 403, "to the Hub: the token may not write there (403: not for"),
        ("/commit/", 401, "it does not accept the token (401: not for"),
        ("/commit/", 500, "the hub failed (500: not for"),
    ],
)
def test_a_refusal_is_a_message_without_the_token(
    far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], where: str, status: int, said: str
) -> None:
    # after a refusal to create it, the client looks whether it is there already
    far.refuse = {where: status, "/api/models/jane/taste": status} if "create" in where else {where: status}
    assert said in refused(make(tmp_path / "my run"), capfd)
    assert far.commits == []


@pytest.mark.parametrize(("token", "says"), [("a word", "not {token}"), (TOKEN, "not hf_" + "y" * 34)])
def test_a_token_of_another_form_or_another_token_is_not_repeated(
    far: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    far.refuse, far.says = {"/": 403}, says
    assert "(403: not (removed))" in hub.push(make(tmp_path), "jane/taste").message


def test_a_hub_that_is_not_there_is_a_message(
    far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "onnection refused" in refused(make(tmp_path / "my run"), capfd)


def test_offline_is_a_message(
    far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(make(tmp_path / "my run"), capfd)
    assert far.asked == []


def test_no_token_is_a_message(
    far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_google_colab", lambda: None)
    assert "no token is to be found" in refused(make(tmp_path / "my run"), capfd)
    assert far.asked == []


def test_a_hub_that_does_not_answer_is_given_up(
    far: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ASKING", 0.2)
    far.silent = threading.Event()
    before = get_session().timeout
    assert "timed out" in refused(make(tmp_path / "my run"), capfd)
    assert get_session().timeout == before
    far.silent.set()


def test_an_answer_that_is_none_is_a_message(far: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a captive portal, with status 200."""
    monkeypatch.setattr(Hub, "address", "")
    monkeypatch.setattr("fake_hub.Handler.serve", lambda *_: (200, "<html>log in</html>"))
    pushed = hub.push(make(tmp_path, rewards={"r": change()}), "jane/taste")
    said = "the push to the hub failed: what answers there is no hub, but maybe a network's page to log in (TypeError: "
    assert pushed.url is None and pushed.message.startswith(said)


def test_a_mistake_of_ours_is_not_taken_for_a_refusal(
    far: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both times: before the hub is asked, and with the name that the hub gave the repository."""
    render, collect = card.render, hub._files
    folder = make(tmp_path)

    def mistaken(run: Finished, repo: str | None = None) -> str:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(card, "render", mistaken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        hub.push(folder, "jane/taste")
    assert far.asked == []
    monkeypatch.setattr(card, "render", lambda run, repo=None: mistaken(run) if repo else render(run))
    with pytest.raises(ZeroDivisionError, match="ours"):
        hub.push(folder, "jane/taste")
    monkeypatch.setattr(card, "render", render)
    monkeypatch.setattr(hub, "_files", lambda run: mistaken(run) if far.repos else collect(run))
    with pytest.raises(ZeroDivisionError, match="ours"):
        hub.push(folder, "jane/taste")
    assert far.commits == [] and far.repos == {"jane/taste": False}
