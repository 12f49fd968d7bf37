"""Item features: what beside its identifier tells an item, as arrays over the catalogue.

A feature gives one of three kinds of array, and the item embedding uses each kind in one way
(:mod:`llmd4rec.models.embedding`):

- **vectors** [I, T], one per item, zero where an item has none: a small network maps them to the embedding's width.
- **attributes** [I, A], sparse, which of A things an item has: each has a vector of its own.
- **neighbours** [I, I], sparse, how much of other items' rows is mixed into an item's.

Nothing held out is read. Features help to train the item table and are merged into it; a new item in a served model is
placed by its text alone.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from torch import Tensor

from llmd4rec.config.open_types import open_type
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError

Kind = Literal["vectors", "attributes", "neighbours"]


class ItemFeature(BaseModel, ABC):
    """Settings of an item feature; derive from it to add one.

    This one reads prices from a file, whose rows are `item_id,price`:

        class Prices(ItemFeature):
            kind: ClassVar[Kind] = "vectors"
            path: str

            def of(self, dataset: Dataset, text_vectors: Tensor | None) -> Tensor | None:
                table = pl.read_csv(self.path, schema_overrides={"item_id": pl.String})
                prices = dataset.catalogue.select("item_id").join(table, on="item_id", how="left")["price"]
                logs = prices.log1p()
                return torch.from_numpy(((logs - logs.mean()) / logs.std()).fill_null(0).to_numpy().copy())[:, None]

    `item_features: [id, text, {name: my_package.features:Prices, path: prices.csv}]` of a model in YAML, or
    `SASRec(item_features=["id", Prices(path="prices.csv")])` in Python. A relative path is looked for in the current
    directory. A run folder does not notice when the file changes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Which kind of array it gives.
    kind: ClassVar[Kind]

    @abstractmethod
    def of(
        self, dataset: Dataset, text_vectors: Tensor | None
    ) -> Tensor | NDArray[np.floating[Any]] | sp.csr_matrix | None:
        """The array over the catalogue, in its order; None where the data set has nothing of the kind.

        Args:
            dataset: its catalogue and its training part may be read, nothing held out.
            text_vectors: [I, T] of the items' texts; None unless the model has the feature `text` too, and the data
                have texts.
        """


class Id(ItemFeature):
    """The identifier: the item embedding's own row, which it always has. It gives nothing beside it."""

    kind: ClassVar[Kind] = "vectors"

    def of(self, dataset: Dataset, text_vectors: Tensor | None) -> None:
        """See :class:`ItemFeature`."""
        return


#: The item features that are known by name, in the order in which they are written.
ITEM_FEATURES = open_type(
    "item feature",
    ItemFeature,
    {
        "id": f"{__name__}:Id",
        "text": "llmd4rec.features.text:Text",
        "words": "llmd4rec.features.attributes:Words",
        "attributes": "llmd4rec.features.attributes:Attributes",
        "neighbours": "llmd4rec.features.neighbours:Neighbours",
    },
)


_BESIDE_ID = tuple(ITEM_FEATURES.known)[1:]


def _parts(value: Any) -> Any:
    """The members of a short text (`id+text+words`), or of a list with `id`."""
    if isinstance(value, str):
        parts = value.split("+")
        if parts[0] != "id" or not set(parts) <= set(ITEM_FEATURES.known):
            raise ValueError(
                f"{value!r} must be id, then any of {', '.join(f'+{name}' for name in _BESIDE_ID)}, as in id+text; or "
                "a list of id and features, in which one of your own is package.module:Name"
            )
        return parts
    listed = isinstance(value, list | tuple) and not all(isinstance(part, ItemFeature) for part in value)
    if listed and "id" not in value:
        raise ValueError("the list must name id, which every item embedding has, as in [id, text]")
    return value


def _in_order(features: tuple[ItemFeature, ...]) -> tuple[ItemFeature, ...]:
    """Known features in one order, then others as they are given, each once: the same choice is written in one way."""
    place = {name: number for number, name in enumerate(ITEM_FEATURES.known)}
    once = {json.dumps(ITEM_FEATURES.dump(feature)): feature for feature in features if not isinstance(feature, Id)}
    return tuple(sorted(once.values(), key=lambda feature: place.get(feature_name(feature), len(place))))


def written(features: Sequence[ItemFeature]) -> str | list[Any]:
    """As settings give them: the short text where it says all."""
    dumped: list[Any] = [ITEM_FEATURES.dump(feature) for feature in features]
    usual = [feature_name(feature) in ITEM_FEATURES.known and feature == type(feature)() for feature in features]
    if all(usual):
        return "+".join(["id", *(each["name"] for each in dumped)])
    return ["id", *(each["name"] if plain else each for each, plain in zip(dumped, usual, strict=True))]


def feature_name(feature: ItemFeature) -> str:
    """What an item feature is called in settings: its known name, or `package.module:Name`."""
    return ITEM_FEATURES.name_of(type(feature))


