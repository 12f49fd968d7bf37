"""Teachers that are not served: a network, its width, and whatever else of its settings is named."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmd4rec.features.item_features import FeatureName, feature_name
from llmd4rec.models.sequential import MODELS, SequentialModel
from llmd4rec.models.settings import ModelSettings

#: How many times wider than the served model a teacher is, where it does not say.
TEACHER_WIDTH = 4

#: A width as so many times that of the served model.
TIMES = r"[1-9]\d?x"


class Teacher(BaseModel):
    """A model that teaches and is not served: a network, its width, and whatever else of its settings is named."""

    model_config = ConfigDict(extra="allow")

    name: str | None = Field(
        None, description="its network: sasrec, bsarec, ligr, gru4rec, or package.module:Name (null: that of `model`)"
    )
    dim: int | str | None = Field(None, description=f"its width; 2x: twice that of `model` (null: {TEACHER_WIDTH}x)")
    without: tuple[FeatureName, ...] = Field(
        (), description="item features of `model` that this teacher does without, such as [text]"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_model(cls, value: Any) -> Any:
        """A name alone; or a model's own settings, which say all that there is to say of a teacher."""
        if isinstance(value, str):
            return {"name": value}
        return MODELS.dump(value, "python") if isinstance(value, ModelSettings) else value

    @field_validator("dim", mode="before")
    @classmethod
    def _is_a_width(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is None or whole or (isinstance(value, str) and re.fullmatch(TIMES, value)):
            return value
        raise ValueError("must be a whole number above 0, or so many times the model's width, such as 2x")

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        try:
            return name if name is None else MODELS.name_of(MODELS.find(name))
        except ValueError as error:
            raise PydanticCustomError("unknown_name", "{message}", {"message": str(error)}) from error

    def network(self, model: SequentialModel) -> SequentialModel:
        """The teacher's settings beside a served model: what is not named here is as there, if both have it.

        Raises:
            ValueError: the width does not fit the network, or a setting is none of its own.
        """
        own = MODELS.name_of(type(model))
        name = self.name or own
        shared = None if name == own else {*ModelSettings.model_fields}
        features = tuple(feature for feature in model.item_features if feature_name(feature) not in self.without)
        values = model.model_dump(include=shared) | {"name": name, "item_features": features}
        times = self.dim.removesuffix("x") if isinstance(self.dim, str) else TEACHER_WIDTH
        width = self.dim if isinstance(self.dim, int) else int(times) * model.dim
        values |= {"dim": width, **(self.model_extra or {})}
        # Checked anew, because a width may not fit what stands beside it (heads that do not divide it).
        try:
            found: SequentialModel = MODELS.validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            what = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                what = f"{problem['loc'][-1]!r} is no setting of {name}"
            raise ValueError(f"a teacher ({name}, dim = {values['dim']}): {what}") from error
        return found


#: `teachers: default`. Models that err differently are better together: one attends, one recurs, one filters.
DEFAULT_TEACHERS: tuple[dict[str, Any], ...] = ({}, {"name": "gru4rec"}, {"name": "bsarec"})


def teachers_of(value: Any) -> Any:
    """`default`, `null`, a number of teachers that differ by their seeds alone, or a list."""
    if value is None:
        return ()
    if value == "default":
        return DEFAULT_TEACHERS
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return [{}] * value
    if isinstance(value, str | int | float):
        raise ValueError("must be `default`, null, a number, or a list such as [{name: gru4rec, dim: 256}]")
    return value
