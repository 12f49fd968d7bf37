"""Folders in which something is written before it has its name, and what is left of them when a process is killed.

Whoever writes holds a lock on such a folder until it is done. The system frees the lock when the process ends, however
it ends. So a folder without a lock belongs to nobody, and the next one who writes beside it removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: In the names of our own folders, so that nobody else's `.part` is taken for one.
MARK = "llmd4rec_"
#: Where there are no such locks (Windows, some network disks), what is older than this, in seconds, is left over.
OLD = 86_400


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which only this user can read, and which is removed at the end.

    What killed processes have left there is removed first.
    """
    _remove_if_left(entry.path for entry in _entries(path.parent) if _is_ours(entry.name))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.{MARK}", suffix=".part", dir=path.parent))
        handle = _opened(folder)
        # Another process may have found it before it was locked, and be about to remove it.
        if handle is None or (_locked(handle) is not False and folder.exists()):
            break
        os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left anywhere under a folder in which nobody else writes `.part`."""
    _remove_if_left(map(str, list(Path(folder).rglob(".*.part"))))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return list(found)
    return []


def _is_ours(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part") and f".{MARK}" in name


def _remove_if_left(paths: Iterable[str]) -> None:
    for path in paths:
        handle = _opened(path)
        if handle is None:
            if sys.platform == "win32":
                with contextlib.suppress(OSError):
                    if os.stat(path).st_mtime < time.time() - OLD:
                        _delete(path)
            continue
        try:
            free = _locked(handle)
            if free or (free is None and os.fstat(handle).st_mtime < time.time() - OLD):
                _delete(path)  # the lock is held meanwhile
        finally:
            os.close(handle)


def _delete(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _opened(path: Path | str) -> int | None:
    """A handle; None: it is gone, or somebody else's, or this system opens no folders."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _locked(handle: int) -> bool | None:
    """Takes the lock; false: another has it; None: there are no locks here."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
