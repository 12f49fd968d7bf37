"""Writing files so that nothing half-written is ever left behind or mistaken for the real thing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmd4rec.errors import DataError, LLMD4RecError


@contextlib.contextmanager
def _clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into an error a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LLMD4RecError(
                f"the disk is full: cannot write {path}", "Free some space, then run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise LLMD4RecError(
                f"no permission to write {path}", "Choose another folder or change its permissions."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
            raise LLMD4RecError(
                f"cannot write {path}: {error.strerror}", "Choose another path: something else is there already."
            ) from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, removes it on any failure."""
    path = Path(path)
    with _clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)  # after the writing: some libraries make the file anew, readable by nobody else
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` on success, removes it on any failure.

    Raises:
        DataError: `path` exists, is not an empty folder, and `replace` is false.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())) and not replace:
        raise DataError(f"{path} already exists", "Choose another folder, or pass --overwrite.")
    with _clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            if path.exists():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed while writing has left anywhere under `folder`."""
    for leftover in list(Path(folder).rglob(".*.part")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented, key-ordered-as-given JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: it is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", "Check the folder's path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", "The file was altered or cut; make it again.") from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir(*parts: str) -> Path:
    """A folder under the user's cache folder (`LLMD4REC_CACHE` overrides it), created if missing."""
    import platformdirs

    root = os.environ.get("LLMD4REC_CACHE") or platformdirs.user_cache_dir("llmd4rec")
    path = Path(root, *parts)
    with _clear_disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
