"""Fields that hold several values of one item: genres, tags, authors.

They come as `Adventure|Comedy`, as `a; b` or `a, b`, as a list that was written as text (`['a', 'b']`, `["a","b"]`,
`{a,b}`, `[{'id': 1, 'name': 'a'}]`), as words of a RecBole `token_seq`, or as real lists. `prepare` finds out which,
once, and writes each such field as `a; b`; the data set says which fields these are. Attributes, words, filters,
exports and the service then part a field at `; ` if it is one of them, and never otherwise.

*How* a field was written is kept beside its name, so that new items may be given in the same way: a sign, `list` or
`blank`.
"""

from __future__ import annotations

import ast
import html
import json
from dataclasses import dataclass

import polars as pl

from llmd4rec.data.ingest.columns import normal
from llmd4rec.data.ingest.settings import BLANK, LIST

#: Between the values of one field, as it is kept.
BETWEEN = "; "
#: Signs looked for, the one that parts most first. A comma is last: it stands within values too.
SIGNS = ("\x01", "\n", "|", "¦", "•", "；", ";", "、", "，", ",")
_COMMAS = ("，", ",")
#: Fields that hold several values by their name: such values need not be shared by items to be told apart.
LIST_NAMES = {
    normal(name)
    for stem in (
        *("genre", "tag", "keyword", "label", "topic", "subject", "theme", "mood", "style", "author", "artist"),
        *("actor", "director", "writer", "producer", "developer", "publisher", "ingredient", "color", "colour"),
        *("language", "platform", "hashtag"),
    )
    for name in (stem, f"{stem}s")
} | {"categories", "countries", "cast", "class", "listedin"}
#: Of these, those in which a comma separates values whatever they are.
_COMMA_NAMES = {"genre", "genres", "tag", "tags", "keyword", "keywords", "hashtags", "listedin"}
#: Fields of running text, whose commas and semicolons are those of sentences.
_PROSE = {
    *("description", "productdescription", "detaildesc", "desc", "overview", "summary", "synopsis", "plot", "abstract"),
    *(
        "body",
        "content",
        "text",
        "review",
        "comment",
        "comments",
        "about",
        "biography",
        "bio",
        "note",
        "notes",
        "steps",
    ),
    *("instructions", "directions", "features", "story", "lyrics", "headline", "subtitle", "tagline", "caption"),
}
#: Values of more words than this in the mean are no values but sentences.
_MOST_WORDS, _MOST_LETTERS = 5.0, 60
#: Lists of more whole numbers than this in the mean are no values but vectors.
_MOST_NUMBERS = 20
#: A RecBole `token_seq` of more words than this in the mean is running text.
_MOST_TOKENS = 12.0
#: A sign separates values if at least this share of what is between such signs stands in other items too.
_SHARED = 0.5
#: Rows looked at to find out how a column is written, spread over the whole.
SAMPLE = 50_000

_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_BARE = r"""[^\s\[\](){}"',;|\\][^\[\](){}"',;|\\]*"""
_ONE = rf"(?:{_QUOTED}|{_BARE})"
#: JSON and Python, Spark and Postgres (unquoted), NumPy (blanks between), R.
_LITERAL = (
    rf"(?s)^\s*(?:"
    rf"\[\s*(?:{_ONE}(?:\s*,\s*{_ONE})*\s*,?)?\s*\]|\{{\s*(?:{_ONE}(?:\s*,\s*{_ONE})*)?\s*\}}|"
    rf"\[\s*{_QUOTED}(?:\s+{_QUOTED})*\s*\]|"
    rf"c?\(\s*(?:{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?)?\s*\)|"
    rf"{_QUOTED}(?:\s*,\s*{_QUOTED})+)\s*$"
)
_NAMED = rf"""(?:"name"|'name')\s*:\s*{_QUOTED}"""
_OBJECTS = rf"(?s)^\s*\[\s*\{{[^{{}}]*{_NAMED}[^{{}}]*\}}(?:\s*,\s*\{{[^{{}}]*{_NAMED}[^{{}}]*\}})*\s*\]\s*$"
_NOTHING = ("null", "None", "NULL", "nan", "NaN", "NA")


@dataclass(frozen=True)
class FieldFormat:
    """How a column is written.

    Attributes:
        how: a sign, `list` or `blank`; None: each field is one value.
        values: whether its parts are values; those of a list of sentences are only joined to one text.
        doubt: what was seen that may separate values and was left as it is; for the report.
    """

    how: str | None
    values: bool = True
    doubt: str = ""


