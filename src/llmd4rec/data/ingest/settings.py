"""The settings of `prepare`."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from llmd4rec.data.ingest.choices import Duplicates, MissingTimes, Order, Split, TargetHistory, Ties
from llmd4rec.data.ingest.row_filter import parse
from llmd4rec.data.ingest.times import check_format
from llmd4rec.errors import ConfigError

#: How a field with several values can be written, beside with a sign between them.
LIST, BLANK = "list", "blank"
_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\x01": "\x01"}


@dataclass(frozen=True)
class Prepare:
    """How a log and a catalogue become a :class:`~llmd4rec.data.dataset.Dataset`.

    Args:
        user_col, item_col, time_col, position_col: columns of the interactions; None: guessed from the names in use.
        item_id_col: the identifier's column in the catalogue; None: the interactions' item column, else guessed.
        text_cols: text columns of the catalogue, the most telling first; None: guessed.
        where: conditions such as `rating >= 4` that a row must satisfy to count, applied before anything else; see
            :mod:`llmd4rec.data.ingest.row_filter`.
        time_format: what the times are in, where they do not tell: formats of strptime, tried in turn, or
            `seconds`, `milliseconds`, `microseconds`, `nanoseconds`, `excel`.
        multi_cols: how columns of the catalogue are written that hold several values of an item: a sign such as `|`,
            `list` (`['a', 'b']`), `blank` (words), or "" for a column of single values; columns not named here are
            looked at, see `split_fields`.
        split_fields: whether columns not named in `multi_cols` are split where they look like several values; titles
            and running text never are.
        order_by: what a user's interactions are ordered by; `auto` takes the position if there is one, else the
            time, else the rows as they stand.
        ties: what comes first of a user's interactions of one time or position: `row`, as they stand; `last-first`,
            the other way round; `hash`, by a hash of user and item, so that no item comes first everywhere.
        missing_times: `drop` leaves out rows without the time or the position that the order needs.
        duplicates: `exact` drops rows equal in user, item, time and position to an earlier one (rows that carry
            neither time nor position are never that: they may be genuine repeats); `keep` keeps all;
            `drop-consecutive` also drops an item that follows itself; `drop` keeps a user's first of each item.
        k_core: drops users and items with fewer interactions until none is left; 0: off. It counts all of a user's
            interactions, held-out ones too, as is usual: which items there are may then depend on them.
        min_history: the shortest sequence kept.
        max_history: keeps only the last so many interactions of each user; None: all. It comes after the k-core,
            which items may then no longer satisfy.
        split: `leave-one-out` holds out each user's last interaction for test and the one before for validation,
            of users with at least 3; `temporal` cuts the whole log at two moments.
        test_fraction, valid_fraction: the share of interactions behind the later and between the two cuts
            (`temporal` only).
        history: whose item behind a cut is a target (`temporal` only): that of users with a history before the cut
            (`window`), or of anyone from the second interaction on (`event`, for logs of short sessions); `auto` takes
            `event` where `window` leaves fewer than one target in ten, and says so.
        keep_unseen_items: keeps the items of the catalogue that have no interaction.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    user_col: str | None = None
    item_col: str | None = None
    time_col: str | None = None
    position_col: str | None = None
    item_id_col: str | None = None
    text_cols: tuple[str, ...] | None = None
    where: tuple[str, ...] = ()
    time_format: tuple[str, ...] = ()
    multi_cols: dict[str, str] | None = None
    split_fields: bool = True
    order_by: Order = "auto"
    ties: Ties = "row"
    missing_times: MissingTimes = "refuse"
    duplicates: Duplicates = "exact"
    k_core: int = 0
    min_history: int = 1
    max_history: int | None = None
    split: Split = "leave-one-out"
    test_fraction: float = 0.1
    valid_fraction: float = 0.1
    history: TargetHistory = "auto"
    keep_unseen_items: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Prepare:
        """From keyword settings.

        Raises:
            ConfigError: a name is unknown (says the nearest), or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known are: {', '.join(known)}."
                raise ConfigError(f"unknown setting {name!r}", hint)
        values = dict(settings)
        if isinstance(values.get("text_cols"), list | tuple):
            values["text_cols"] = tuple(values["text_cols"])
        for name in ("where", "time_format"):
            given = values.get(name, ())
            values[name] = (given,) if isinstance(given, str) else tuple(given or ())
        return cls(**values)

    def __post_init__(self) -> None:
        if str(self.order_by) == "timestamp":
            raise ConfigError("order_by cannot be 'timestamp'", "It is called 'time' now.")
        kinds = {
            "order_by": Order,
            "ties": Ties,
            "missing_times": MissingTimes,
            "duplicates": Duplicates,
            "split": Split,
            "history": TargetHistory,
        }
        for name, kind in kinds.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} cannot be {getattr(self, name)!r}", f"Choose one of: {', '.join(allowed)}.")
        if self.where or self.time_format:
            self._check_texts()
        if isinstance(self.text_cols, str):
            raise ConfigError("text_cols is one string", "Give a list of column names.")
        if self.multi_cols is not None:
            if not isinstance(self.multi_cols, Mapping) or not all(
                isinstance(how, str) for how in self.multi_cols.values()
            ):
                raise ConfigError(f"multi_cols is {self.multi_cols!r}", 'Give a mapping, as {"genres": "|"}.')
            asked(self.multi_cols)
        for name, minimum in (("k_core", 0), ("min_history", 1), ("max_history", 1)):
            value = getattr(self, name)
            if value is None and name == "max_history":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ConfigError(f"{name} is {value!r}", f"It must be a whole number of at least {minimum}.")
        if self.max_history is not None and self.max_history < max(self.min_history, self.k_core):
            raise ConfigError(
                f"max_history {self.max_history} is below min_history {self.min_history} or k_core {self.k_core}",
                "Sequences cannot be longer and shorter at once: raise one or lower the other.",
            )
        for name in ("test_fraction", "valid_fraction"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < 1:
                raise ConfigError(f"{name} is {value!r}", "It must lie between 0 and 1.")
        if self.test_fraction + self.valid_fraction >= 1:
            raise ConfigError("test_fraction and valid_fraction leave nothing to train on", "Lower them.")
        if self.split != "temporal" and self.history != "auto":
            raise ConfigError(
                f"history {self.history!r} has no meaning with {self.split}, which holds out each user's last items",
                "Add --split temporal (split='temporal'), or leave it out.",
            )
        if self.split == "temporal" and self.order_by in ("position", "row"):
            raise ConfigError(
                f"a temporal split cannot be ordered by {self.order_by}",
                "Leave order_by at auto: the split orders by time, ties by position.",
            )

    def _check_texts(self) -> None:
        for name, check in (("where", parse), ("time_format", check_format)):
            for text in getattr(self, name):
                if not isinstance(text, str):
                    raise ConfigError(f"{name} is {text!r}", "Give texts.")
                check(text)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, ready for JSON."""
        return dataclasses.asdict(self)


def asked(multi_cols: Mapping[str, str]) -> dict[str, str | None]:
    """How columns are written, as said by the caller; None: each field is one value.

    Raises:
        ConfigError: a sign would part every word or number.
    """
    found: dict[str, str | None] = {}
    for column, how in multi_cols.items():
        sign = _ESCAPES.get(how, how if how in (LIST, BLANK) else how.strip(" ") or (" " if how else ""))
        if sign == " ":
            sign = BLANK
        if sign not in (LIST, BLANK) and any(letter.isalnum() for letter in sign):
            raise ConfigError(
                f"multi_cols says that {column!r} is split by {how!r}",
                "Give a sign such as | or ;, or the word list or blank; nothing for a column of single values.",
            )
        found[column] = sign or None
    return found
