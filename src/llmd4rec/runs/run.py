"""A run folder: what was trained, with which settings, on which data, and how to get the models back.

    config.yaml                every setting, defaults written out
    environment.json           versions, machine, threads, commit; and what of them was different in later sessions
    run.json                   data set, finished stages and their figures (`record.py`)
    catalogue.parquet          the items in index order, so that the run can answer without the data set
    counts.npy                 int64 [I], how often each item occurs in the training data
    text_vectors.safetensors   vectors of the items' texts
    checkpoints/STAGE/         best.safetensors, the weights; metrics.jsonl, one line per epoch
    checkpoints/STAGE/item_embedding.safetensors   before its features were merged, see unmerged.py
    checkpoints/STAGE/training/   while it is trained, see training/trainer.py
    memory/                    what stands beside the models, see memory.py
    rollouts/                  while somebody is taught on them, see distillation/rollouts.py
    teachers/                  while somebody is taught by them, see distillation/cache.py
    .lock                      held by the process that trains
    evaluation/                per-user results and metrics of each stage
    report.html

Stages are those of the plan (`distillation/plan.py`): `undistilled`, `teacher-1`, `llm`, `distilled-round-1`, ...
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl
from safetensors import SafetensorError
from torch import Tensor

from llmd4rec.config.open_types import imports_refused
from llmd4rec.config.settings import differences, load_settings, save_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage, find, network_name, plan, rounds_of
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.stage_ids import BESIDE_MEMORY, DISTILLED, SERVED, UNDISTILLED
from llmd4rec.errors import RunError
from llmd4rec.inference.opening import LoadOptions
from llmd4rec.inference.recommender import Recommender
from llmd4rec.io.files import atomic_dir, remove, sha256_file, write_json
from llmd4rec.log import logger
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.events import require_event_features
from llmd4rec.models.llm.assemble import build_llm, load_text_vectors
from llmd4rec.models.llm.settings import LLM
from llmd4rec.runs import memory
from llmd4rec.runs.catalogue import read_catalogue, write_catalogue
from llmd4rec.runs.invalidation import go_elsewhere, require_no_conflict
from llmd4rec.runs.origin import require_same_origin, trained_on
from llmd4rec.runs.recommending import recommender_of
from llmd4rec.runs.record import Record
from llmd4rec.scoring.base import Scorer
from llmd4rec.scoring.factors import FactorScorer
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.torch_distributed import current_backend
from llmd4rec.training.loggers.json_lines import METRICS, MetricsLog
from llmd4rec.training.runtime import derive_seed, environment, select_device

#: What stages were called once, or what people may try.
_OTHER_NAMES = {"alone": UNDISTILLED, "crm": SERVED, "before": UNDISTILLED, "after": DISTILLED, "wide": "teacher-1"}
#: Attributes that a run once had.
_OTHER_ATTRIBUTES = {
    "crm": "run.recommender()",
    "llm": 'run.recommender("llm")',
    "load_stage": "run.load(stage)",
    "stage_of": "run.resolve(stage)",
    "served_stage": 'run.resolve("served")',
    "log": "run.metrics()",
}


class Run:
    """A run folder, open.

    >>> run = Run.open("runs/first")
    >>> run.resolve("distilled")
    'distilled-round-1'
    >>> run.recommender("undistilled")
    <Recommender: undistilled of the run first, sasrec, 12 items>
    """

    def __init__(self, folder: Path, settings: DistillationSettings, record: Record) -> None:
        self.folder, self.settings, self.record = folder, settings, record
        #: Of several processes that train together only the first one writes.
        self.writes = current_backend().first
        self._said_undistilled = False

    if not TYPE_CHECKING:  # a type checker shall find a wrong name

        def __getattr__(self, name: str) -> NoReturn:
            if hasattr(type(self), name):  # a property that failed: once more, for its own error
                object.__getattribute__(self, name)
            hint = f"; it is now {_OTHER_ATTRIBUTES[name]}" if name in _OTHER_ATTRIBUTES else ""
            raise AttributeError(f"a Run has no attribute {name!r}{hint}")

    @property
    def plan(self) -> list[Stage]:
        """All stages of the settings, trained or not."""
        return plan(self.settings)

    # ---- making and opening -------------------------------------------------------------------------------------
    @classmethod
    def start(
        cls,
        folder: Path,
        settings: DistillationSettings,
        data: Dataset,
        *,
        locked: bool = True,
        origin: dict[str, Any] | None = None,
    ) -> Run:
        """A new run folder, or the unfinished or finished one that is there.

        Args:
            locked: nobody else trains in it, so it may be given other settings where nothing that was trained
                depends on them; otherwise it comes as it is.
            origin: what the run comes from, if it is not trained from nothing; see `origin.py`.

        Raises:
            RunError: the folder holds another run or something else.
        """
        if (folder / "run.json").exists():
            run = cls.open(folder)
            require_same_origin(folder, run.record.origin, origin)
            run.require(data)
            if not differences(run.settings, settings):
                return run
            require_no_conflict(run, settings)
            if locked:
                run._change_settings(settings)
            return run
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists and is not a run folder", "Choose another path with --run.")
        run = cls(folder, settings, Record.of(data, settings.evaluation.selection.name))
        if origin is not None:
            run.record.origin, run.record.data_path = origin, origin["data_path"]
        with atomic_dir(folder) as temporary:
            save_settings(settings, temporary / "config.yaml")
            write_json(temporary / "environment.json", environment())
            write_catalogue(temporary, data)
            write_json(temporary / "run.json", vars(run.record))
        return run

    def begun(self) -> list[str]:
        """The ids of the stages that have begun, finished or not."""
        unfinished = sorted(path.parent.name for path in (self.folder / "checkpoints").glob("*/training"))
        return list(dict.fromkeys([*self.record.stages, *unfinished]))

    def _change_settings(self, settings: DistillationSettings) -> None:
        """Other settings, on which nothing depends that was trained; what else has been made by the old ones goes."""
        begun = self.begun()
        lines = "; ".join(differences(self.settings, settings))
        changed = go_elsewhere(self.settings, settings)
        recount = self.settings.memory != settings.memory
        made = [stage for stage in self.plan if stage.id in begun]
        self.settings, self.record.selection = settings, settings.evaluation.selection.name
        if changed or recount:
            self.record.finished = False
            memory.forget_memory(self)
        if changed:
            if not any(stage.role == "llm" for stage in made):
                self.record.llm = None
            if not any(stage.texts for stage in made):
                self.record.text_vectors = None
        if not self.writes:
            return
        if changed:
            for name in ("teachers", "rollouts"):
                remove(self.folder / name)
            if self.record.text_vectors is None:
                (self.folder / "text_vectors.safetensors").unlink(missing_ok=True)
        if changed or recount:
            if begun:
                logger.info(f"{self.folder}: other settings from here on: {lines} (kept: {', '.join(begun)})")
            self.save()
        save_settings(settings, self.folder / "config.yaml")

    @classmethod
    def open(cls, folder: Path | str, *, trust_code: bool = False) -> Run:
        """Opens an existing run folder.

        Args:
            folder: of the run.
            trust_code: import the modules that its settings name. Without it only classes are found whose module this
                process has imported already, since a run of somebody else's may name any code.

        Raises:
            RunError: it is no run folder, of another format version, or names code that would have to be imported.
        """
        folder = Path(folder)
        record = Record.read(folder)
        with contextlib.nullcontext() if trust_code else imports_refused(str(folder)):
            return cls(folder, load_settings(DistillationSettings, folder / "config.yaml"), record)

    def save(self) -> None:
        """Writes run.json."""
        if self.writes:
            write_json(self.folder / "run.json", vars(self.record))

    def require(self, data: Dataset) -> None:
        """Refuses data that is not this run's.

        Raises:
            RunError: the fingerprints differ.
        """
        if not data.is_known_as(self.record.data):
            raise RunError(
                f"{self.folder} was trained on other data than {data.path or 'the given data set'} "
                f"(fingerprints {self.record.data[:8]} and {data.fingerprint[:8]})",
                f"Use its own data set{f', {self.record.data_path}' if self.record.data_path else ''}, "
                "or train a new run on this one. (`llmd4rec evaluate --other-data` takes it, and says so.)",
            )

    def trained_on(self, data: Dataset) -> Dataset:
        """The run's data set as it was trained on: of a refitted or updated run every row, over its catalogue.

        Raises:
            RunError: it is not the run's.
        """
        if self.record.origin is not None and data.is_known_as(self.record.origin["data"]):
            return trained_on(data, self.catalogue())
        self.require(data)
        return data

    def load_data(self, path: Path | None = None, *, other: bool = False) -> Dataset:
        """The run's data set, from `path` or from where it was trained; with `other`, whatever data set is there.

        Raises:
            DataError: it is not there.
            RunError: it is not the run's, or the run does not know where it is.
        """
        where = path or (Path(self.record.data_path) if self.record.data_path else None)
        if where is None:
            raise RunError(
                f"{self.folder} does not know where its data set is: it was not yet saved when the run was trained",
                "Save it with data.save(FOLDER), then name it: --data FOLDER.",
            )
        data = Dataset.load(where)
        return data if other else self.trained_on(data)

    # ---- models -------------------------------------------------------------------------------------------------
    def checkpoint_of(self, stage_id: str) -> Path:
        """The folder of one stage."""
        return self.folder / "checkpoints" / stage_id

    def log_of(self, stage_id: str) -> MetricsLog:
        """The figures of one stage's epochs."""
        return MetricsLog(self.checkpoint_of(stage_id) / METRICS)

    def metrics(self) -> list[dict[str, Any]]:
        """The figures of all epochs, in the order of the plan, each with its `stage`."""
        return [line for stage in self.plan for line in self.log_of(stage.id).read()]

    def resolve(self, name: str = SERVED) -> str:
        """The id of a finished stage.

        Args:
            name: an id; `distilled`: the model of the last round; `served`: what validation chose among `undistilled`,
                the rounds and `beside-memory`, each with the memory where it wants that; the taught one where they are
                equal.

        Raises:
            RunError: this run has no such stage, or it is not finished.
        """
        done = self.record.stages
        rounds = [stage.id for stage in rounds_of(self.plan, "model") if stage.id in done]
        if name == DISTILLED and rounds:
            return rounds[-1]
        if name == SERVED and self.record.origin is not None and self.record.origin["served"] in done:
            return str(self.record.origin["served"])
        if name == SERVED and UNDISTILLED in done:
            taught = [*rounds, *([BESIDE_MEMORY] if memory.is_wanted(self, BESIDE_MEMORY) else [])]
            value = memory.validation_with(self, [UNDISTILLED, *taught])
            best = max((stage for stage in taught if stage in value), key=value.__getitem__, default=UNDISTILLED)
            if value[best] >= value[UNDISTILLED]:
                return best
            unsettled = self.settings.memory is not None and not self.record.finished  # it is not weighed yet
            if not self._said_undistilled and not unsettled:  # once, however often it is asked
                self._said_undistilled = True
                taken, other = (
                    f"{memory.as_served(self, stage)} ({value[stage]:.4f})" for stage in (UNDISTILLED, best)
                )
                logger.warning(
                    f"validation takes {taken}, not {other}; evaluate, recommend and export take another with --stage"
                )
            return UNDISTILLED
        if name in done:
            return name
        named = [*done, *([DISTILLED] if rounds else []), *([SERVED] if done else []), *memory.names(self)]
        have = ", ".join(named) or "nothing yet"
        hint = f" ({name!r} is now {_OTHER_NAMES[name]!r})" if name in _OTHER_NAMES else ""
        raise RunError(
            f"{self.folder} has no finished stage {name!r}{hint}; it has: {have}",
            "Choose another stage (--stage), or continue the run with `llmd4rec train`.",
        )

    def resolve_alone(self) -> str:
        """The id of what is served; where that is `beside-memory`, of the best model that can do without a memory.

        Raises:
            RunError: no model is finished.
        """
        if self.resolve(SERVED) != BESIDE_MEMORY:
            return self.resolve(SERVED)
        models = [stage.id for stage in self.plan if stage.role == "model" and not stage.beside_memory]
        # The later one where two are equal: it was taught.
        return max((stage for stage in reversed(models) if stage in self.record.stages), key=self.validation_of)

    def stage(self, name: str = SERVED) -> Stage:
        """The plan of a finished stage; see :meth:`resolve`."""
        return find(self.plan, self.resolve(name))

    def validation_of(self, stage_id: str) -> float:
        """Validation value of a finished stage, by the selection metric of the settings."""
        return float(self.record.stages[stage_id]["validation"])

    def reported(self) -> list[Stage]:
        """The finished stages of a results table: of each model the first and the last, and the one that is served."""
        done = [stage for stage in self.plan if stage.id in self.record.stages]
        last = {stage.role: stage.id for stage in done if stage.round and not stage.beside_memory}
        shown = {*last.values(), self.resolve(SERVED), BESIDE_MEMORY} if done else set()
        return [stage for stage in done if not stage.round or stage.id in shown]

    def build(self, stage: Stage) -> SequenceEncoder:
        """The model of a stage, freshly initialised, on the run's device."""
        device = select_device(self.settings.device)
        seed = derive_seed(stage.seed, "weights", stage.seed_key)
        if not isinstance(stage.network, LLM):
            model = stage.network.build(self.record.items, seed).to(device)
            require_event_features(model, stage.network.event_features)
            return model
        assert stage.item_dim is not None
        network, used = build_llm(
            stage.network, self.record.items, stage.item_dim, self.text_vectors(), seed, device, self.record.llm
        )
        if self.record.llm is None:
            self.record.llm = used
            self.save()
        return network

    def text_vectors(self) -> Tensor | None:
        """What the models read of the items' texts, [I, T]; None where they read none.

        Raises:
            RunError: the file is missing or is not the one that the run was trained with.
        """
        path, wanted = self.folder / "text_vectors.safetensors", self.record.text_vectors
        with contextlib.suppress(SafetensorError):
            if wanted is None or (path.exists() and sha256_file(path) == wanted):
                return load_text_vectors(self.folder)
        raise RunError(
            f"{path} is missing or not what the run was trained with",
            "Put it back from a copy, or delete it and run `train` again: it is made anew.",
        )

    def load(self, name: str = SERVED) -> SequenceEncoder:
        """The model of a finished stage, in evaluation mode; see :meth:`resolve`."""
        stage = self.stage(name)
        model = self.build(stage)
        model.load_saved_state(self.weights_of(stage.id))
        return model.eval()

    def scorer(self, stage: str = SERVED) -> Scorer:
        """What scores the catalogue, for an evaluator.

        Args:
            stage: `served`: the model that validation chose, with the memory where validation wants it beside it; a
                stage (see :meth:`resolve`): its model; `undistilled+memory` and the like: with the memory; `memory`:
                the memory alone.

        Raises:
            RunError: the run has no such stage, or no memory.
        """
        return memory.scorer_of(self, stage)

    def model_scorer(self, stage: str = SERVED) -> FactorScorer:
        """The model of a finished stage without a memory; see :meth:`resolve`."""
        found = self.stage(stage)
        return FactorScorer(self.load(found.id), name=network_name(found), stage=found.id)

    def weights_of(self, stage_id: str) -> dict[str, Tensor]:
        """The weights that one training ended with.

        Raises:
            RunError: the file is missing, damaged, or not the one that the training wrote.
        """
        path = self.checkpoint_of(stage_id) / "best.safetensors"
        tensors, _ = checkpoint.load(path)
        if self.checksum_of(stage_id) not in (None, checkpoint.checksum_of(path)):
            raise RunError(
                f"{path} is not what {stage_id} ended with, says run.json",
                "Put the right file back. Or delete it and run `train` again, which then trains that stage anew, and "
                "those after it.",
            )
        return tensors

    def checksum_of(self, stage_id: str) -> str | None:
        """The checksum of a finished training's weights; None for one that was recorded without."""
        return self.record.stages[stage_id].get("checksum")

    def catalogue(self) -> pl.DataFrame:
        """All items with their titles and other fields, in index order.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_catalogue(self.folder)

    def recommender(self, stage: str = SERVED) -> Recommender:
        """The model of a finished stage with the catalogue, ready to answer; see :meth:`resolve`."""
        return recommender_of(self, LoadOptions(stage))


def open_recommender(folder: Path, options: LoadOptions) -> Recommender:
    """What :meth:`Recommender.load` gives for a run folder."""
    return recommender_of(Run.open(folder, trust_code=options.trust_code), options)
