"""A served model brought up to date: it goes on from its weights, with newer rows and a sample of older ones.

A full training on the longer log costs many epochs. An update takes a few, of the rows that are new and of older ones
drawn by how recent they are, so that it learns what is new and keeps what it knew:

    items      found again by identifier; a new one begins as its item features say (text, words, attributes,
               neighbours), or, where the run has kept none, as a map from texts to trained rows says
    users      have nothing of their own, so that new ones cost nothing
    training   every row of the data set; nothing is held out. New ones are learned in order of time (runs/newest.py)
"""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from llmd4rec.data.arrays import Int64Array
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import open_cache, write_cache
from llmd4rec.distillation.plan import Stage, find
from llmd4rec.distillation.stage_ids import UNDISTILLED
from llmd4rec.errors import ConfigError, DataError, RunError
from llmd4rec.features.item_features import ItemFeatures, item_features
from llmd4rec.inference.text_map import fit_map, with_one
from llmd4rec.io.files import remove, sha256_file
from llmd4rec.log import logger
from llmd4rec.losses.base import Objective
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.base import SequenceEncoder, count_parameters
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.llm.assemble import prepare_text_vectors
from llmd4rec.models.llm.settings import LLM
from llmd4rec.runs.memory import add_memory
from llmd4rec.runs.newest import Passes, in_order, learn
from llmd4rec.runs.opening import carried_out, check_data
from llmd4rec.runs.origin import origin_of, rows_in, with_kept_items
from llmd4rec.runs.record import last_training_time
from llmd4rec.runs.run import Run
from llmd4rec.runs.teachers import negatives_of
from llmd4rec.runs.unmerged import FILE as UNMERGED
from llmd4rec.runs.unmerged import load_unmerged, moved_rows, save_unmerged
from llmd4rec.training import checkpoint
from llmd4rec.training.backends.local import LocalBackend
from llmd4rec.training.backends.torch_distributed import current_backend
from llmd4rec.training.runtime import derive_seed, select_device
from llmd4rec.training.settings import Training

#: Of the map that places new items where no features were kept.
_STRENGTH = 0.3


class Update(Passes):
    """How a model is brought up to date."""

    remember: float = Field(
        0.0, ge=0, description="weight of the distillation term whose teacher is the model as it was; 0: none"
    )
    drop_missing: bool = Field(
        False, description="whether items leave the catalogue that the new data set's does not have"
    )


#: What is done where nothing else is said.
USUAL = Update()


def update(
    run: Run, data: Dataset, folder: Path | str | None = None, *, how: Update = USUAL, memory: bool = True
) -> Run:
    """Goes on with the served model of a run on a newer log, or with an update that was interrupted.

    Args:
        run: finished; refitted and updated ones too.
        data: the newer log, with the rows that the run was trained on as far as they are still wanted. Every row of it
            is trained on.
        folder: of the new run; an unfinished update found there is continued. None: a temporary one.
        how: steps, epochs, replay, learning rate.
        memory: count the run's memory anew; without it the new run has none.

    Raises:
        RunError: the run is not finished, has no item in common with the data or has seen all of its rows, or `folder`
            holds something else.
        DataError: the data cannot be trained on.
        ConfigError: a language model is served, which cannot be updated.
    """
    origin = origin_of(run, "update", data, how=how.model_dump(mode="json"))
    old_row = rows_in(run, data)
    if not (old_row >= 0).any():
        raise RunError(
            f"no item of {data.path or 'the given data set'} is known to {run.folder}",
            "Check that its items have the same identifiers, or train a new run.",
        )
    whole = data.whole()
    if not how.drop_missing:
        gone = run.catalogue().filter(~pl.col("item_id").is_in(data.item_ids))
        if len(gone):
            whole = with_kept_items(whole, gone)
            old_row = rows_in(run, whole)
    new = new_rows(run, whole)
    if not new.any():
        raise RunError(
            f"every row of {data.path or 'the given data set'} was there already when {run.folder} was trained",
            "Give a newer log, prepared with the rows that came since.",
        )
    check_data(run.settings, whole, validates=False)
    work = _Updating(run, whole, new, old_row, how, memory)
    return carried_out(run.settings, whole, folder, work, backend=LocalBackend(), origin=origin)


