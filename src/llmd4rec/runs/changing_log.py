"""What a run does where its log changes with time: how passes take newer rows more often, and what is learned last.

    half-life     as the setting says; `auto`: where counts say that the log changes (runs/ageing.py)
    newest days   as the setting says; `auto`: where there is a half-life (runs/newest.py)

A refit takes both from the run that it comes from: nothing is held out that could tell.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmd4rec.data.batching import Histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.evaluation.validation import NDCG10
from llmd4rec.log import logger
from llmd4rec.runs.ageing import HALF_LIFE_DAYS, ByAge, by_age, drift
from llmd4rec.runs.newest import LEAST_TARGETS, NEWEST_DAYS, Newest, newest_of
from llmd4rec.training.settings import Training


class ChangingLog:
    """The log of a run, and what age means in it.

    Args:
        data: of the run.
        settings: of the run.
        chosen: what validation chose in the run that this one is the refit of, by stage; empty: it is none.
    """

    def __init__(self, data: Dataset, settings: DistillationSettings, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        self.data, self._settings, self._chosen = data, settings, chosen
        #: What is learned last, by the number of days.
        self._found_newest: dict[float, Newest | None] = {}

    def half_life(self, stage: Stage) -> float | None:
        """After how many days a pass of a stage takes an interaction half as often; None: all alike."""
        if stage.half_life_days != "auto":
            return stage.half_life_days
        if self._chosen:  # nothing is held out: what was chosen where something was
            half_life: float | None = self._chosen.get(stage.id, {}).get("half_life_days")
            return half_life
        return self._drift

    @functools.cached_property
    def _drift(self) -> float | None:
        """The half-life where counts say that the log changes with time."""
        found = drift(self.data, filter_seen=self._settings.evaluation.filter_seen, seed=self._settings.seed)
        if found.half_life_days is not None:
            logger.info(
                f"the log changes with time: transitions that are counted with a half-life of {HALF_LIFE_DAYS:g} days "
                f"predict validation better ({NDCG10.label} {found.aged:.4f}, without {found.plain:.4f}). "
                f"So a pass takes interactions half as often for each {found.half_life_days:g} days of age"
            )
        return found.half_life_days

    def training(self, stage: Stage, histories: Histories, data: Dataset) -> tuple[Training, ByAge | None]:
        """How a stage is trained on histories, and what a pass takes of them; None: all of them.

        What is drawn behind the histories of the data has no age.
        """
        half_life = self.half_life(stage) if histories is data else None
        if half_life is None:
            return stage.training, None
        newer = by_age(histories, half_life)
        most = min(stage.training.epoch_positions or newer.positions, newer.positions)
        return stage.training.model_copy(update={"epoch_positions": most}), newer

    def newest(self, stage: Stage) -> Newest | None:
        """What a stage learns last; None: nothing, all is learned together."""
        days = stage.newest_days
        if self._chosen:  # whatever was possible there
            days = self._chosen.get(stage.id, {}).get("newest_days")
        elif days == "auto":
            ages = self.data.is_temporal and self.half_life(stage) is not None
            days = NEWEST_DAYS if ages else None
        if days is None:
            return None
        if days not in self._found_newest:
            found = self._found_newest[days] = newest_of(self.data, days)
            if found is None:
                logger.info(
                    f"  the newest {days:g} days are not learned last: they hold no row, or more than half of them, or "
                    "nothing can be learned before"
                )
        return self._found_newest[days]

    def chosen_by(self, stage: Stage, newest: Newest | None) -> Dataset:
        """The data whose validation targets choose the epochs of a stage.

        Of what comes before the newest rows, these are the first of them. But not where they are few, nor for a model
        whose teachers or first weights have learned them.
        """
        if newest is None or stage.teachers or stage.starts_from is not None:
            return self.data
        few = len(newest.before.valid) < min(LEAST_TARGETS, len(self.data.valid))
        return self.data if few else newest.before
