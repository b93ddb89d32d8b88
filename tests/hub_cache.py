"""Models in the local cache of the hub, in its exact layout, for tests without a network."""

import hashlib
import shutil
from pathlib import Path


def publish(cache: Path, repository: str, folder: Path, *, revision: str = "main", only: str = "**/*") -> Path:
    """Put the folder's files into the cache as that revision of a repository; the folder of its snapshot."""
    home = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for path in folder.glob(only):
        if path.is_file():
            target = home / "snapshots" / commit / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return home / "snapshots" / commit
