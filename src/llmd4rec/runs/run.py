"""A run folder: what was trained, with which settings, on which data, and how to get the models back.

    config.yaml        every setting, defaults written out
    environment.json   versions, machine, threads, commit; and what of them was different in later sessions
    run.json           data set, stages done and their figures
    metrics.jsonl      one line per epoch
    catalogue.parquet  item_id and title in index order, so that the run can answer without the data set
    text_vectors.safetensors   what the LLM reads of the catalogue's texts
    checkpoints/STAGE/best.safetensors
    checkpoints/STAGE/training/   while it is trained, see training/fit.py
    histories/         while somebody is taught on them, see continued.py
    teachers/          while somebody listens, see publish.py
    .lock              held by the process that trains
    evaluation/        per-user results and metrics of each model
    report.html

A *stage* is one training: `crm-alone`, `wide-alone`, `llm-alone`, `llm-round-1`, `crm-round-1`, ...
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
import torch
from safetensors import SafetensorError
from torch import Tensor

from llmd4rec.config.settings import check, differences, load_settings, save_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import MutualDistillation, Student
from llmd4rec.errors import RunError
from llmd4rec.io.files import atomic_dir, read_json, remove, sha256_file, write_json
from llmd4rec.log import logger
from llmd4rec.models.base import Ranker
from llmd4rec.runs.invalidation import depends, refused
from llmd4rec.training import checkpoint
from llmd4rec.training.processes import Processes
from llmd4rec.training.runtime import derive_seed, environment, select_device
from llmd4rec.training.tracking import MetricsLog

if TYPE_CHECKING:
    from llmd4rec.inference.recommender import Recommender

FORMAT_VERSION = 1
Stage = Literal["alone", "distilled"]


@dataclass
class Record:
    """What run.json holds."""

    data: str
    data_path: str | None
    items: int
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: bool = False
    stopped_because: str = ""
    #: The language model that was built on: origin, layers, fingerprint of its weights.
    llm: dict[str, Any] | None = None
    #: SHA-256 of text_vectors.safetensors, where there is one.
    text_vectors: str | None = None
    format: int = FORMAT_VERSION


class Run:
    """A run folder, open."""

    def __init__(self, folder: Path, settings: MutualDistillation, record: Record) -> None:
        self.folder, self.settings, self.record = folder, settings, record
        #: Of several processes that train together only the first one writes.
        self.writes = Processes.current().first
        self.log = MetricsLog(folder / "metrics.jsonl")

    # ---- making and opening -------------------------------------------------------------------------------------
    @classmethod
    def start(cls, folder: Path, settings: MutualDistillation, data: Dataset, *, locked: bool = True) -> Run:
        """A new run folder, or the unfinished or finished one that is there.

        Args:
            locked: nobody else trains in it, so it may be given other settings where nothing that was trained
                depends on them; otherwise it comes as it is.

        Raises:
            RunError: the folder holds another run or something else.
        """
        if (folder / "run.json").exists():
            run = cls.open(folder)
            run.require(data)
            if run.settings == settings:
                return run
            stopping = refused(run.settings, settings, run.begun())
            if stopping:
                concerned = list(dict.fromkeys(stage for stages in stopping.values() for stage in stages))
                remedy = "Choose another run folder, or use the settings in its config.yaml to continue it."
                if not any(stage in run.record.stages for stage in concerned):
                    parts = ", ".join(str(run.checkpoint_of(stage) / "training") for stage in concerned)
                    remedy = f"Use the settings in its config.yaml, or remove {parts} to begin that training again."
                raise RunError(f"{folder} holds a run with other settings: {'; '.join(stopping)}", remedy)
            if locked:
                run._change_settings(settings)
            return run
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists and is not a run folder", "Choose another path with --run.")
        run = cls(
            folder, settings, Record(data.fingerprint, str(data.path.resolve()) if data.path else None, data.num_items)
        )
        with atomic_dir(folder) as temporary:
            save_settings(settings, temporary / "config.yaml")
            write_json(temporary / "environment.json", environment())
            names, buffer = pl.DataFrame({"item_id": data.item_ids, "title": data.titles}), io.BytesIO()
            names.write_parquet(buffer)  # by way of memory: polars does not say that a disk is full
            (temporary / "catalogue.parquet").write_bytes(buffer.getbuffer())
            write_json(temporary / "run.json", vars(run.record))
        return run

    def begun(self) -> list[str]:
        """The trainings that have begun, finished or not."""
        unfinished = sorted(path.parent.name for path in (self.folder / "checkpoints").glob("*/training"))
        return list(dict.fromkeys([*self.record.stages, *unfinished]))

    def _change_settings(self, settings: MutualDistillation) -> None:
        """Other settings, on which nothing depends that was trained; what else has been made by the old ones goes."""
        begun = self.begun()
        lines = [
            line for line in differences(self.settings, settings) if depends("crm-round-1", line.partition(":")[0])
        ]
        self.settings = settings
        if lines:
            self.record.finished = False
            if not any(stage.startswith("llm-") for stage in begun):
                self.record.llm = None
            if not begun:
                self.record.text_vectors = None
        if not self.writes:
            return
        if lines:
            for name in ("teachers", "histories"):
                remove(self.folder / name)
            if not begun:
                (self.folder / "text_vectors.safetensors").unlink(missing_ok=True)
            else:
                what = f"{self.folder}: other settings from here on: {'; '.join(lines)} (kept: {', '.join(begun)})"
                logger.info(what)
            self.save()
        save_settings(settings, self.folder / "config.yaml")

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Opens an existing run folder.

        Raises:
            RunError: it is no run folder, or of another format version.
        """
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise RunError(
                f"{folder} is not a run folder (it has no run.json)",
                f"Make one with: llmd4rec train --data DATA --run {folder}",
            )
        values = read_json(folder / "run.json")
        if not isinstance(values, dict) or not values.keys() >= {"format", "data", "data_path", "items"}:
            raise RunError(f"{folder / 'run.json'} is damaged: it describes no run", "Train a new run.")
        if values["format"] != FORMAT_VERSION:
            raise RunError(
                f"{folder} has run format {values.get('format')!r}; this version reads {FORMAT_VERSION}",
                "Use the version of llmd4rec that made it.",
            )
        known = {name: value for name, value in values.items() if name in Record.__dataclass_fields__}
        return cls(folder, load_settings(MutualDistillation, folder / "config.yaml"), Record(**known))

    def save(self) -> None:
        """Writes run.json."""
        if self.writes:
            write_json(self.folder / "run.json", vars(self.record))

    def note_environment(self) -> None:
        """Adds to environment.json what is different from the session before, and says what may change the numbers."""
        path = self.folder / "environment.json"
        noted, now = read_json(path), environment()
        sessions = noted.setdefault("later_sessions", [])
        latest = {name: value for name, value in noted.items() if name != "later_sessions"}
        for session in sessions:
            latest |= session
        new = {name: value for name, value in now.items() if latest.get(name, value) != value}
        if new:
            sessions.append(new)
            write_json(path, noted)
        if rounding := [name for name in ("processor", "threads", "processes", "gpu", "packages") if name in new]:
            logger.warning(
                f"{self.folder} goes on with other {' and '.join(rounding)} than before: from here on numbers may "
                "differ in their last digits from those of a run never stopped"
            )

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
        if not other:
            self.require(data)
        return data

    # ---- models -------------------------------------------------------------------------------------------------
    def checkpoint_of(self, stage: str) -> Path:
        """The folder of one training."""
        return self.folder / "checkpoints" / stage

    def stage_of(self, model: Student, stage: Stage) -> str:
        """Which training holds that model: for `distilled` the round with the best validation.

        Raises:
            RunError: this run has no such model.
        """
        if stage == "alone":
            names = [f"{model}-alone"]
        else:
            names = [name for name in self.record.stages if name.startswith(f"{model}-round-")]
        done = [name for name in names if name in self.record.stages]
        if not done:
            have = ", ".join(self.record.stages) or "nothing yet"
            raise RunError(
                f"{self.folder} has no {stage} {model.upper()} (it has: {have})",
                "Choose another --model or --stage, or continue the run with `llmd4rec train`.",
            )
        return max(done, key=lambda name: self.record.stages[name]["validation_ndcg"])

    def models(self) -> list[tuple[Student, Stage]]:
        """The models this run can give, in the order of a before/after table."""
        order: list[tuple[Student, Stage]] = [
            ("crm", "alone"), ("crm", "distilled"), ("wide", "alone"), ("llm", "alone"), ("llm", "distilled")
        ]  # fmt: skip
        found = []
        for model, stage in order:
            prefix = f"{model}-alone" if stage == "alone" else f"{model}-round-"
            if any(name.startswith(prefix) for name in self.record.stages):
                found.append((model, stage))
        return found

    def build(self, model: Student, stage_name: str) -> Ranker:
        """A freshly initialised model of the run's settings, on its device."""
        from llmd4rec.models.llm.assemble import build_llm

        device = select_device(self.settings.device)
        seed = derive_seed(self.settings.seed, "weights", stage_name)
        if model != "llm":
            return self.settings.crm_in(stage_name).build(self.record.items, seed).to(device)
        vectors = self.text_vectors()
        settings = self.settings.llm_in(stage_name)
        network, used = build_llm(
            settings, self.record.items, self.settings.partner_crm.dim, vectors, seed, device, self.record.llm
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
        from llmd4rec.models.llm.assemble import load_text_vectors

        path, wanted = self.folder / "text_vectors.safetensors", self.record.text_vectors
        with contextlib.suppress(SafetensorError):
            if wanted is None or (path.exists() and sha256_file(path) == wanted):
                return load_text_vectors(self.folder)
        raise RunError(
            f"{path} is missing or not what the run was trained with",
            "Put it back from a copy, or delete it and run `train` again: it is made anew.",
        )

    def load(self, model: Student = "crm", stage: Stage = "distilled") -> Ranker:
        """A trained model, in evaluation mode. A run with `rounds: 0` has only the CRM alone."""
        return self.load_stage(model, self.stage_of(model, stage))

    def load_stage(self, model: Student, stage_name: str) -> Ranker:
        """The model that one training ended with, in evaluation mode."""
        ranker = self.build(model, stage_name)
        ranker.load_saved_state(self.weights_of(stage_name))
        return ranker.eval()

    def weights_of(self, stage_name: str) -> dict[str, Tensor]:
        """The weights that one training ended with.

        Raises:
            RunError: the file is missing, damaged, or not the one that the training wrote.
        """
        path = self.checkpoint_of(stage_name) / "best.safetensors"
        tensors, _ = checkpoint.load(path)
        if self.checksum_of(stage_name) not in (None, checkpoint.checksum_of(path)):
            raise RunError(
                f"{path} is not what {stage_name} ended with, says run.json",
                "Put the right file back. Or delete it and run `train` again, which then trains that stage anew, and "
                "those after it.",
            )
        return tensors

    def checksum_of(self, stage_name: str) -> str | None:
        """The checksum of a finished training's weights; None for one that was recorded without."""
        return self.record.stages[stage_name].get("checksum")

    def default_stage(self, model: Student) -> Stage:
        """`distilled` where the run has that model distilled, else `alone`."""
        return "distilled" if (model, "distilled") in self.models() else "alone"

    def served_stage(self, model: Student) -> Stage:
        """The stage to serve: the distilled model, unless validation says that the one trained alone is better."""
        if self.default_stage(model) == "alone":
            return "alone"
        alone, distilled = (
            self.record.stages[self.stage_of(model, stage)]["validation_ndcg"] for stage in ("alone", "distilled")
        )
        if distilled >= alone:
            return "distilled"
        logger.warning(
            f"{model.upper()}: the one trained alone (validation NDCG@10 {alone:.4f}) is taken, not the distilled one "
            f"({distilled:.4f}); --stage decides otherwise"
        )
        return "alone"

    def recommender(self, model: Student = "crm", stage: Stage | None = None) -> Recommender:
        """A trained model together with the catalogue, ready to answer."""
        from llmd4rec.inference.recommender import Recommender

        path = self.folder / "catalogue.parquet"
        try:
            catalogue = pl.read_parquet(path, columns=["item_id", "title"])
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(
                f"{path} is missing or damaged: {error}", "Put it back from a copy, or train a new run."
            ) from error
        ranker = self.load(model, stage or self.served_stage(model))
        names, titles = catalogue["item_id"].to_list(), catalogue["title"].to_list()
        return Recommender(ranker, names, titles, self.settings.evaluation.seen)

    @cached_property
    def crm(self) -> Recommender:
        """The served CRM with its catalogue; loaded once."""
        return self.recommender("crm")

    @cached_property
    def llm(self) -> Recommender:
        """The better of the LLMs, distilled and alone, with the catalogue; loaded once."""
        return self.recommender("llm")


def parse_settings(values: dict[str, Any]) -> MutualDistillation:
    """Checks plain values as settings of a run."""
    return check(MutualDistillation, values, "the settings")


def use_threads(settings: MutualDistillation) -> None:
    """Applies the run's thread count, if it names one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
