"""What a named public set is: where its files come from, and how they become two tables."""

from __future__ import annotations

import errno
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import polars as pl

from llmd4rec.data.ingest.unpack import MOST_BYTES, limited, unpacked
from llmd4rec.errors import DataError, FetchError
from llmd4rec.io.download import Package, RemoteFile, fetch

#: What the readers of archives raise for one that is damaged.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError)


@dataclass(frozen=True)
class Tables:
    """The tables of a set, in the columns that `prepare` knows by name, rows in the order of the files."""

    interactions: pl.LazyFrame
    items: pl.LazyFrame


class MissingFileError(DataError):
    """A file of a published form is not there; it may be there in another form."""


class Files:
    """Files by name, wherever they lie: in folders, in archives, or each on its own. Use in a `with` statement.

    Args:
        paths: where to look.
        most_bytes: that one of them may unpack to, however small it is.
    """

    def __init__(self, paths: list[Path], most_bytes: int = MOST_BYTES) -> None:
        self._paths, self._most_bytes = paths, most_bytes
        self._scratch = Path(tempfile.mkdtemp(prefix="llmd4rec-"))

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A folder for as long as the files are open."""
        return self._scratch

    def find(self, *names: str) -> Path:
        """The first of the files so named, taken out of its archive if it is in one.

        Raises:
            DataError: there is none of them, or the archive is damaged.
        """
        for name in names:
            for path in self._paths:
                found = self._find_in(path, name)
                if found is not None:
                    return found
        where = ", ".join(map(str, self._paths))
        raise MissingFileError(
            f"{where}: no {' or '.join(names)} in it",
            "Name the folder or the archive that holds the files as they were published.",
        )

    def text(self, *names: str, encoding: str = "utf-8") -> Path:
        """As :meth:`find`, unpacked and in UTF-8."""
        path = self.find(*names)
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        return unpacked(path, folder, encoding, self._most_bytes)

    def _find_in(self, path: Path, name: str) -> Path | None:
        if path.is_dir():
            return next((found for found in sorted(path.rglob(name)) if found.is_file()), None)
        if path.name == name:
            return path
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    members = [m for m in archive.namelist() if PurePosixPath(m).name == name]
                    return self._copy(archive.open(members[0]), name, path) if members else None
            if tarfile.is_tarfile(path):
                with tarfile.open(path) as tar:  # a link is no file, so none leads out of the archive
                    entry = next((m for m in tar if m.isfile() and PurePosixPath(m.name).name == name), None)
                    return None if entry is None else self._copy(tar.extractfile(entry), name, path)
        except _DAMAGED as error:
            raise DataError(f"{path} is damaged or cut short: {error}", "Download it again.") from error
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # the operating system's, of which a full disk is one
                raise
            raise DataError(f"{path} is damaged or cut short: {error}", "Download it again.") from error
        except (RuntimeError, NotImplementedError) as error:  # a password, or a compression that Python does not know
            raise DataError(f"{path} cannot be opened: {error}", "Unpack it yourself and name the folder.") from error
        return None

    def _copy(self, stream: Any, name: str, archive: Path) -> Path:
        """Only the content is taken from an archive; where it lands is not the archive's to say."""
        target = self._scratch / name
        with stream, target.open("wb") as out:
            blocks = iter(lambda: stream.read(1 << 20), b"")
            for block, _ in limited(
                ((block, 0) for block in blocks), archive.stat().st_size, archive, self._most_bytes
            ):
                out.write(block)
        return target


@dataclass(frozen=True)
class Origin:
    """One published form of a set.

    Args:
        files: what to fetch; empty: it must be downloaded by hand.
        read: makes the tables of the files.
    """

    files: tuple[RemoteFile, ...]
    read: Callable[[Files], Tables]


@dataclass(frozen=True)
class Source:
    """A named public set.

    Args:
        name: as on the command line.
        title: what it is.
        licence: a note on its terms.
        origins: published forms, most preferred first.
        notes: what a user should know of the tables made.
        manual: how to get it by hand, where that is the only way.
    """

    name: str
    title: str
    licence: str
    origins: tuple[Origin, ...]
    notes: str = ""
    manual: str = ""

    def attempts(self, from_path: Path | None) -> Iterator[tuple[Files, Origin, str]]:
        """Files, the form to read them in, and where they came from in words; one published form after the other.

        Raises:
            DataError: `from_path` is missing, or the set must be downloaded by hand.
            FetchError: no further origin can be reached; says why for each.
        """
        if from_path is not None:
            if not from_path.exists():
                raise DataError(f"{from_path} does not exist", "Check the path behind --from.")
            for origin in self.origins:
                yield Files([from_path]), origin, from_path.name
            return
        if self.manual:
            raise DataError(f"{self.name} cannot be downloaded by a program", self.manual)
        failures: list[FetchError] = []
        for origin in self.origins:
            try:
                paths = [fetch(file) for file in origin.files]
            except FetchError as error:
                failures.append(error)
                continue
            yield Files(paths), origin, ", ".join(file.name for file in origin.files)
        if failures:
            raise FetchError("\n".join(error.what for error in failures), failures[0].remedy)

    def as_dict(self) -> dict[str, Any]:
        """Everything a person may want to know, ready for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "licence": self.licence,
            "origins": [
                [
                    {
                        "file": file.name,
                        "from": [str(origin) for origin in file.origins],
                        "sha256": file.sha256,
                        "pinned": file.sha256 is not None or all(isinstance(at, Package) for at in file.origins),
                    }
                    for file in origin.files
                ]
                for origin in self.origins
                if origin.files
            ],
            "manual": self.manual or None,
            "notes": self.notes or None,
        }

    def origin_lines(self) -> list[str]:
        """One line per file and origin; the second and later forms begin with `or`."""
        if self.manual:
            return [self.manual]
        lines = []
        for number, origin in enumerate(self.origins):
            for file in origin.files:
                for address in file.origins:
                    pin = file.sha256 or (address.wheel_sha256 if isinstance(address, Package) else None)
                    pinned = f"SHA-256 {pin}" if pin else "checksum not pinned: that of the first download holds"
                    lines.append(f"{'or ' if number else ''}{address} ({pinned})")
        return lines
