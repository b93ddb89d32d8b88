"""`Kept`: answers on disk, so that the same picture is not judged twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any


class Kept:
    """A folder of answers, a small file each; without a folder nothing is kept. A damaged file counts as none."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser() if folder else None

    @staticmethod
    def key(*parts: Any) -> str:
        """The name of what was asked: any change of a part is another."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Any:
        """What was kept, or None."""
        if self.folder is None:
            return None
        try:
            return json.loads(self._path(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, key: str, found: Any) -> None:
        """Keeps an answer, whole or not at all: several processes may write the same."""
        if self.folder is None:
            return
        path = self._path(key)
        made = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(json.dumps(found), encoding="utf-8")
            os.replace(made, path)
        except OSError as error:  # a full disk costs the next run a question, and this one nothing
            warnings.warn(f"the answers of judges are not kept in {self.folder}: {error.strerror}", stacklevel=2)
            made.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key[2:]}.json"