def _is_name(name: str) -> str:
    if name not in _BESIDE_ID and ":" not in name:
        raise ValueError(
            f"no item feature is called {name!r} (known: {', '.join(_BESIDE_ID)}; one of your own is "
            "package.module:Name)"
        )
    return name


#: What an item feature is called in settings.
FeatureName = Annotated[str, AfterValidator(_is_name)]
#: Settings of any item feature.
AnyItemFeature = Annotated[ItemFeature, ITEM_FEATURES]
if TYPE_CHECKING:
    #: Which features an item embedding is trained with. Given as `id`, `id+text`, or a list such as
    #: `[id, text, my_package:Prices]`; validated a tuple of the features beside `id`.
    ItemInputs = Any
else:
    ItemInputs = Annotated[
        tuple[AnyItemFeature, ...],
        BeforeValidator(_parts),
        AfterValidator(_in_order),
        PlainSerializer(written, return_type=Any),
    ]


@dataclass(frozen=True)
class ItemFeatures:
    """Item features of a whole catalogue; False where there is none.

    Attributes:
        vectors: each [I, T], one vector per item, zero where there is none.
        attributes: [I, A], which attributes and words an item has.
        neighbours: [I, I], how much of another item's row is mixed into an item's.
        cold: [I], which items occur in no training history.
    """

    vectors: tuple[Tensor, ...] = ()
    attributes: sp.csr_matrix | None = None
    neighbours: sp.csr_matrix | None = None
    cold: Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self.vectors) or self.attributes is not None or self.neighbours is not None

    def present(self) -> Tensor:
        """Which items have any feature, [I]."""
        matrices = [matrix for matrix in (self.attributes, self.neighbours) if matrix is not None]
        has = [torch.from_numpy(np.diff(matrix.indptr) > 0) for matrix in matrices]
        has += [(vectors != 0).any(1).cpu() for vectors in self.vectors]
        return torch.stack(has).any(0)


def item_features(features: Sequence[ItemFeature], dataset: Dataset, text_vectors: Tensor | None) -> ItemFeatures:
    """The arrays of some features, as far as the data set has them.

    Vectors of several features have a small network each, attributes stand side by side, and of several neighbours the
    mean is taken.

    Args:
        features: the setting `item_features` of a sequential model.
        dataset: its training part gives co-occurrences, its catalogue attributes and words.
        text_vectors: [I, T] of its catalogue; None where no item has a text.

    Raises:
        ConfigError: a feature gives no array of its kind over the catalogue.
    """
    texts = text_vectors if reads_texts(features) else None
    found: dict[Kind, list[tuple[str, Any]]] = {"vectors": [], "attributes": [], "neighbours": []}
    for feature in features:
        array = feature.of(dataset, texts)
        if array is not None:
            found[feature.kind].append((feature_name(feature), _checked(array, feature, dataset.num_items)))
    vectors, attributes, neighbours = ([array for _, array in sorted(each, key=_words_last)] for each in found.values())
    return ItemFeatures(
        tuple(vectors),
        sp.csr_matrix(sp.hstack(attributes)) if attributes else None,
        _mean(neighbours),
        torch.from_numpy(dataset.train_counts == 0),
    )


def reads_texts(features: Sequence[ItemFeature]) -> bool:
    """Whether texts are among the features, and have to be encoded."""
    return any(feature_name(feature) == "text" for feature in features)


def _words_last(named: tuple[str, Any]) -> bool:
    """Columns of attributes stand before those of words, whatever the order in the settings."""
    return named[0] == "words"


def _mean(matrices: Sequence[sp.csr_matrix]) -> sp.csr_matrix | None:
    if len(matrices) > 1:
        return sp.csr_matrix(sum(matrices) / len(matrices), dtype=np.float32)
    return matrices[0] if matrices else None


def _checked(array: Any, feature: ItemFeature, num_items: int) -> Any:
    """The array as its kind is used: dense as a float32 tensor, sparse as a matrix of rows.

    Raises:
        ConfigError: it is of another kind or another catalogue, or holds NaN or infinite values.
    """
    name = feature_name(feature)
    dense = feature.kind == "vectors"
    if dense == sp.issparse(array):
        raise ConfigError(
            f"the item feature {name} gives a {type(array).__name__}, and its kind is {feature.kind}",
            "Return a tensor or NumPy array for vectors, a SciPy sparse matrix for attributes and neighbours.",
        )
    columns = num_items if feature.kind == "neighbours" else array.shape[-1]
    if tuple(array.shape) != (num_items, columns):
        raise ConfigError(
            f"the item feature {name} gives {feature.kind} of shape {tuple(array.shape)} for {num_items} items",
            "Give one row for each item of the catalogue, in its order.",
        )
    made = torch.as_tensor(array, dtype=torch.float32) if dense else sp.csr_matrix(array)
    if not bool(torch.isfinite(made).all() if dense else np.isfinite(made.data).all()):
        raise ConfigError(f"the item feature {name} gives NaN or infinite values", "Use 0 where an item has no value.")
    return made
