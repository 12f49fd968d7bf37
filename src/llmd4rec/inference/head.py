"""What export.json must say. What else it says is kept and not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from llmd4rec.errors import DataError, RunError
from llmd4rec.inference.types import FieldKind
from llmd4rec.io.files import read_json

#: Of an export without a memory, and of one with it, which older versions of this package cannot answer with.
FORMAT_VERSION, FORMAT_WITH_MEMORY = 3, 4
HEAD = "export.json"
AGAIN = "Export the run again with: llmd4rec export RUN --out FOLDER --overwrite"
#: Most bytes of a JSON file of an export: it may name every item that was not trained.
MOST_JSON = 1 << 24
_REQUIRED_FILES = ("encoder.onnx", "item_table.npy", "catalogue.parquet", "counts.npy")

_Text = Annotated[str, StringConstraints(max_length=4096)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]+$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
_Size = Annotated[int, Field(ge=1, le=1 << 31)]
_Reads = Annotated[list[Literal["times", "target_times"]], Field(max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Texts(_Part):
    """How texts become vectors."""

    encoder: _Text
    width: Annotated[int, Field(ge=1, le=1 << 16)]


class _TextEncoder(_Part):
    """The sentence encoder that comes along."""

    max_tokens: Annotated[int, Field(ge=1, le=8192)]


class _Memory(_Part):
    """What is said of the memory beside a model; `model` among its weights is the model's own."""

    weights: dict[Literal["model", "content", "transitions", "recency", "item_knn"], _Number]
    validation: _Number
    texts: _Texts | None = None

    @model_validator(mode="after")
    def _weighs_the_model(self) -> _Memory:
        if "model" not in self.weights:
            raise ValueError("has no weight of the model")
        return self


class _Model(_Part):
    """What is said of a network."""

    model: dict[str, Any]
    stage: _Text
    validation: _Number
    selection: _Text
    dim: Annotated[int, Field(ge=1, le=1 << 16)]
    max_length: Annotated[int, Field(ge=1, le=1 << 16)]
    reads: _Reads = []
    new_items: _Texts | None = None
    memory: _Memory | None = None

    def texts(self) -> list[_Texts]:
        """What is said of the text vectors of new items."""
        return [each for each in (self.new_items, self.memory and self.memory.texts) if each]


class _Head(_Model):
    format: Literal[3, 4]
    items: _Size
    filter_seen: bool
    fields: Annotated[dict[str, FieldKind], Field(max_length=1000)]
    files: Annotated[dict[_Name, _Digest], Field(max_length=1000)]
    multi_fields: dict[str, str] = {}
    text_fields: list[str] = []
    untrained_rows: list[Annotated[int, Field(ge=0)]] = []
    undistilled: _Model | None = None
    text_encoder: _TextEncoder | None = None

    @model_validator(mode="after")
    def _fits_itself(self) -> _Head:
        if missing := [name for name in _REQUIRED_FILES if name not in self.files]:
            raise ValueError(f"'files' does not list {', '.join(missing)}")
        if any(self.fields.get(name, "number") == "number" for name in self.multi_fields):
            raise ValueError("'multi_fields' names fields that the catalogue does not have, or numbers")
        if max(self.untrained_rows, default=0) >= self.items or len(self.untrained_rows) > self.items:
            raise ValueError("'untrained_rows' names rows that the table does not have")
        if self.undistilled is not None and self.undistilled.dim != self.dim:
            raise ValueError("'dim' of the undistilled model is another one")
        if len({texts.width for each in (self, self.undistilled) if each for texts in each.texts()}) > 1:
            raise ValueError("'new_items' and 'memory' name text vectors of different widths")
        return self


def read_head(path: Path) -> Mapping[str, Any]:
    """What export.json of a folder says, if it says all that it must and nothing that cannot be.

    Raises:
        RunError: it is missing, damaged, too large, or of another format version.
    """
    if not (path / HEAD).is_file():
        what = "does not exist" if not path.exists() else f"is not an export folder (it has no {HEAD})"
        raise RunError(f"{path} {what}", f"Make one with: llmd4rec export RUN --out {path}")
    try:
        head = read_json(path / HEAD, most_bytes=MOST_JSON, finite=True)
    except DataError as error:
        raise RunError(error.what, AGAIN) from error
    version = head.get("format") if isinstance(head, dict) else None
    if version not in (FORMAT_VERSION, FORMAT_WITH_MEMORY):
        raise _other_format(path, version)
    head = _given(head)
    if isinstance(head.get("undistilled"), dict):
        head["undistilled"] = _given(head["undistilled"])
    try:
        _Head.model_validate(head)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(repr(str(part)[:50])[1:-1] for part in first["loc"])
        what = f"{place!r}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
        raise RunError(f"{path / HEAD} is damaged: {what}", AGAIN) from error
    return head


def _given(entries: dict[str, Any]) -> dict[str, Any]:
    """Without entries of null, which say as much as none."""
    return {name: value for name, value in entries.items() if value is not None}


def _other_format(path: Path, version: Any) -> RunError:
    """The error for an export that another version of this package made."""
    what = f"{path / HEAD} has export format {repr(version)[:100]}; this version of llmd4rec reads formats "
    what += f"{FORMAT_VERSION} and {FORMAT_WITH_MEMORY}"
    remedy = "Export the run again with this version of llmd4rec, or serve it with the version that made it."
    if type(version) is int and version < FORMAT_VERSION:
        what = f"{path / HEAD} was made by an older version of llmd4rec (export format {version}, now {FORMAT_VERSION})"
        remedy = f"{AGAIN}, or serve it with the version that made it."
    return RunError(what, remedy)
