"""Unpacking gzip and zstandard, and turning other encodings into UTF-8, with truncation noticed.

Compression is told by the content, not the name: files are often renamed. What unpacks to far more than any log does is
refused before it has filled the disk.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from llmd4rec.errors import DataError
from llmd4rec.log import bar

_CHUNK = 1 << 20
#: A block of zstandard may stand for 32,768 times its size, and comes back in one piece.
_ZSTD_CHUNK = 1 << 12
#: What is packed may unpack to so many bytes, or to so many times its size where that is more. Logs reach 20 times.
MOST_BYTES, MOST_TIMES = 1 << 30, 200
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def unpacked(path: Path, folder: Path, encoding: str, most_bytes: int = MOST_BYTES) -> Path:
    """`path` itself if it is plain UTF-8 or binary, else an unpacked, recoded copy in `folder`.

    Args:
        path, encoding: of the file.
        folder: where the copy goes.
        most_bytes: that it may unpack to, however small it is.

    Raises:
        DataError: the file is damaged or cut short, unpacks to far too much, or is not in `encoding`.
    """
    codec = _codec(encoding)
    with path.open("rb") as file:
        magic = file.read(4)
    packed = magic[:2] == _GZIP or magic == _ZSTD
    if not packed and codec == "utf-8" and magic[:2] not in _UTF16:
        return path
    if not packed and magic == b"PAR1":
        return path
    target = folder / re.sub(r"\.(gz|zst|zstd)$", "", path.name)
    with target.open("wb") as out, bar(f"Unpacking {path.name}", path.stat().st_size, "B") as progress:
        recode: Callable[..., bytes] | None = None
        try:
            for block, consumed in _blocks(path, magic, most_bytes):
                if recode is None:
                    recode = _recoder(codec, block)
                out.write(recode(block))
                progress.advance(consumed)
            if isinstance(recode, _Recode):
                out.write(recode(b"", final=True))
        except UnicodeError as error:
            why = getattr(error, "reason", error)
            raise DataError(f"{path} is not in {encoding}: {why}", "Name another --encoding.") from error
    return target


def refuse_encoding(plain: Path, path: Path) -> None:
    """Raises where the file stops being UTF-8."""
    with plain.open("rb") as file:
        for number, line in enumerate(file):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = "the header" if number == 0 else f"row {number}"
                raise DataError(
                    f"{path}, {where}: byte {line[error.start]:#04x} is not UTF-8",
                    "Say which encoding it is, for example --encoding latin-1.",
                ) from error


def limited(
    blocks: Iterator[tuple[bytes, int]], packed: int, where: Path, most_bytes: int = MOST_BYTES
) -> Iterator[tuple[bytes, int]]:
    """The same blocks, as long as they do not add up to far more than `packed` bytes plausibly hold.

    Raises:
        DataError: they do.
    """
    limit, total = max(most_bytes, MOST_TIMES * packed), 0
    for block, consumed in blocks:
        total += len(block)
        if total > limit:
            raise DataError(
                f"{where} unpacks to more than {limit:,} bytes, {total // max(1, packed):,} times its size",
                "No log is packed so tightly. If it is meant to be so, unpack it yourself and give the result.",
            )
        yield block, consumed


def _codec(encoding: str) -> str:
    try:
        found = codecs.lookup(encoding)
        if not found._is_text_encoding:  # such as base64, which turns bytes into bytes
            raise LookupError(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"unknown encoding {encoding!r}", "Common are utf-8, latin-1, cp1252, utf-16.") from error
    return found.name


class _Recode:
    """From one encoding to UTF-8, block by block."""

    def __init__(self, codec: str) -> None:
        self._decoder = codecs.getincrementaldecoder(codec)()

    def __call__(self, block: bytes, final: bool = False) -> bytes:
        return self._decoder.decode(block, final).encode("utf-8")


def _recoder(codec: str, first: bytes) -> Callable[..., bytes]:
    if first[:4] == b"PAR1":
        return bytes
    if first[:2] in _UTF16:
        return _Recode("utf-16")
    return bytes if codec == "utf-8" else _Recode(codec)


def _blocks(path: Path, magic: bytes, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Unpacked blocks, and how many bytes of the file each took."""
    with path.open("rb") as file:
        packed = path.stat().st_size
        if magic[:2] == _GZIP:
            yield from limited(_gunzip(path, file), packed, path, most_bytes)
        elif magic == _ZSTD:
            yield from limited(_unzstd(path, file), packed, path, most_bytes)
        else:
            while block := file.read(_CHUNK):
                yield block, len(block)


def _gunzip(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    at = 0
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(_CHUNK):
                now = file.tell()
                yield block, now - at
                at = now
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _unzstd(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    try:
        while block := file.read(_ZSTD_CHUNK):
            rest = block
            while rest:
                if stream.eof:
                    stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                yield stream.decompress(rest), len(rest)
                rest = stream.unused_data if stream.eof else b""
    except zstandard.ZstdError as error:
        raise _damaged(path, error) from error
    if not stream.eof:
        raise _damaged(path, "it ends too early")


def _damaged(path: Path, why: object) -> DataError:
    return DataError(f"{path} is damaged or cut short: {why}", "Get the file again.")
