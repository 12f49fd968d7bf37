"""Which files make one table: a file, several, a pattern, or a folder of parts as Spark, Dask and Hive write them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from llmd4rec.errors import DataError

#: Folders of tables whose files alone do not say which rows are still there.
_MANAGED = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
#: Beside the parts and no part of the table.
_BESIDE = (".crc", ".md", ".sha256", ".md5", ".pbtxt", ".metadata")
_NAMED = 5

#: A file, and the columns that the names of its folders give.
Part = tuple[Path, dict[str, str | None]]


def find_parts(given: Path | str | Sequence[Path | str]) -> list[Part]:
    """The files of a table, in the order given, those of a folder or pattern in the natural order of their names.

    Raises:
        DataError: there is none, or a folder belongs to a table format of its own.
    """
    several = [given] if isinstance(given, Path | str) else list(given)
    if not several:
        raise DataError("no file was given", "Give at least one.")
    parts = [part for one in several for part in _of_one(Path(one))]
    known: set[Path] = set()
    for path, _ in parts:
        if path.resolve() in known:
            raise DataError(f"{path} is given twice", "Give each file once.")
        known.add(path.resolve())
    if len({tuple(fixed) for _, fixed in parts}) > 1:
        raise DataError(
            f"the folders of {parts[0][0]} and of other files name different columns", "Give one level of folders."
        )
    return parts


def _of_one(path: Path) -> list[Part]:
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return [(path, {})]
    if glob.has_magic(str(path)):
        found = sorted((Path(each) for each in glob.glob(str(path), recursive=True)), key=_natural)
        if found:
            return [part for each in found for part in _of_one(each)]
        raise DataError(f"no file matches {path}", "Check the pattern; quote it, so that the shell leaves it alone.")
    raise DataError(f"{path} does not exist", "Check the path.")


def _of_folder(folder: Path) -> list[Part]:
    found: list[Path] = []
    for at, folders, files in os.walk(folder):
        managed = next((name for name in folders if name in _MANAGED), None)
        if managed is not None or ("metadata" in folders and "data" in folders):
            kind = _MANAGED.get(managed or "", "Iceberg")
            raise DataError(
                f"{folder} is a folder of {kind}, whose files also hold rows that were deleted or replaced",
                "Export the table as Parquet first, and give that.",
            )
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in files:
            path = Path(at, name)
            hidden = name.startswith((".", "_")) or name.lower().endswith(_BESIDE)
            if not hidden and path.stat().st_size:  # Spark writes parts without a byte
                found.append(path)
    if not found:
        raise DataError(f"{folder} is a folder without a file to read", "Name a file, or a folder of parts.")
    return [(path, _fixed(path, folder)) for path in sorted(found, key=_natural)]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts `part-10` behind `part-9`."""
    return [(0, int(each), "") if each.isdecimal() else (1, 0, each) for each in re.split(r"(\d+)", str(path)) if each]


def _fixed(path: Path, folder: Path) -> dict[str, str | None]:
    """The columns that folders called `name=value` between the two give."""
    pairs = [name.split("=", 1) for name in path.relative_to(folder).parent.parts if "=" in name]
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, value in pairs}


def name_of(given: Path | str | Sequence[Path | str], parts: Sequence[Part]) -> str:
    """What messages call the table."""
    if isinstance(given, Path | str):
        return str(given) if len(parts) == 1 and not Path(given).is_dir() else f"{given} ({len(parts)} files)"
    return str(given[0]) if len(parts) == 1 else f"{given[0]} and {len(parts) - 1} more"


def order_of(parts: Sequence[Part]) -> str:
    """The files in their order, the middle left out where there are many."""
    names = [path.name for path, _ in parts]
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], "…", names[-1]]
    return ", ".join(names)
