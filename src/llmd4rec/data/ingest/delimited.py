"""Where the fields and rows of separated text end, under one way of reading quotation marks and backslashes.

Everything is worked out for blocks of megabytes at once, so that a file can be looked through in about the time that it
takes to read it. What is found says whether the way fits the file, and where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

QUOTE, ESCAPE, NEWLINE, RETURN = b'"\\\n\r'
_BLOCK, _TRIES = 1 << 18, 1000
_BOM = b"\xef\xbb\xbf"

Bytes = NDArray[np.uint8]
Places = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """One way to read quotation marks and backslashes.

    Args:
        name: what the option calls it.
        marks: whether a field may be quoted at all.
        doubled: whether two marks inside a quoted field are one.
        escapes: where a backslash makes the next mark, backslash, separator or line end part of the text.
        lenient: whether a mark that can neither open nor close a field is part of the text; else it is an error.
    """

    name: str
    marks: bool = True
    doubled: bool = True
    escapes: Literal["no", "quoted", "anywhere"] = "no"
    lenient: bool = False


@dataclass(frozen=True)
class Delimiters:
    """What is known of a text before its quoting is.

    Args:
        separator: the byte between fields.
        eol: the byte that ends a line.
        columns: how many fields a row has; None: as many as the first row.
    """

    separator: int
    eol: int = NEWLINE
    columns: int | None = None


@dataclass(frozen=True)
class Parsed:
    """One block under one reading.

    Args:
        quotes: places of the marks that a backslash does not escape.
        opening, closing, literal: which of them open or close a field, or are text that is written once.
        bare: which of them stand in a field that is not quoted.
        bounds: places of the separators and line ends between fields.
        inner: places of those inside quoted fields.
        escaped: places of what a backslash escapes.
        strays: places of the marks that no strict reading allows.
        doubtful: places of the marks after a separator inside a quoted field: a new field may begin there.
        first, after: place of the first mark of each run of them, and whether a field is open behind it.
        inside: whether a field is open at the end.
    """

    quotes: Places
    opening: Flags
    closing: Flags
    literal: Flags
    bare: Flags
    bounds: Places
    inner: Places
    escaped: Places
    strays: Places
    doubtful: Places
    first: Places
    after: Flags
    inside: bool


def blocks(path: Path, eol: int) -> Iterator[bytes]:
    """A file in blocks of whole lines, without a byte order mark; the last line is ended if it is not."""
    end, rest = bytes([eol]), b""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        while read := file.read(_BLOCK):
            rest += read
            cut = rest.rfind(end) + 1
            for _ in range(_TRIES):  # a line end that may be escaped is no good place to cut
                if cut < 2 or rest[cut - 2] != ESCAPE:
                    break
                cut = rest.rfind(end, 0, cut - 1) + 1
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest if rest.endswith(end) else rest + end


def parse(block: Bytes, reading: Reading, form: Delimiters, inside: bool) -> Parsed:
    """Takes a block of whole lines apart; `inside` says whether it begins inside a quoted field."""
    wanted = np.zeros(256, dtype=np.bool_)
    wanted[[form.separator, form.eol, *([QUOTE] if reading.marks else [])]] = True
    places = np.flatnonzero(wanted[block])
    escaped = np.zeros(0, dtype=np.intp)
    if reading.escapes != "no":
        behind_escape = _escaped(block)
        hit = behind_escape[places]
        if reading.escapes == "quoted":
            hit &= block[places] == QUOTE
            escaped, places = places[hit], places[~hit]
        else:
            places = places[~hit]
            wanted[RETURN] = True
            escaped = np.flatnonzero(behind_escape & wanted[block])
    is_quote = block[places] == QUOTE if reading.marks else np.zeros(len(places), dtype=np.bool_)
    quotes, bounds = places[is_quote], places[~is_quote]
    none: Any = np.zeros(0, dtype=np.intp)
    if not len(quotes):
        outside, inner = (none, bounds) if inside else (bounds, none)
        empty = np.zeros(0, dtype=np.bool_)
        stray_ones = escaped if reading.escapes == "quoted" and not inside else none
        return Parsed(
            quotes, empty, empty, empty, empty, outside, inner, escaped, stray_ones, none, none, empty, inside
        )  # fmt: skip

    bound = np.zeros(len(block) + 1, dtype=np.bool_)
    bound[bounds] = True
    starts = bound[quotes - 1] | (quotes == 0)  # the last place is never a bound, so -1 is none
    ends = bound[quotes + 1]
    if form.eol == NEWLINE:
        behind = np.minimum(quotes + 2, len(block) - 1)
        ends |= (block[np.minimum(quotes + 1, len(block) - 1)] == RETURN) & (block[behind] == NEWLINE)

    run = np.concatenate([[0], np.flatnonzero(np.diff(quotes) != 1) + 1])
    stop = np.concatenate([run[1:], [len(quotes)]])
    length = stop - run
    start, end, odd = starts[run], ends[stop - 1], length % 2 == 1
    one = odd if reading.doubled else length == 1
    to_in = start & ~end
    toggle = start & end & one
    to_out = end & odd & ~start if reading.doubled else end & ~toggle
    after = _states(to_in, to_out, toggle, inside)
    before = np.concatenate([[inside], after[:-1]])

    opens = ~before & start
    closes = before & ~after | opens & ~after
    opening, closing, literal, bare, stray = (np.zeros(len(quotes), dtype=np.bool_) for _ in range(5))
    opening[run[opens]] = True
    closing[stop[closes] - 1] = True
    bare_run = ~before & ~start
    bare[:] = np.repeat(bare_run, length)
    if reading.doubled:
        left = length - opens - closes
        stray[(run + opens)[(left % 2 == 1) & ~bare_run]] = True
        literal = stray | bare
    else:
        literal = ~opening & ~closing
        stray = literal & ~bare
    doubtful = start & (before | toggle) & one
    begins = np.zeros(len(places), dtype=np.intp)
    begins[np.flatnonzero(is_quote)[run]] = 1
    index = np.cumsum(begins)[~is_quote] - 1
    within = np.where(index >= 0, after[np.maximum(index, 0)], inside)
    strays = quotes[stray | bare]
    if reading.escapes == "quoted":  # a program that escapes marks in quotes alone quotes what holds one
        strays = np.sort(np.concatenate([strays, escaped[~inside_at(escaped, quotes[run], after, inside)]]))
    return Parsed(
        quotes, opening, closing, literal, bare, bounds[~within], bounds[within], escaped,
        strays, quotes[run[doubtful]], quotes[run], after, bool(after[-1]),
    )  # fmt: skip


def same_fields(path: Path, one: Reading, other: Reading, form: Delimiters) -> bool:
    """Whether all fields of a file end at the same places under two readings."""
    inside = (False, False)
    for raw in blocks(path, form.eol):
        if inside == (False, False) and QUOTE not in raw and ESCAPE not in raw:
            continue
        block = np.frombuffer(raw, dtype=np.uint8)
        first, second = parse(block, one, form, inside[0]), parse(block, other, form, inside[1])
        inside = first.inside, second.inside
        if not np.array_equal(first.bounds, second.bounds):
            return False
    return True


def inside_at(places: Places, first: Places, after: Flags, inside: bool) -> Flags:
    """Which places are inside a quoted field, from the runs of marks before them."""
    if not len(first):
        return np.full(len(places), inside, dtype=np.bool_)
    index = np.searchsorted(first, places) - 1
    return np.asarray(np.where(index >= 0, after[np.maximum(index, 0)], inside), dtype=np.bool_)


def _states(to_in: Flags, to_out: Flags, toggle: Flags, inside: bool) -> Flags:
    """Whether a field is open behind each event: what the last setting event says, turned by the toggles since."""
    at = np.maximum.accumulate(np.where(to_in | to_out, np.arange(len(to_in)), -1))
    turns = np.cumsum(toggle)
    base = np.where(at >= 0, to_in[np.maximum(at, 0)], inside)
    since: NDArray[np.intp] = turns - np.where(at >= 0, turns[np.maximum(at, 0)], 0)
    return np.asarray(base ^ (since % 2 == 1), dtype=np.bool_)


def escape_runs(block: Bytes) -> tuple[Places, Places]:
    """The place of the first backslash of each run of them, and the lengths."""
    places = np.flatnonzero(block == ESCAPE)
    if not len(places):
        return places, places
    first = np.concatenate([[0], np.flatnonzero(np.diff(places) != 1) + 1])
    return places[first], np.diff(np.concatenate([first, [len(places)]]))


def _escaped(block: Bytes) -> Flags:
    """Which bytes stand behind an odd number of backslashes."""
    first, length = escape_runs(block)
    hit = np.zeros(len(block) + 1, dtype=np.bool_)
    hit[(first + length)[length % 2 == 1]] = True
    return hit[:-1]


def rewritten(raw: bytes, reading: Reading, form: Delimiters, inside: bool, pairs: bool) -> tuple[bytes, bool]:
    """A block as text in which marks are doubled and nothing is escaped, and whether it ends inside a field.

    Args:
        raw: a block of whole lines.
        pairs: whether two backslashes, where they may escape, are one.
    """
    block = np.frombuffer(raw, dtype=np.uint8).copy()
    parsed = parse(block, reading, form, inside)
    times = np.ones(len(block), dtype=np.int64)
    times[parsed.quotes[parsed.literal]] = 2
    # Fields that are not quoted and hold what must be: their first and last byte get a mark beside them.
    wrap = parsed.quotes[parsed.bare]
    if reading.escapes != "no":
        open_ = inside_at(parsed.escaped, parsed.first, parsed.after, inside)
        is_mark = block[parsed.escaped] == QUOTE  # inside of quotes, nothing but a mark needs a backslash
        decoded = parsed.escaped[open_ & is_mark | ~open_ & (reading.escapes == "anywhere")]
        is_mark = block[decoded] == QUOTE
        block[decoded[is_mark] - 1] = QUOTE  # the backslash becomes the other mark
        times[decoded[~is_mark] - 1] = 0
        plain = parsed.escaped[~open_]
        if reading.escapes == "quoted":  # outside of quotes a backslash is text, and so is the mark behind it
            times[plain] = 2
        wrap = np.concatenate([wrap, plain])
        if pairs:
            start, length = escape_runs(np.frombuffer(raw, dtype=np.uint8))
            if reading.escapes == "quoted":
                in_field = inside_at(start, parsed.first, parsed.after, inside)
                start, length = start[in_field], length[in_field]
            for step in range(int(length.max(initial=0)) // 2):
                times[(start + 2 * step)[length >= 2 * step + 2]] = 0
    out = np.repeat(block, times)
    if len(wrap):
        field_of = np.unique(np.searchsorted(parsed.bounds, wrap))
        begin = np.where(field_of > 0, parsed.bounds[np.maximum(field_of - 1, 0)] + 1, 0)
        finish = parsed.bounds[field_of]
        returns = (block[finish - 1] == RETURN) & (block[finish] == NEWLINE) & (form.eol == NEWLINE)
        moved = np.concatenate([[0], np.cumsum(times)])
        at = np.concatenate([moved[begin], moved[finish - returns]])
        out = np.insert(out, at, QUOTE)
    return out.tobytes(), parsed.inside