def how_written(name: str, values: pl.Series) -> FieldFormat:
    """Finds out how a column of text holds several values, by its name and its content.

    Args:
        name: as in the file, with its RecBole type if it has one.
        values: String; blank ones do not count.
    """
    filled = spread(values.drop_nulls().str.strip_chars().replace("", None).drop_nulls())
    called = normal(name)
    if not len(filled):
        return FieldFormat(None)
    if _is_literal(filled).mean() >= 0.5:  # type: ignore[operator]
        return FieldFormat(LIST, values=are_values(name, parts(filled, LIST)))
    if called in _PROSE:
        return FieldFormat(None)
    if filled.str.contains(r"^\s*[{\[]").mean() >= 0.5:  # type: ignore[operator]
        return FieldFormat(None, doubt=f"structures, as {filled.min()!r}")
    doubt = ""
    for sign in SIGNS:
        several = filled.filter(filled.str.contains(sign, literal=True))
        if not len(several) or (len(several) < 2 and sign in _COMMAS and called not in LIST_NAMES):
            continue
        if (found := _parted_by(sign, filled, several, called)) is True:
            return FieldFormat(sign)
        doubt = doubt or (found or "")
    if name.split(":")[1:] == ["token_seq"]:
        return FieldFormat(BLANK if float(filled.str.count_matches(r"\S+").mean()) <= _MOST_TOKENS else None)  # type: ignore[arg-type]
    return FieldFormat(None, doubt=doubt)


def _parted_by(sign: str, filled: pl.Series, several: pl.Series, called: str) -> bool | str:
    """Whether a sign separates values; where it might and does not look like it, what was seen instead.

    Args:
        filled, several: all values, and those that hold the sign.
    """
    share = len(several) / len(filled)
    # What is written the same way again and again says nothing about what stands in it.
    filled, several = filled.unique(), several.unique()
    split = pl.DataFrame({"part": parts(several, sign)}).with_row_index("row").explode("part").drop_nulls()
    if not len(split) or _are_sentences(split["part"]) or split["row"].n_unique() < len(several) / 2:
        return ""
    split = split.with_columns(first=pl.col("row") != pl.col("row").shift(1).fill_null(-1))
    if split["first"].all():
        return ""  # it stands at the ends only
    listed = called in LIST_NAMES
    if sign in _COMMAS:
        if called in _COMMA_NAMES:
            return True
        if split["part"].str.contains(r"^[\d\s.]+$").mean() > 0.2:  # type: ignore[operator]
            return ""
        # "Dove, Inc." and "King, Stephen": what is behind a comma never stands before one or alone.
        alone = pl.concat([split.filter("first")["part"], filled.filter(~filled.str.contains(sign, literal=True))])
        behind = split.filter(~pl.col("first"))["part"]
        free = float(behind.is_in(alone.unique().implode()).mean())  # type: ignore[arg-type]
        shared = free >= _SHARED and (listed or _reused(split["part"], alone) >= _SHARED)
        return shared or (f"commas, as in {several.min()!r}" if share >= 0.02 else "")
    whole = filled.filter(~filled.str.contains(sign, literal=True))
    if listed or _reused(split["part"], whole) >= _SHARED:
        return True
    return f"{sign!r}, as in {several.min()!r}" if share >= 0.02 else ""


def _reused(split: pl.Series, whole: pl.Series) -> float:
    """The share of parts that stand in other items too; of a path its steps."""
    split, whole = _steps(split), _steps(whole)
    counts = pl.concat([split, whole]).value_counts(name="times")
    counts = counts.rename({counts.columns[0]: "part"}).with_columns(pl.col("part").cast(pl.String))
    times = pl.DataFrame({"part": split}).join(counts, on="part", how="left")["times"]
    return float((times > 1).mean())  # type: ignore[arg-type]


def _steps(values: pl.Series) -> pl.Series:
    return values.str.split(" > ").explode().drop_nulls()


def are_values(name: str, split: pl.Series) -> bool:
    """Whether the parts of a list, List(String), are values: not sentences, measurements or vectors."""
    flat = split.explode().drop_nulls()
    numbers = flat.filter(flat.str.contains(r"^[-+]?[\d.]+(?:[eE][-+]?\d+)?$"))
    if len(flat) and 2 * len(numbers) >= len(flat):
        lengths = split.list.len().mean()
        return not numbers.str.contains(".", literal=True).any() and float(lengths) <= _MOST_NUMBERS  # type: ignore[arg-type]
    return normal(name) not in _PROSE and not _are_sentences(split)


def _are_sentences(values: pl.Series) -> bool:
    flat = _steps(values.explode() if values.dtype == pl.List else values)
    if not len(flat):
        return False
    words, letters = flat.str.count_matches(r"[\w'’&-]+").mean(), flat.str.len_chars().quantile(0.9)
    return float(words) > _MOST_WORDS or float(letters) > _MOST_LETTERS  # type: ignore[arg-type]


