"""A finished run on the Hugging Face hub: weights, card and records in one commit. The token stays with its library.

A push that fails takes nothing away: the run's folder is complete before the hub is asked, and stays so.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tastemaker import __version__
from tastemaker.exports import card
from tastemaker.exports.finished import Finished, Public
from tastemaker.folder import CONFIG
from tastemaker.reports import secrets
from tastemaker.reports.curve import learning_curve

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PICTURE, CURVE = "before_after.png", "curve.svg"
ORIGINS = ("_name_or_path", "name_or_path")  # what diffusers and transformers call the folder a part was loaded from
RECORDS = ("metrics", "evaluations")
NAME = re.compile(r"((?!-|\.)[A-Za-z0-9._-]{1,96}(?<!-|\.)/)?(?!-|\.)[A-Za-z0-9._-]{1,96}(?<!-|\.)")
ASKING, SENDING = 15.0, 120.0  # seconds without a byte after which the hub is given up
MEANINGS = {
    401: "it does not accept the token",
    402: "the account's plan does not allow it",
    403: "the token may not write there",
    404: "there is no such place, or the token may not see it",
    413: "the files are too large for the account",
    429: "too many requests, try again later",
}


class Pushed(NamedTuple):
    """What became of a push."""

    url: str | None  # where the model is; None when it did not get there
    message: str  # for the user


class _RefusedError(Exception):
    """The hub or the network said no; the reason, without a token."""


def check_name(name: str, key: str = "--hub_model_id") -> str:
    """A name on the hub, `owner/name` or `name` in one's own account, or a ValueError that names `key`."""
    if not NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(
            f"{key} is {name!r}; it is owner/name, or a name alone in your own account: letters, digits, `-`, `_` and "
            "`.`, at most 96 of them, no `--` or `..`, none of `-.` at the ends, and no `.git`."
        )
    return name


def push(folder: str | Path, repo: str | None = None, *, private: bool | None = None) -> Pushed:
    """Put a finished run on the hub. Whatever the hub or the network does is an answer, not an exception.

    repo: owner/name; a name alone, or none for that of the folder, is one in the account of the token.
    private: make it private, or public; None leaves it to the account's settings. What is there is not changed.
    Errors: ValueError, before anything is sent, when the run has not ended or the name cannot be one.
    """
    run = Finished.read(folder)
    asked = check_name(repo) if repo is not None else _name_of(run)
    card.write(run)
    list(_files(run))  # a link out of the folder is refused before anything is made on the hub
    try:
        return Pushed(url := _push(run, asked, private), f"on the hub: {url}")
    except _RefusedError as refused:  # the run is complete all the same
        command = ["tastemaker", "push", str(run.folder), "--hub_model_id", asked, *["--private"] * (private is True)]
        return Pushed(
            None,
            f"the push to the hub failed: {refused}. Nothing is lost, all is in {run.folder}; to push it "
            f"later:\n  {shlex.join(command)}",
        )


def _push(run: Finished, asked: str, private: bool | None) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    api = HfApi(library_name="tastemaker", library_version=__version__)
    with _asking(ASKING):
        if not get_token():
            raise ConnectionError("no token is to be found (`hf auth login`, or the variable HF_TOKEN)")
        made = api.create_repo(asked, private=private, exist_ok=True)
        repo = str(made.repo_id)
        if private:
            _need_private(api, repo)
    # The work of this machine again: a mistake in it is not the hub's refusal.
    card.write(run, repo)
    algorithm, reward = run.settings["algorithm"]["name"], run.evaluations[-1]["reward"]
    files = [CommitOperationAdd(name, content) for name, content in _files(run)]
    with _asking(SENDING):
        api.create_commit(repo, files, commit_message=f"{algorithm} on {next(iter(reward))}, Tastemaker {__version__}")
    return str(made)


