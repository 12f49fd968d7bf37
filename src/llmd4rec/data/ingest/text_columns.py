"""Which columns of a catalogue hold text that says what an item is, told by their content.

Text is words: titles, descriptions, keywords, and labels such as colours that several items share. Identifiers,
addresses, numbers, dates, codes and flags are none, whatever their column is called.
"""

from __future__ import annotations

import re

import polars as pl

#: Rows looked at.
SAMPLE = 10_000
#: What a name says that content cannot: `code: electronics` is a code, whatever it looks like.
_NAMED_OTHERWISE = {
    **dict.fromkeys(("id", "ids", "uuid", "guid", "key", "sku", "asin", "isbn", "ean", "upc", "gtin"), "identifiers"),
    **dict.fromkeys(
        ("slug", "hash", "md5", "sha1", "sha256", "checksum", "token", "handle", "username"), "identifiers"
    ),
    **dict.fromkeys(("code", "codes", "iso", "currency", "locale", "zip", "zipcode", "postcode"), "codes"),
    **dict.fromkeys(("status", "availability", "visibility"), "flags"),
    **dict.fromkeys(("url", "urls", "uri", "link", "links", "href", "email", "mail", "phone", "fax"), "addresses"),
    **dict.fromkeys(("image", "images", "img", "imgs", "picture", "photo", "thumbnail", "path", "file"), "addresses"),
    **dict.fromkeys(("date", "datetime", "timestamp", "time", "created", "updated"), "times"),
}
_LETTER = r"\p{L}"
#: Writing without blanks between words.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}]"
_MONTH = r"jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[czk]"
_ADDRESS = (
    r"(?i)^(?:[a-z][a-z0-9+.-]*://|//|www\.|data:|mailto:)|^\S+@\S+\.\w+$|^\S*[/\\]\S*\.\w{2,5}$|"
    r"^[^\s/]+\.(?:com|org|net|jpe?g|png|gif|webp|svg|mp[34]|pdf|html?)(?:[/?]\S*)?$|^/\S*/\S*$"
)
_NUMBER = (
    r"^[\s$€£¥₹~<>=]*(?:[A-Z]{3}\s?)?[-+(]?[\d.,'\s]*\d[\d.,'\s)]*(?:%|[$€£¥₹]|(?:[\p{L}/²³\"']{1,6}\.?))?"
    r"(?:\s*[x×*/-]\s*[\d.,]+\s*\p{L}{0,6})*\s*$|^[-+]?(?:nan|inf|infinity)$"
)
_TIME = (
    r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T\s,].*)?$|^\d{1,2}:\d{2}(?::\d{2}.*)?(?:\s?[apAP]\.?[mM]\.?)?$|"
    rf"(?i)^(?:\p{{L}}{{2,10}},?\s+)?(?:\d{{1,2}}(?:st|nd|rd|th|\.)?[\s-]+)?(?:{_MONTH})\p{{L}}*\.?[\s,-]+\d[\d\s,:.+apmzgtuc-]*$|"
    r"(?i)^\d+\s+(?:second|minute|hour|day|week|month|year)s?(?:\s+ago)?$|^(?:19|20)\d\d\s?[-/]?\s?[QqWw]\d{1,2}$"
)
_IDENTIFIER = (
    r"(?i)^\{?[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\}?$|^(?:0x)?[0-9a-f]{16,}$|"
    r"^[A-Za-z0-9+/_-]{16,}={0,2}$|^[a-z0-9]+(?:[-_][a-z0-9]+){2,}$|^#[0-9a-fA-F]{3,8}$"
)
_STRUCTURE = r"(?s)^\s*(?:\{.*\}|\[.*\]|<\?xml.*|<svg.*)\s*$"
_FLAGS = {
    *("true", "false", "yes", "no", "y", "n", "t", "f", "on", "off", "ja", "nein", "oui", "non", "si", "sí", "0", "1")
}
_FLAGS |= {"-", "na", "n/a", "none", "null", "unknown"}
#: Two words of letters, one of them of three or more.
_WORDS = (
    rf"{_LETTER}{{2,}}[^{_LETTER}]+.*{_LETTER}{{3,}}|{_LETTER}{{3,}}[^{_LETTER}]+.*{_LETTER}{{2,}}|{_UNSPACED}{{2,}}"
)
#: One word as a person writes it: no digits, and not in capitals only.
_LABEL = rf"^{_LETTER}[{_LETTER}\p{{M}}'’&./ -]*$"


def not_text(name: str, values: pl.Series, *, several: bool = False) -> str:
    """Why a column is no text, in a word for the report; empty if it is text.

    Args:
        name: of the column.
        values: String; blank ones do not count. Of a field with several values, each of them.
        several: the values are those of a field with several, which need not be shared to be words.
    """
    filled = values.drop_nulls().str.replace_all(r"\s+", " ").str.strip_chars().replace("", None).drop_nulls()
    if not len(filled):
        return "empty"
    filled = filled.gather_every(-(-len(filled) // SAMPLE)) if len(filled) > SAMPLE else filled
    distinct = filled.unique()
    spoken = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", re.sub(r":\w+$", "", name))
    named = [_NAMED_OTHERWISE[word.lower()] for word in spoken if word.lower() in _NAMED_OTHERWISE]
    if named:
        return named[-1]
    if set(distinct.str.to_lowercase().head(len(_FLAGS) + 1).to_list()) <= _FLAGS:
        return "flags"
    if len(distinct) == 1 and len(filled) > 1:
        return "the same everywhere"
    for reason, pattern in (
        ("addresses", _ADDRESS),
        ("times", _TIME),
        ("numbers", _NUMBER),
        ("identifiers", _IDENTIFIER),
        ("structures", _STRUCTURE),
    ):
        if _mostly(filled, pattern) and (reason != "identifiers" or 2 * len(distinct) > len(filled)):
            return reason
    if _mostly(filled.filter(filled.str.contains(r"\s") | filled.str.contains(_UNSPACED)), _WORDS, of=len(filled)):
        return ""
    label = filled.str.contains(_LABEL) & (
        filled.str.contains(r"\p{Ll}|\p{Lo}") & (filled.str.len_chars() >= (3 if several else 4))
        | filled.str.contains(_WORDS)
    )
    if 2 * int(label.sum()) >= len(filled):
        return "" if several or 2 * len(distinct) <= len(filled) else "names"
    return "codes"


def _mostly(values: pl.Series, pattern: str, of: int | None = None) -> bool:
    """Whether at least half of the values, or of `of`, match."""
    return len(values) > 0 and 2 * int(values.str.contains(pattern).sum()) >= (len(values) if of is None else of)
