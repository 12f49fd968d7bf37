"""Where the fields and rows of separated text end, under one way of reading quotation marks and backslashes.

Everything is worked out for blocks of megabytes at once, so that a file can be looked through in about the time that it
takes to read it. What is found says whether the way fits the file, and where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

QUOTE, ESCAPE, NEWLINE, RETURN = b'"\\\n\r'
#: Between these a field that begins with a mark is quoted, in every program.
QUOTES_ARE_QUOTES = b",;"
_BLOCK, _TRIES = 1 << 18, 1000
#: So much of a row that is not over yet is kept for the next block.
_MOST_KEPT = 1 << 22
_BOM = b"\xef\xbb\xbf"
#: Of rows with too few fields and of blank ones, so many are remembered.
_MOST_SHORT = 100_000

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
class Form:
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


def parse(block: Bytes, reading: Reading, form: Form, inside: bool) -> Parsed:
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
        strays = np.sort(np.concatenate([strays, escaped[~_inside_at(escaped, quotes[run], after, inside)]]))
    return Parsed(
        quotes, opening, closing, literal, bare, bounds[~within], bounds[within], escaped,
        strays, quotes[run[doubtful]], quotes[run], after, bool(after[-1]),
    )  # fmt: skip


def same_fields(path: Path, one: Reading, other: Reading, form: Form) -> bool:
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


def _inside_at(places: Places, first: Places, after: Flags, inside: bool) -> Flags:
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


@dataclass
class Fit:
    """How well a reading fits a text, gathered block by block.

    Rows are counted from `first_row`, which is 0 where the first of them is a header. A row that has not been found is
    None.

    Args:
        rows: how many there are, with the header.
        width: fields of a row.
        long: the first row with more fields, and how many.
        short: rows with fewer fields, each with how many; blank lines too, which have 0.
        stray, doubtful, bare: the first row with such a mark.
        open: the row whose quoted field is never closed.
        spread: rows over several lines of which each could be a row, the first and how many.
        lines_fit: whether each line of the text could be a row.
        several_lines: how many rows have several lines.
        doubled_in_lines: whether a row of several lines has two marks in a row.
        wrapped: how many quoted fields each column has; only those that need no quotes and are not empty.
        quoted, doubled, needed: whether there is a quoted field, one with two marks in a row, one that needs its quotes.
        pairs_in, pairs_out: columns with two backslashes in a row inside and outside of quotes.
        single_in, single_out: whether there is a single backslash that escapes nothing.
        escaping: whether there is one before a mark, a separator or a line end.
        before_marks: columns with one before a mark.
        doubles, quoted_columns, escaped_columns: columns with two marks in a row inside of quotes, with quoted fields,
            and with escaped marks.
        unbalanced: the first row with a field that begins with a mark and holds an odd number of them.
    """

    reading: Reading
    form: Form
    first_row: int
    rows: int = 0
    width: int = 0
    long: tuple[int, int] | None = None
    short: list[tuple[int, int]] = field(default_factory=list)
    num_short: int = 0
    stray: int | None = None
    doubtful: int | None = None
    open: int | None = None
    spread: tuple[int, int] | None = None
    lines_fit: bool = True
    several_lines: int = 0
    wrapped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    quoted: bool = False
    doubled_in_lines: bool = False
    doubled: bool = False
    needed: bool = False
    pairs_in: set[int] = field(default_factory=set)
    pairs_out: set[int] = field(default_factory=set)
    single_in: bool = False
    single_out: bool = False
    escaping: bool = False
    before_marks: set[int] = field(default_factory=set)
    doubles: set[int] = field(default_factory=set)
    quoted_columns: set[int] = field(default_factory=set)
    escaped_columns: set[int] = field(default_factory=set)
    unbalanced: int | None = None
    _inside: bool = False
    _carried: int = 0
    _skip_blank: bool = True
    _kept: bytes = b""

    def feed(self, raw: bytes) -> None:
        """The next block of whole lines."""
        if self._skip_blank and self.form.columns is None and not self._inside:
            kept = raw.lstrip(b"\r\n")  # blank lines above a header count for nothing
            if not kept:
                return
            raw, self._skip_blank = kept, False
        if self._kept:
            raw, self._kept = self._kept + raw, b""
        if not self._inside and not self._carried and (self._plain(raw) or self._quoted_well(raw)):
            return
        self._slowly(raw)

    def _slowly(self, raw: bytes) -> None:
        block = np.frombuffer(raw, dtype=np.uint8)
        parsed = parse(block, self.reading, self.form, self._inside)
        self._count(block, parsed)
        self._inside = parsed.inside

    def end(self) -> None:
        """After the last block of a file."""
        if self._kept:
            self._slowly(self._kept)
            self._kept = b""
        if self._inside and self.open is None:
            self.open = self.rows + self.first_row
        self._inside, self._carried, self._skip_blank = False, 0, True

    @property
    def sound(self) -> bool:
        """Whether nothing but rows with too few fields speaks against the reading."""
        wrong = self.doubtful if self.reading.lenient else self.stray
        return self.long is None and self.open is None and wrong is None

    @property
    def fits(self) -> bool:
        """Whether every row has as many fields as the first."""
        return self.sound and not self.num_short

    def broken(self) -> tuple[int, int] | None:
        """The first and the last of some rows in a row that are too short by as much as if a line end cut one."""
        run: list[tuple[int, int]] = []
        for row, fields in [*self.short, (-9, 0)]:
            if run and row != run[-1][0] + 1:
                filled = [each for each in run if each[1]]
                if len(filled) > 1 and sum(count - 1 for _, count in filled) == self.width - 1:
                    return filled[0][0], filled[-1][0]
                run = []
            run.append((row, fields))
        return None

    # ---- a block -------------------------------------------------------------------------------------------------
    def _plain(self, raw: bytes) -> bool:
        """Counts a block without marks and backslashes whose rows are all of one width, which is nearly every one."""
        form = self.form
        kept = bytes([form.separator, form.eol, QUOTE, ESCAPE])
        marks = raw.translate(None, bytes(set(range(256)) - set(kept)))
        width = self.width or form.columns or marks.find(form.eol) + 1
        row = bytes([form.separator]) * (width - 1) + bytes([form.eol])
        rows = len(marks) // width
        if marks != row * rows or (width == 1 and _has_blank(raw, form.eol)):
            return False
        self.rows, self.width = self.rows + rows, width
        return True

    def _quoted_well(self, raw: bytes) -> bool:
        """Counts a block of rows of one width in which all marks are doubled or around fields.

        Only between commas, where it does not matter which columns are quoted; what it does not take, `_count` does.
        """
        form = self.form
        strict = self.reading.doubled and self.reading.marks and not self.reading.lenient
        if not self.width or form.separator not in QUOTES_ARE_QUOTES or not strict or ESCAPE in raw:
            return False
        block = np.frombuffer(raw, dtype=np.uint8)
        is_quote, is_end = block == QUOTE, block == form.eol
        edge = is_end | (block == form.separator)
        within = np.bitwise_xor.accumulate(is_quote.view(np.uint8)).view(np.bool_)
        if within[-1]:  # the last row goes on
            cut = raw.rfind(bytes([form.eol]), 0, int(np.argmax(within[::-1] == 0)) * -1 or None)
            while cut >= 0 and within[cut]:
                cut = raw.rfind(bytes([form.eol]), 0, cut)
            if cut < 0 or len(raw) - cut > _MOST_KEPT or not self._quoted_well(raw[: cut + 1]):
                return False
            self._kept = raw[cut + 1 :]
            return True
        opens, closes = is_quote & within, is_quote & ~within
        fine = edge | is_quote
        behind = fine[1:]
        if form.eol == NEWLINE:
            behind = behind | (block[1:] == RETURN) & np.append(is_end[2:], False)
        between = edge & ~within
        marks = block[between].tobytes()
        row = bytes([form.separator]) * (self.width - 1) + bytes([form.eol])
        rows = len(marks) // self.width
        if (opens[1:] & ~fine[:-1]).any() or (closes[:-1] & ~behind).any() or marks != row * rows:
            return False
        self.quoted |= bool(opens.any())
        pairs = opens[1:] & closes[:-1]
        several = self._lines(is_end[edge], between[edge], self.rows + self.first_row)
        if pairs.any():
            self.doubled = True
            if several.any():
                at = np.searchsorted(np.flatnonzero(between & is_end), np.flatnonzero(pairs))
                self.doubled_in_lines |= bool(several[at].any())
        self.needed |= self.doubled or bool((edge & within).any())
        self.rows += rows
        return True

    def _count(self, block: Bytes, parsed: Parsed) -> None:
        form, bounds = self.form, parsed.bounds
        is_end = block[bounds] == form.eol
        ends = bounds[is_end]
        separators = np.cumsum(~is_end)
        upto = separators[is_end]
        per_row = np.diff(upto, prepend=0)
        if len(per_row):
            per_row[0] += self._carried
        if not self.width:
            self.width = form.columns or (int(per_row[0]) + 1 if len(per_row) else 0)
            self.wrapped = np.zeros(max(1, self.width), dtype=np.int64)
        elif len(self.wrapped) != self.width:
            self.wrapped = np.zeros(self.width, dtype=np.int64)
        first = self.rows + self.first_row
        begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends

        def row_of(places: Places) -> int:
            return first + int(np.searchsorted(ends, places[0]))

        if self.long is None and (over := np.flatnonzero(per_row > self.width - 1)).size:
            self.long = first + int(over[0]), int(per_row[over[0]]) + 1
        short = per_row < self.width - 1
        if self.width == 1:
            short = ends == begins
        for at in np.flatnonzero(short).tolist():
            text = block[begins[at] : ends[at]].tobytes()
            blank = not text.strip(b"\r") and not self._carried_into(at)
            self.num_short += not blank
            if len(self.short) < _MOST_SHORT:
                self.short.append((first + at, 0 if blank else int(per_row[at]) + 1))
        if self.stray is None and len(parsed.strays):
            self.stray = row_of(parsed.strays)
        if self.doubtful is None and len(parsed.doubtful):
            self.doubtful = row_of(parsed.doubtful)
        both = np.concatenate([bounds, parsed.inner])
        order = np.argsort(both, kind="stable")
        several = self._lines(block[both[order]] == form.eol, order < len(bounds), first)
        if self.reading.lenient and len(parsed.strays) and self.doubtful is None:
            at = np.searchsorted(ends, parsed.strays)
            cut = at[np.append(several, True)[at]] if self._goes_on(block, parsed) else at[np.append(several, False)[at]]
            self.doubtful = first + int(cut[0]) if cut.size else None
        columns = _Columns(bounds, is_end, separators, self._carried)
        pairs = self._quoted(block, parsed, columns, first)
        at = np.searchsorted(ends, pairs)
        with_lines = np.append(several, parsed.inside)
        with_lines[0] |= self._inside
        self.doubled_in_lines |= bool(with_lines[at].any())
        self._backslashes(block, parsed, columns)
        self.rows += len(ends)
        left = int(separators[-1]) if len(separators) else 0
        self._carried = left - int(upto[-1]) if len(upto) else left + self._carried

    def _goes_on(self, block: Bytes, parsed: Parsed) -> bool:
        """Whether the row behind the last whole one has a line end inside quotes."""
        return parsed.inside and bool(len(parsed.inner)) and bool(block[parsed.inner[-1]] == self.form.eol)

    def _carried_into(self, row: int) -> bool:
        return row == 0 and (self._inside or self._carried > 0)

    def _lines(self, is_end: Flags, outside: Flags, first: int) -> Flags:
        """Counts rows of several lines, and those whose lines could all be rows.

        Args:
            is_end: of each separator and line end, whether it is the latter.
            outside: whether it is outside of quotes.
            first: number of the first row.

        Returns:
            Of each row that ends here, whether it has several lines.
        """
        line_ends = np.flatnonzero(is_end)
        row_ends = np.flatnonzero(outside[line_ends])
        if len(row_ends) == len(line_ends):
            self.lines_fit &= bool(outside.all())
            return np.zeros(len(row_ends), dtype=np.bool_)
        fits = np.diff(line_ends, prepend=-1) == self.width
        self.lines_fit &= bool(fits.all())
        lines = np.diff(row_ends, prepend=-1)
        self.several_lines += int((lines > 1).sum()) or 1
        misfits = np.concatenate([[0], np.cumsum(~fits)])
        suspects = np.flatnonzero((lines > 1) & (np.diff(misfits[row_ends + 1], prepend=0) == 0))
        if self.width > 2 and len(suspects):
            row, count = self.spread or (first + int(suspects[0]), 0)
            self.spread = row, count + len(suspects)
        return lines > 1

    def _quoted(self, block: Bytes, parsed: Parsed, columns: _Columns, first: int) -> Places:
        """Which columns have quoted fields, and whether these need it; the places of two marks in a row."""
        if not self.reading.marks:
            self._balance(block, first)
        if not len(parsed.quotes):
            return parsed.quotes
        opened, closed = parsed.quotes[parsed.opening], parsed.quotes[parsed.closing]
        self.quoted |= bool(len(opened))
        of_opened = columns.each(opened)
        self.quoted_columns |= set(np.flatnonzero(np.bincount(of_opened)).tolist())
        middle = ~parsed.opening & ~parsed.closing & ~parsed.bare
        pairs = np.flatnonzero(middle[1:] & middle[:-1] & (np.diff(parsed.quotes) == 1))
        self.doubled |= bool(len(pairs))
        self.doubles |= columns.of(parsed.quotes[pairs])
        self.escaped_columns |= columns.of(parsed.escaped[block[parsed.escaped] == QUOTE])
        self.needed |= bool(len(parsed.inner) or middle.any())
        if len(opened) == len(closed):
            behind = block[np.minimum(opened + 1, len(block) - 1)]
            before = block[closed - 1]
            plain = (closed - opened > 1) & (behind != 32) & (before != 32) & (behind != ord("#"))
            self.wrapped += np.bincount(of_opened[plain], minlength=self.width)[: self.width]
        return parsed.quotes[pairs]

    def _balance(self, block: Bytes, first: int) -> None:
        """Where marks quote nothing: a field that begins with one and has no other that ends it."""
        quotes = np.flatnonzero(block == QUOTE)
        if self.unbalanced is not None or not len(quotes):
            return
        wanted = (block == self.form.separator) | (block == self.form.eol)
        places = np.flatnonzero(wanted)
        which, at, count = np.unique(np.searchsorted(places, quotes), return_index=True, return_counts=True)
        begin = np.where(which > 0, places[np.maximum(which - 1, 0)] + 1, 0)
        odd = np.flatnonzero((quotes[at] == begin) & (count % 2 == 1))
        if odd.size:
            lines = int(np.count_nonzero(block[: quotes[at[odd[0]]]] == self.form.eol))
            self.unbalanced = first + lines

    def _backslashes(self, block: Bytes, parsed: Parsed, columns: _Columns) -> None:
        start, length = escape_runs(block)
        if not len(start):
            return
        within = _inside_at(start, parsed.first, parsed.after, self._inside)
        behind = block[np.minimum(start + length, len(block) - 1)]
        special = behind == QUOTE
        special |= ~within & ((behind == self.form.separator) | (behind == self.form.eol) | (behind == RETURN))
        odd = length % 2 == 1
        self.escaping |= bool((odd & special).any())
        self.before_marks |= columns.of(start[odd & (behind == QUOTE)])
        self.single_in |= bool((odd & ~special & within).any())
        self.single_out |= bool((odd & ~special & ~within).any())
        self.pairs_in |= columns.of(start[(length > 1) & within])
        self.pairs_out |= columns.of(start[(length > 1) & ~within])


class _Columns:
    """Which column a place belongs to."""

    def __init__(self, bounds: Places, is_end: Flags, separators: NDArray[np.int64], carried: int) -> None:
        self._bounds = bounds
        self._separators = np.concatenate([[0], separators])
        at_end = np.maximum.accumulate(np.where(is_end, separators, -carried)) if len(bounds) else separators
        self._before = np.concatenate([[-carried], at_end])

    def each(self, places: Places) -> NDArray[np.int64]:
        index = np.searchsorted(self._bounds, places)
        return np.asarray(self._separators[index] - self._before[index], dtype=np.int64)

    def of(self, places: Places) -> set[int]:
        return set(np.flatnonzero(np.bincount(self.each(places))).tolist()) if len(places) else set()


def _has_blank(raw: bytes, eol: int) -> bool:
    end = bytes([eol])
    return raw.startswith((end, b"\r")) or end + end in raw or b"\n\r\n" in raw


def rewritten(raw: bytes, reading: Reading, form: Form, inside: bool, pairs: bool) -> tuple[bytes, bool]:
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
        open_ = _inside_at(parsed.escaped, parsed.first, parsed.after, inside)
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
                in_field = _inside_at(start, parsed.first, parsed.after, inside)
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