def _need_private(api: HfApi, repo: str) -> None:
    """An older repository keeps its visibility: what was meant to be private must not end up in a public one."""
    if api.model_info(repo, timeout=ASKING).private is not True:
        raise PermissionError(
            f"{repo} is there already and public, and --private does not change that: name another, or make it private "
            "in its settings"
        )


def _files(run: Finished) -> Iterator[tuple[str, Path | bytes]]:
    """(path on the hub, file or content) of all that is pushed, and of nothing else."""
    yield card.README, _inside(run, run.folder / card.README)
    yield CONFIG, run.config.encode()
    for kind in RECORDS:
        yield f"{kind}.jsonl", run.lines(kind)
    if (run.folder / PICTURE).exists():
        yield PICTURE, _inside(run, run.folder / PICTURE)
    if (run.folder / CURVE).exists():  # drawn again, for its legend names the prompts, maybe by a path and cut short
        reward = next(iter(run.evaluations[-1]["reward"]))
        yield CURVE, learning_curve(run.metrics, run.evaluations, reward).encode()
    if run.weights.is_file():
        yield run.weights.name, _inside(run, run.weights)
        return
    for path in sorted(run.weights.rglob("*")):
        place = path.relative_to(run.weights)
        if path.is_dir() and not path.is_symlink() or any(part.startswith(".") for part in place.parts):
            continue
        source = _inside(run, path)
        yield place.as_posix(), _without_paths(run, source) if path.suffix == ".json" else source


def _inside(run: Finished, path: Path) -> Path:
    """The file itself, which lies in the run's folder also when links are followed."""
    if not path.resolve().is_relative_to(run.folder.resolve()):
        raise ValueError(f"{path} is a link out of the run's folder, and is not followed: copy the file there.")
    return path


def _without_paths(run: Finished, path: Path) -> Path | bytes:
    """A model's config without the folder that it was loaded from; any other file as it is."""
    found, public = json.loads(path.read_bytes()), Public(run.folder, {})
    named = [key for key in ORIGINS if isinstance(found, dict) and isinstance(found.get(key), str)]
    short = {key: public.text(found[key]) for key in named}
    return (json.dumps({**found, **short}, indent=2) + "\n").encode() if short else path


def _name_of(run: Finished) -> str:
    """The folder's name as the hub allows it."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", run.name)))
    return check_name(plain.removesuffix(".git")[:96].strip("-.") or "tastemaker-run")


@contextmanager
def _asking(seconds: float) -> Iterator[None]:
    """Calls of the hub: whatever they raise is its refusal, and no single read or write takes longer than this.

    By itself the hub's client waits for ever. Errors: _RefusedError.
    """
    from huggingface_hub import get_session

    client = get_session()
    before, client.timeout = client.timeout, seconds
    try:
        yield
    except Exception as error:  # of HTTP, sockets, the uploader's own, answers that are no JSON
        raise _RefusedError(_reason(error)) from error
    finally:
        client.timeout = before


def _reason(error: BaseException) -> str:
    """Why, on one line, and without a token, also where a server sends it back."""
    from huggingface_hub import get_token

    cause: BaseException | None = error
    said: list[str] = []
    while cause is not None:  # the uploader wraps what it met
        status = getattr(getattr(cause, "response", None), "status_code", None)
        text = _first_line(getattr(cause, "server_message", None) if status else str(cause) or type(cause).__name__)
        if isinstance(cause, TypeError | LookupError | AttributeError | json.JSONDecodeError):
            text = (
                f"what answers there is no hub, but maybe a network's page to log in ({type(cause).__name__}: {text})"
            )
        said.append(f"{MEANINGS.get(status, 'the hub failed')} ({status}{text and ': '}{text})" if status else text)
        cause = None if status else cause.__cause__
    text = ": ".join(dict.fromkeys(said))
    token = get_token()
    text = text.replace(token, secrets.REMOVED) if token else text
    return secrets.text(text)[:300].rstrip(".")


def _first_line(text: str | None) -> str:
    return next((line.strip().rstrip(".") for line in (text or "").splitlines() if line.strip()), "")