def new_rows(run: Run, data: Dataset) -> NDArray[np.bool_]:
    """Which rows the run was not trained on, [N].

    Those behind its last training interaction, and those that are not among the rows that it was trained on: what was
    held out then, what came in late, and the rest of the moment at which its log ended. In logs without times, the rows
    that a user has more than then. Where the data of a refit or an update are no longer there, only what is later.
    """
    everything = run.record.origin is not None  # refits and updates hold nothing out
    later = _behind(data, run.record.trained_until)
    before = _own_data(run, needed=later is None, said=not everything)
    if before is None:
        assert later is not None
        return later
    if later is None:  # a run of before it was written down, or one without times
        later = _behind(data, last_training_time(before))
    ends = before.offsets[1:] if everything else before.train_end
    if later is not None and before.event_times is not None:
        return later | ~_among(data, before, ends)
    trained = dict(zip(before.user_ids.to_list(), (ends - before.offsets[:-1]).tolist(), strict=True))
    known = np.array([trained.get(user, 0) for user in data.user_ids.to_list()], dtype=np.int64)
    place = np.arange(data.num_interactions) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    more: NDArray[np.bool_] = place >= np.repeat(known, np.diff(data.offsets))
    return more if later is None else later | more


def _among(data: Dataset, before: Dataset, ends: Int64Array) -> NDArray[np.bool_]:
    """Which rows have the user, the item and the time of a row of other data, up to an end in each history; [N]."""
    frames = []
    users = {user: number for number, user in enumerate(before.user_ids.to_list())}
    items = {item: number for number, item in enumerate(before.item_ids)}
    for each in (data, before):
        user_U = np.array([users.get(user, -1) for user in each.user_ids.to_list()], dtype=np.int64)
        item_I = np.array([items.get(item, -1) for item in each.item_ids], dtype=np.int64)
        frames.append(
            pl.DataFrame(
                {
                    "user": np.repeat(user_U, np.diff(each.offsets)),
                    "item": item_I[np.asarray(each.items)],
                    "time": np.asarray(each.event_times),
                }
            )
        )
    trained = np.arange(before.num_interactions) < np.repeat(ends, np.diff(before.offsets))
    known = frames[1].filter(pl.Series(trained)).unique()
    found = frames[0].with_row_index().join(known, on=["user", "item", "time"], how="semi")["index"]
    among = np.zeros(data.num_interactions, dtype=np.bool_)
    among[found.to_numpy()] = True
    return among


def _behind(data: Dataset, moment: int | None) -> NDArray[np.bool_] | None:
    """Which rows come after a moment; None where that cannot be told."""
    times = data.event_times
    return None if times is None or moment is None else np.asarray(times > moment)


def _own_data(run: Run, *, needed: bool, said: bool) -> Dataset | None:
    """What the run was trained on; None where it is no longer there and times tell enough, which may be said."""
    try:
        return run.load_data()
    except (DataError, RunError):
        if needed:
            raise
        if said:
            logger.warning(
                f"the data that {run.folder} was trained on are not there: rows that it held out, and that are older "
                "than its last training interaction, count as old"
            )
        return None


