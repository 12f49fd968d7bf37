"""Exponential moving average (EMA) of the trained weights, which validation judges and training keeps.

Not `torch.optim.swa_utils.AveragedModel`: it copies the whole module, with every frozen weight of a language model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Averages of some parameters; without a decay there are none, and nothing here does anything.

    Args:
        parameters: those that are trained, by name.
        decay: of the average per step; 0: no average.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self._averages = {
            name: (parameter, parameter.detach().clone()) for name, parameter in parameters.items() if decay
        }

    def update(self, step: int) -> None:
        """Moves the averages towards the weights as they are after a step, counted from 0."""
        if self._averages:
            # In the first steps the average must not hold on to the initial weights.
            decay = min(self._decay, (1 + step) / (10 + step))
            parameters, averages = zip(*self._averages.values(), strict=True)
            get_ema_multi_avg_fn(decay)(averages, parameters, step)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has its averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in self._averages.values():
            parameter.data, average.data = average.data, parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, for a checkpoint."""
        return {f"ema/{name}": average for name, (_, average) in self._averages.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`tensors` gave."""
        for name, (_, average) in self._averages.items():
            average.copy_(tensors[f"ema/{name}"])
