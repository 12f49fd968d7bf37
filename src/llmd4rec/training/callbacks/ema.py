"""Exponential moving average (EMA) of the trained weights, which validation judges and training keeps.

Not `torch.optim.swa_utils.AveragedModel`: it copies the whole module, with every frozen weight of a language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from llmd4rec.training.callbacks.base import Callback

if TYPE_CHECKING:
    from llmd4rec.training.trainer import Trainer


class EMA(Callback):
    """Averages of the trained parameters; with a decay of 0 there are none, and nothing here does anything.

    Args:
        decay: of the average per step; None: as the settings of the training say.
    """

    def __init__(self, decay: float | None = None) -> None:
        self._given = decay
        self._averages: dict[str, tuple[Tensor, Tensor]] = {}
        self._loaded: Mapping[str, Tensor] = {}

    def on_start(self, trainer: Trainer) -> None:
        """See :class:`~llmd4rec.training.callbacks.base.Callback`."""
        self._decay = trainer.settings.ema if self._given is None else self._given
        loaded, self._loaded = self._loaded, {}
        self._averages = {}
        if self._decay:
            for name, parameter in trainer.parameters.items():
                average = loaded[name].to(parameter.device) if name in loaded else parameter.detach().clone()
                self._averages[name] = parameter, average

    def on_step_end(self, trainer: Trainer) -> None:
        """Moves the averages towards the weights."""
        if self._averages:
            step = trainer.progress.total_steps - 1
            # In the first steps the average must not hold on to the initial weights.
            decay = min(self._decay, (1 + step) / (10 + step))
            parameters, averages = zip(*self._averages.values(), strict=True)
            get_ema_multi_avg_fn(decay)(averages, parameters, step)

    def on_validation_start(self, trainer: Trainer) -> None:
        """The model has its averaged weights from here to the end of the validation."""
        self._swap()

    def on_validation_end(self, trainer: Trainer) -> None:
        """And its own again."""
        self._swap()

    def _swap(self) -> None:
        for parameter, average in self._averages.values():
            parameter.data, average.data = average.data, parameter.data

    def state_dict(self) -> dict[str, Any]:
        """The averages by name."""
        return {name: average for name, (_, average) in self._averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._loaded = state
