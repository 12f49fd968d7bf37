"""What Python users name: models and distillations that are fitted to a data set. What is not named is not trained.

model = SASRec(dim=64).fit(data)
run = Distillation(model=SASRec(dim=64), llm=LLM(layers=4), teachers="default").fit(data, "runs/first")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmd4rec.config.settings import check
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.teachers import Teacher
from llmd4rec.errors import ConfigError
from llmd4rec.inference.recommender import Recommender
from llmd4rec.models import sequential
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.settings import ModelSettings
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.run import Run
from llmd4rec.training.backends.base import Backend
from llmd4rec.training.callbacks.base import Callback


class Model(ModelSettings):
    """Settings of a sequential model that can be fitted; derive from it to add one.

    >>> isinstance(SASRec(dim=8), Model)
    True

    :class:`~llmd4rec.models.settings.ModelSettings` shows how.
    """

    def fit(
        self, data: Dataset, folder: Path | str | None = None, *, callbacks: Sequence[Callback] = (), **settings: Any
    ) -> Recommender:
        """Trains this model alone on `data`: no teacher, no language model.

        Args:
            data: to train on.
            folder: of the run, where an unfinished one is continued; None: a temporary one.
            callbacks: as for :meth:`Distillation.fit`.
            **settings: of the run, such as `seed=1` or `training={"model": {"epochs": 20}}`.

        Raises:
            ConfigError: a setting is wrong.
            RunError: the folder holds a run of other data or settings.
        """
        if named := sorted({"model", "llm", "teachers", "rounds", "distill", "ensemble"} & settings.keys()):
            raise ConfigError(
                f"fit trains this model without a teacher, and takes no {named[0]!r}", "Use Distillation(...)."
            )
        values = {"model": self, "rounds": 0} | settings
        return check(Distillation, values, "the settings").fit(data, folder, callbacks=callbacks).recommender()


class SASRec(sequential.SASRec, Model):
    """SASRec (Kang and McAuley, ICDM 2018): causal self-attention over the items of a history.

    >>> recommender = SASRec(dim=8, item_features="id").fit(data, training={"model": {"epochs": 1}})
    >>> len(recommender.recommend(["i3", "i4"], k=5).items)
    5
    """

    written_as: ClassVar[type[ModelSettings]] = sequential.SASRec


class GRU4Rec(sequential.GRU4Rec, Model):
    """GRU4Rec (Hidasi et al., ICLR 2016): a recurrent network.

    >>> recommender = GRU4Rec(dim=8, item_features="id").fit(data, training={"model": {"epochs": 1}})
    >>> len(recommender.recommend(["i3", "i4"], k=5).items)
    5
    """

    written_as: ClassVar[type[ModelSettings]] = sequential.GRU4Rec


class BSARec(sequential.BSARec, Model):
    """BSARec (Shin et al., AAAI 2024): attention beside a frequency filter.

    >>> recommender = BSARec(dim=8, item_features="id").fit(data, training={"model": {"epochs": 1}})
    >>> len(recommender.recommend(["i3", "i4"], k=5).items)
    5
    """

    written_as: ClassVar[type[ModelSettings]] = sequential.BSARec


class LiGR(sequential.LiGR, Model):
    """LiGR, as in eSASRec (Tikhonovich et al., RecSys 2025): gated pre-norm attention blocks.

    >>> recommender = LiGR(dim=8, item_features="id").fit(data, training={"model": {"epochs": 1}})
    >>> len(recommender.recommend(["i3", "i4"], k=5).items)
    5
    """

    written_as: ClassVar[type[ModelSettings]] = sequential.LiGR


class Distillation(DistillationSettings):
    """A model, its teachers and how they teach: all settings of a run, and :meth:`fit`.

    >>> model, one_epoch = SASRec(dim=8, item_features="id"), {"model": {"epochs": 1}}
    >>> run = Distillation(model=model, teachers=1, rounds=1, training=one_epoch).fit(data)
    >>> list(run.record.stages)
    ['undistilled', 'teacher-1', 'distilled-round-1']

    `llm` and `teachers` are none unless they are named; `teachers="default"` are three of four times the width.
    """

    if TYPE_CHECKING:  # what validation accepts is wider than the types of the fields

        def __init__(
            self,
            *,
            model: ModelSettings | str | Mapping[str, Any] = ...,
            teachers: Literal["default"]
            | int
            | Sequence[Teacher | ModelSettings | str | Mapping[str, Any]]
            | None = ...,
            llm: LLM | Mapping[str, Any] | None = ...,
            rounds: int = ...,
            **settings: Any,
        ) -> None: ...

    def fit(
        self,
        data: Dataset,
        folder: Path | str | None = None,
        *,
        jobs: int = 1,
        callbacks: Sequence[Callback] = (),
        backend: Backend | None = None,
    ) -> Run:
        """Trains on `data`; continues an unfinished run found in `folder`.

        Args:
            data: to train on.
            folder: of the run; None: a temporary one.
            jobs: how many independent stages are trained side by side.
            callbacks: called in every training of the run, in the process that trains; not with `jobs`.
            backend: the processes that train together; None: those that torchrun has started, or this one. A script
                under torchrun may give `TorchDistributedBackend(ddp=True)`, once it has called `init_distributed()`.

        Raises:
            RunError: the folder holds a run of other data or settings.
            DataError: the data cannot be trained on.
        """
        return train(self, data, folder, jobs=jobs, callbacks=callbacks, backend=backend)
