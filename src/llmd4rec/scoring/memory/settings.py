"""Settings of a memory: its parts, and how they are weighed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: The parts of a memory, in the order in which they are named everywhere.
PARTS = ("content", "transitions", "recency", "item_knn")
#: What the most recent items of a history weigh, newest first: in transitions, and in content.
LAST = (1.0, 0.7, 0.5, 0.35, 0.25)
LAST_READ = (1.0, 0.5, 0.333, 0.25, 0.2, 0.167, 0.143, 0.125, 0.111, 0.1)
#: Weights where none are fitted and none are given. Item-kNN is there only where it is known to pay.
DEFAULT_WEIGHTS = {"content": 3.0, "transitions": 1.0, "recency": 1.2, "item_knn": 0.0}

#: What weights are chosen by, on validation, whatever metric the models are selected by.
WEIGHED_BY = "NDCG@10"


class Content(BaseModel):
    """Items that read alike: mean of the text vectors of the most recent items · text vectors of all items."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dim: int = Field(256, ge=1, description="principal directions of the text vectors kept; all, if there are fewer")
    dim_beside: int = Field(
        128,
        ge=1,
        description="of these, so many stand beside a model, which needs fewer: most of a memory's time is theirs",
    )
    whitening: float = Field(
        0.5,
        ge=0,
        le=1,
        description="how far directions are brought to the same variance: 0 not at all, 1 all the way",
    )
    last: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] = Field(
        LAST_READ, min_length=1, description="weights of the most recent items of a history, newest first"
    )


class Transitions(BaseModel):
    """What follows what: log(1 + 3 · how often an item came shortly after the most recent items).

    Where there are times, how often is `count + recent_weight · count with a half-life`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gaps: int = Field(3, ge=1, description="items count as following up to so many places; at place g they count 1/g")
    reverse: float = Field(0.5, ge=0, le=1e9, description="how much an item that came before counts, of a later one")
    half_life_days: float = Field(30.0, gt=0, le=1e9, description="days after which what counts as recent is halved")
    recent_weight: float = Field(
        8.0, ge=0, le=1e9, description="what a recent pair counts beside its count without age; 0: age does not matter"
    )
    ties: Literal["as-ordered", "half"] = Field(
        "as-ordered",
        description="two items of one history at the same moment: as they stand in the log, or half each way",
    )
    max_per_row: int = Field(1000, ge=1, description="followers of an item that are kept, those of the highest counts")
    last: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] = Field(
        LAST, min_length=1, description="weights of the most recent items of a history, newest first"
    )


class Recency(BaseModel):
    """What is chosen now: log(1 + interactions with an item before now, where older ones count less)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    half_life_days: float | None = Field(
        2.0, gt=0, le=1e9, description="days after which a count is halved; null: never"
    )
    window_days: float | None = Field(
        None, gt=0, le=1e9, description="older interactions do not count; null: all count"
    )


class ItemKNN(BaseModel):
    """What the same users choose: Σ over a history of n_ij / (n_i^history_power · n_j^item_power), recent ones more."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    last: int = Field(
        50,
        ge=1,
        le=1000,
        description="items of a history that are read, and up to so many places apart two are counted",
    )
    history_power: float = Field(
        0.7, ge=0, le=4, description="how much less an item of the history says, if it is popular"
    )
    item_power: float = Field(0.3, ge=0, le=4, description="how much less popular items are scored")
    max_per_row: int = Field(1000, ge=1, description="neighbours of an item that are kept, those of the highest counts")


class Memory(BaseModel):
    """Scores that need no training: content, transitions, recency and item-kNN, and their weighted sum."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    content: Content | None = Field(Content(), description="what reads alike; null: no such part")
    transitions: Transitions | None = Field(Transitions(), description="what follows what; null: no such part")
    recency: Recency | None = Field(Recency(), description="what is chosen now; null: no such part")
    item_knn: ItemKNN | None = Field(ItemKNN(), description="what the same users choose; null: no such part")
    weights: Literal["auto"] | dict[str, float] = Field(
        "auto",
        description="auto: fitted on validation, a part that does not help is left out; or a weight for each part, "
        "such as {content: 3, transitions: 1, recency: 1.2}",
    )

    @model_validator(mode="after")
    def _known_parts(self) -> Self:
        if isinstance(self.weights, dict):
            parts = [name for name in PARTS if getattr(self, name) is not None]
            if unknown := [name for name in self.weights if name not in parts]:
                raise ValueError(f"there is a weight for {', '.join(unknown)}; the parts are {', '.join(parts)}")
        return self
