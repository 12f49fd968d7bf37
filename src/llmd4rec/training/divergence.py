"""Notices a training that diverges, long before its loss overflows, and says which setting to lower."""

from __future__ import annotations

import math
from pathlib import Path

from llmd4rec.errors import Diverged
from llmd4rec.training.progress import Progress
from llmd4rec.training.settings import Training

#: A training has diverged when its cross-entropy, averaged over about so many steps, is so many times worse than
#: where it started and than a uniform guess.
DIVERGED_STEPS, DIVERGED_TIMES = 50, 3.0


class Divergence:
    """The check of one training.

    Args:
        stage: id of the training, for messages.
        settings: of the training.
        settings_name: where they stand in the run's settings, such as `training.llm`.
        num_items: |I|.
        folder: of the checkpoints.
    """

    def __init__(self, stage: str, settings: Training, settings_name: str, num_items: int, folder: Path) -> None:
        self._stage, self._settings, self._settings_name, self._folder = stage, settings, settings_name, folder
        self._uniform = math.log(num_items)

    def watch(self, at: Progress, ce: float, step: int, rate: float, best: Path) -> None:
        """Takes the cross-entropy of a step into account.

        Raises:
            Diverged: it has climbed too far.
        """
        if math.isnan(at.first_ce):
            at.first_ce = at.ce_level = ce
        at.ce_level += (ce - at.ce_level) / DIVERGED_STEPS
        if at.total_steps > DIVERGED_STEPS and at.ce_level > DIVERGED_TIMES * max(1.0, self._uniform, at.first_ce):
            what = f"the cross-entropy rose to {at.ce_level:.1f} nats, where a uniform guess costs {self._uniform:.1f},"
            raise self.error(what, at, step, rate, best)

    def error(self, what: str, at: Progress, step: int, rate: float, best: Path) -> Diverged:
        """The error to raise.

        Args:
            what: was found.
            at: gives the epoch.
            step: of the epoch.
            rate: the learning rate.
            best: the file of the best weights so far.
        """
        clip = "" if self._settings.clip else f", or set {self._settings_name}.clip to 1"
        return Diverged(
            f"{self._stage}: training diverged: {what} in epoch {at.epoch}, step {step}, at learning rate {rate:.2g}",
            f"Lower {self._settings_name}.{self._settings.learning_rate_name}{clip}, in a new run folder; or, where no "
            f"finished training depends on it, in this one after {self._folder} is gone. The best weights before are "
            f"kept in {best}.",
        )
