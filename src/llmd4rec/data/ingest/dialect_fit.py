"""How well one way of reading quotation marks and backslashes fits a text, gathered block by block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmd4rec.data.ingest.delimited import (
    ESCAPE,
    NEWLINE,
    QUOTE,
    RETURN,
    Bytes,
    Delimiters,
    Flags,
    Parsed,
    Places,
    Reading,
    escape_runs,
    inside_at,
    parse,
)

#: Between these a field that begins with a mark is quoted, in every program.
QUOTES_ARE_QUOTES = b",;"
#: So much of a row that is not over yet is kept for the next block.
_MOST_KEPT = 1 << 22
#: Of rows with too few fields and of blank ones, so many are remembered.
_MOST_SHORT = 100_000


@dataclass
class DialectFit:
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
        quoted, doubled, needed: whether there is a quoted field, one with two marks in a row, one that needs quotes.
        pairs_in, pairs_out: columns with two backslashes in a row inside and outside of quotes.
        single_in, single_out: whether there is a single backslash that escapes nothing.
        escaping: whether there is one before a mark, a separator or a line end.
        before_marks: columns with one before a mark.
        doubles, quoted_columns, escaped_columns: columns with two marks in a row inside of quotes, with quoted fields,
            and with escaped marks.
        unbalanced: the first row with a field that begins with a mark and holds an odd number of them.
    """

    reading: Reading
    form: Delimiters
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
        if QUOTE in raw or ESCAPE in raw:
            return False
        kept = bytes([form.separator, form.eol])
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
        if form.eol == NEWLINE and RETURN in raw:
            behind = behind | (block[1:] == RETURN) & np.append(is_end[2:], False)
        between = edge & ~within
        marks = block[between].tobytes()
        row = bytes([form.separator]) * (self.width - 1) + bytes([form.eol])
        rows = len(marks) // self.width
        if (opens[1:] & ~fine[:-1]).any() or (closes[:-1] & ~behind).any() or marks != row * rows:
            return False
        self.quoted |= bool(opens.any())
        pairs, inner = opens[1:] & closes[:-1], edge & within
        several = np.zeros(rows, dtype=np.bool_)
        if (inner & is_end).any():
            several = self._lines(is_end[edge], between[edge], self.rows + self.first_row)
        else:
            self.lines_fit &= not inner.any()
        if pairs.any():
            self.doubled = True
            if several.any():
                at = np.searchsorted(np.flatnonzero(between & is_end), np.flatnonzero(pairs))
                self.doubled_in_lines |= bool(several[at].any())
        self.needed |= self.doubled or bool(inner.any())
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
        with_lines = np.append(several, parsed.inside)
        with_lines[0] |= self._inside
        if self.reading.lenient and self.doubtful is None:
            rows = np.searchsorted(ends, parsed.strays)
            cut = rows[with_lines[rows]]
            self.doubtful = first + int(cut[0]) if cut.size else None
        columns = _Columns(bounds, is_end, separators, self._carried)
        pairs = self._quoted(block, parsed, columns, first)
        self.doubled_in_lines |= bool(with_lines[np.searchsorted(ends, pairs)].any())
        self._backslashes(block, parsed, columns)
        self.rows += len(ends)
        left = int(separators[-1]) if len(separators) else 0
        self._carried = left - int(upto[-1]) if len(upto) else left + self._carried

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
            earlier, count = self.spread or (first + int(suspects[0]), 0)
            self.spread = earlier, count + len(suspects)
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
        within = inside_at(start, parsed.first, parsed.after, self._inside)
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
