"""Writing files so that nothing half-written is ever left behind or mistaken for the real thing.

What is written goes into a neighbour with another name, is flushed to the disk, and only then takes its name; the
folder is flushed behind it. So after a crash, of the program or of the machine, a name stands for all of the old
content or all of the new. What a killed process leaves is removed by the next one that writes there (`leftovers.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import DataError, LLMD4RecError
from llmd4rec.io.leftovers import folder_aside


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into an error a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LLMD4RecError(
                f"the disk is full: cannot write {path}", "Free some space, then run the same command again."
            ) from error
        if error.errno == errno.EFBIG:
            raise LLMD4RecError(
                f"cannot write {path}: files may not be so large here",
                "Raise the limit (ulimit -f) or choose another disk, then run the same command again.",
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


def exchange_names(one: Path, other: Path) -> bool:
    """Swaps the names of two things in a single step; False where the system or the disk cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def atomic_file(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yields an empty file near `path`; renames it to `path` on success, removes it on any failure.

    Args:
        path: where the file is to be.
        keep: where a file that is there already goes, in the same folder; None: it is replaced.
    """
    path = Path(path)
    with clear_disk_errors(path):
        _make_folder(path.parent)
        # In a folder of its own: some libraries write a file beside the one that they are asked for.
        with folder_aside(path) as folder:
            temporary = folder / path.name
            temporary.touch(0o600)
            yield temporary
            temporary.chmod(_mode(0o644))
            _flush(temporary)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            _flush(path.parent)


@contextlib.contextmanager
def atomic_dir(
    path: Path, *, replace: bool = False, exchange: Callable[[Path, Path], bool] = exchange_names
) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` on success, removes it on any failure.

    Args:
        path: where the folder is to be.
        replace: whether one that is there already is replaced.
        exchange: swaps two names in a single step, or says that it cannot.

    Raises:
        DataError: `path` exists, is not an empty folder, and `replace` is false.
    """
    path = Path(path)
    if path.exists() and not _is_empty_folder(path) and not replace:
        raise DataError(f"{path} already exists", "Choose another folder, or pass --overwrite.")
    with clear_disk_errors(path):
        _make_folder(path.parent)
        with folder_aside(path) as temporary:
            yield temporary
            for each in temporary.rglob("*"):
                each.chmod(_mode(0o755 if each.is_dir() else 0o644))
                _flush(each)
            temporary.chmod(_mode(0o755))
            _flush(temporary)
            # Another process may have been faster: what it has put there is replaced only where that was asked for.
            if _is_empty_folder(path):
                path.rmdir()
            if not path.exists() or not replace:
                os.rename(temporary, path)
            elif not exchange(temporary, path):
                remove(path)
                os.rename(temporary, path)
            _flush(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; a folder's name is gone before the first of its files is."""
    path = Path(path)
    if path.is_dir():
        with folder_aside(path) as aside:
            os.rename(path, aside / path.name)
    else:
        path.unlink(missing_ok=True)


def _mode(allowed: int) -> int:
    """`allowed` less what the user's umask takes away: never writable by others, whatever the umask allows."""
    umask = os.umask(0o077)  # it cannot be read without being set
    os.umask(umask)
    return allowed & ~umask


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _make_folder(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _flush(folder.parent)


def _flush(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():  # Windows opens no folders, and some network disks flush none
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented, key-ordered-as-given JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """As `np.save`, whose error on a full disk does not say that the disk is full; not atomic."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data.cast("B") if array.size else b"")


def read_json(path: Path, *, most_bytes: int | None = None, finite: bool = False) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        most_bytes: a larger file is refused; None: any size.
        finite: NaN and infinite numbers, which Python writes and JSON does not have, are refused.

    Raises:
        DataError: it is missing, too large, or no JSON that can be read.
    """
    again = "The file was altered or cut; make it again."
    try:
        if most_bytes is not None and path.stat().st_size > most_bytes:
            raise DataError(f"{path} is larger than {most_bytes:,} bytes", again)
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refused if finite else None)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", "Check the folder's path.") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists in lists in lists
        raise DataError(f"{path} is not valid JSON: {error}", again) from error


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> dict[str, int | str]:
    """By what a file is known again: its size and checksum."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def cache_dir(*parts: str) -> Path:
    """A folder under the user's cache folder (`LLMD4REC_CACHE` overrides it), created if missing."""
    import platformdirs

    root = os.environ.get("LLMD4REC_CACHE") or platformdirs.user_cache_dir("llmd4rec")
    path = Path(root, *parts)
    with clear_disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