class _Updating:
    """The training of an update, in one step or several."""

    def __init__(
        self, run: Run, data: Dataset, new: NDArray[np.bool_], old_row: Int64Array, how: Update, memory: bool
    ) -> None:
        self.run, self.data, self.new, self.old_row, self.how, self.memory = run, data, new, old_row, how, memory
        self.device = select_device(run.settings.device)

    def __call__(self, into: Run) -> None:
        """Trains, keeps the weights and the record that they are there."""
        served = find(self.run.plan, self.run.resolve_alone())
        if isinstance(served.network, LLM):
            raise ConfigError("a language model is served, which cannot be updated", "Refit the run instead.")
        settings = self.run.settings
        folder = into.checkpoint_of(served.id)
        self._prepare_texts(served, into)
        steps = in_order(self.data, self.new, self.how.step_days)
        build = functools.partial(self._build, served, into)
        model, features = build(steps[0].data)
        self._start(served, into, model, features)
        at_once = f", in {len(steps)} steps" if len(steps) > 1 else ""
        if self.data.event_times is None:
            at_once = ", all at once: the log has no times"
        logger.info(f"{served.id}: {int(self.new.sum()):,} new rows of {self.data.num_interactions:,}{at_once}")
        model, features, fitted = learn(
            model,
            features,
            steps,
            self.how,
            settings=settings.training.model,
            build=build,
            objective=lambda data, training: self._objective(served, into, data, training),
            candidates=lambda data: negatives_of(served, data),
            folder=folder / "training",
            log_folder=folder,
            stage=served.id,
            seed=settings.seed,
            backend=current_backend(),
            loggers=settings.loggers,
        )
        if features:
            save_unmerged(folder / UNMERGED, item_embedding_of(model), features, self.data.item_ids)
            item_embedding_of(model).merge()
        head = {"stage": served.id, "epoch": fitted.best_epoch, "value": 0.0}
        total, trainable = count_parameters(model)
        into.record.stages[served.id] = {
            "validation": self.run.validation_of(served.id),
            **{name: value for name, value in asdict(fitted).items() if name != "best_value"},
            "teachers": {},
            "parameters": total,
            "trainable_parameters": trainable,
            "checksum": checkpoint.save(folder / "best.safetensors", model.saved_state(), head),
        }
        into.record.memory = add_memory(into, self.data, self.device) if self.memory else None
        into.record.finished = True
        into.save()
        remove(folder / "training")
        remove(into.folder / "teachers")

    def _prepare_texts(self, served: Stage, into: Run) -> None:
        if served.texts is None:
            return
        prepare_text_vectors(served.texts, self.run.settings.llm, self.data, into.folder, self.device)
        path = into.folder / "text_vectors.safetensors"
        if path.exists() and into.record.text_vectors is None:
            into.record.text_vectors = sha256_file(path)
            into.save()

    def _build(self, served: Stage, into: Run, data: Dataset) -> tuple[SequenceEncoder, ItemFeatures | None]:
        """The model without weights, with the item features of some data attached, where the run has kept its own.

        It learns from the log alone, and so with the dropout of a model without a teacher, whatever it had last.
        """
        assert not isinstance(served.network, LLM)
        model = into.build(replace(served, network=find(self.run.plan, UNDISTILLED).network))
        if not self._kept(served).exists():
            return model, None
        features = item_features(served.network.item_features, data, into.text_vectors())
        item_embedding_of(model).attach(features, derive_seed(served.seed, "texts", served.seed_key))
        return model, features

    def _kept(self, served: Stage) -> Path:
        """Where the run has kept its item embedding as it was before features were merged into it."""
        return self.run.checkpoint_of(served.id) / UNMERGED

    def _start(self, served: Stage, into: Run, model: SequenceEncoder, features: ItemFeatures | None) -> None:
        """Gives the model the weights that the run left, over the new catalogue."""
        weights = self.run.weights_of(served.id)
        weights["items.weight"] = self._placed(
            weights["items.weight"], into.text_vectors() if features is None else None
        )
        if features is None:
            model.load_saved_state(weights)
            return
        embedding = item_embedding_of(model)
        own = {f"items.{name}": tensor for name, tensor in embedding.state_dict().items() if name != "weight"}
        model.load_saved_state(weights | own)
        load_unmerged(self._kept(served), embedding, features, self.data.item_ids, self.old_row)

    def _placed(self, table_ID: Tensor, texts_IT: Tensor | None) -> Tensor:
        """The old rows in their new places; rows of new items from their texts, or the mean row."""
        rows_ID = moved_rows(table_ID, self.old_row)
        fresh, known = np.flatnonzero(self.old_row < 0), np.flatnonzero(self.old_row >= 0)
        if not len(fresh):
            return rows_ID
        rows_ID[torch.from_numpy(fresh)] = rows_ID[torch.from_numpy(known)].mean(0)
        if texts_IT is not None:
            texts = texts_IT.cpu().numpy()
            has = np.any(texts != 0, axis=1)
            fresh, known = fresh[has[fresh]], known[has[known]]
            if len(fresh) and len(known):
                text_map = fit_map(texts[known], rows_ID.numpy()[known], _STRENGTH)
                rows_ID[torch.from_numpy(fresh)] = torch.from_numpy(with_one(texts[fresh]) @ text_map)
        return rows_ID

    def _objective(self, served: Stage, into: Run, data: Dataset, training: Training) -> Objective:
        if not self.how.remember:
            return training.loss.objective(training)
        folder = into.folder / "teachers" / f"before-{data.num_interactions}"
        for other in (into.folder / "teachers").glob("before-*"):  # of a step that is done
            if other != folder:
                remove(other)
        made_of = {served.id: self.run.checksum_of(served.id)}
        try:
            cache = open_cache(folder, data, self.device, "int8", made_of)
        except (RunError, DataError):
            before = into.build(served)
            weights = self.run.weights_of(served.id)
            weights["items.weight"] = self._placed(weights["items.weight"], into.text_vectors())
            before.load_saved_state(weights)
            write_cache(
                before.eval(),
                data,
                folder,
                label="the model as it was",
                made_of=made_of,
                precision="int8",
                rank_items=training.num_candidates if data.num_items > training.full_softmax_items else None,
                candidates=negatives_of(served, data),
            )
            cache = open_cache(folder, data, self.device, "int8", made_of)
        return RankingObjective(training, cache, DistillationTerm(weight=self.how.remember))