def _is_literal(values: pl.Series) -> pl.Series:
    return values.str.contains(_LITERAL) | values.str.contains(_OBJECTS)


def spread(values: pl.Series, limit: int = SAMPLE) -> pl.Series:
    """At most so many values, from the whole of a series: files are often sorted."""
    return values.gather_every(-(-len(values) // limit)) if len(values) > limit else values


# ---- parting ----------------------------------------------------------------------------------------------------
def parts(values: pl.Series, how: str) -> pl.Series:
    """The values of each field, List(String), each once, in their order; null where there is none.

    A value that is no list in a column of lists is one value. HTML entities become their signs, and a `; ` within a
    value `, `, so that nothing within a value looks like what is between two.

    Args:
        values: String.
        how: see :class:`FieldFormat`.
    """
    text = _without_entities(values)
    if how == LIST:
        split = pl.select(_listed(pl.lit(text))).to_series()
    elif how == BLANK:
        split = text.str.extract_all(r"\S+")
    else:
        split = text.str.split(how)
    long = pl.DataFrame({"part": split}).with_row_index("row").explode("part").drop_nulls()
    part = pl.col("part")
    if how == LIST:
        quoted = part.str.contains(rf"(?s)^{_QUOTED}$")
        long = long.filter(~part.is_in(_NOTHING)).with_columns(
            pl.when(quoted & ~part.str.contains("\\", literal=True))
            .then(part.str.slice(1, part.str.len_chars() - 2))
            .otherwise(part)
            .alias("part")
        )
        long = long.with_columns(_unescaped(long["part"]))
    long = long.with_columns(part.str.replace_all(r"\s+", " ").str.replace_all("; ", ", ").str.strip_chars())
    grouped = (
        long.filter(part != "")
        .unique(["row", "part"], keep="first", maintain_order=True)
        .group_by("row", maintain_order=True)
        .agg("part")
    )
    rows = pl.DataFrame({"row": pl.int_range(len(values), eager=True, dtype=pl.UInt32)})
    return rows.join(grouped, on="row", how="left", maintain_order="left")["part"].alias(values.name)


def _listed(text: pl.Expr) -> pl.Expr:
    """The values of lists that were written as text, still quoted."""
    inside = text.str.strip_chars().str.replace(r"^(?:c\(|[\[({])", "").str.replace(r"[\])}]$", "")
    names = text.str.extract_all(_NAMED).list.eval(pl.element().str.extract(rf":\s*({_QUOTED})$"))
    return (
        pl.when(text.str.contains(_OBJECTS))
        .then(names)
        .when(text.str.contains(_LITERAL))
        .then(inside.str.extract_all(f"(?s){_ONE}"))
        .otherwise(pl.concat_list(text))
    )


def _unescaped(values: pl.Series) -> pl.Series:
    """Quoted values with backslashes in them as what they stand for."""
    escaped = values.filter(values.str.contains(r"(?s)^['\"].*\\")).unique()
    return values.replace(escaped, pl.Series([_read(text) for text in escaped.to_list()], dtype=pl.String))


def _read(text: str) -> str:
    try:
        value = json.loads(text) if text.startswith('"') else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text[1:-1]
    return value if isinstance(value, str) else text[1:-1]


def _without_entities(values: pl.Series) -> pl.Series:
    found = values.filter(values.str.contains(r"&(?:[A-Za-z]+|#\d+);").fill_null(False)).unique()
    return values.replace(found, pl.Series([html.unescape(text) for text in found.to_list()], dtype=pl.String))


def joined(values: pl.Series, how: str) -> pl.Series:
    """Each field as it is kept: its values, `; ` between them; null where there is none."""
    name = values.name
    distinct = values.unique()  # what many items share is split once
    read = pl.DataFrame({"as_it_came": distinct, name or "read": parts(distinct, how).list.join(BETWEEN)})
    whole = pl.DataFrame({"as_it_came": values})
    return (
        whole.join(read, on="as_it_came", how="left", nulls_equal=True, maintain_order="left").to_series(1).alias(name)
    )


def stored_values(values: pl.Series) -> pl.Series:
    """The values of fields as :func:`joined` writes them, List(String)."""
    return values.str.split(BETWEEN)


def rewritten(text: str, how: str) -> str:
    """One field of an item that is added later, written as the file's were or as :func:`joined` writes them."""
    one = pl.Series([text], dtype=pl.String)
    if (how == LIST and not _is_literal(one)[0]) or (how == BLANK and BETWEEN in text):
        split = stored_values(one)
    else:
        split = parts(one.str.split(BETWEEN).explode() if how not in (LIST, BLANK) else one, how)
    found = [part.strip() for each in split.to_list() for part in each or () if part.strip()]
    return BETWEEN.join(dict.fromkeys(found))
