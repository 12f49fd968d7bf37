"""Export of a trained model: a folder that needs neither this package nor PyTorch to answer.

`folder.py` says what it holds. Histories are cut to their last `max_length` items; their rows of the table go into the
graph, padded on the right with anything, and the state that comes out is compared with every row:

    scores = states @ item_table.T
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from llmd4rec import __version__
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import Stage
from llmd4rec.distillation.stage_ids import SERVED, UNDISTILLED, without_memory
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.export.graphs import check_parity, write_encoder, write_text_encoder
from llmd4rec.export.memory import (
    Beside,
    MemoryOption,
    bytes_in,
    described,
    lines_about,
    loss_by_rare_pairs,
    without_rare_pairs,
)
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.inference.encoder import OnnxEncoder, encode
from llmd4rec.inference.factors import FactorRowScorer
from llmd4rec.inference.fields import kinds_of
from llmd4rec.inference.folder import MEMORY
from llmd4rec.inference.folder_writer import finish, require_export_or_new, to_int8, write_catalogue, write_table
from llmd4rec.inference.head import FORMAT_VERSION, FORMAT_WITH_MEMORY
from llmd4rec.inference.text_map import Cases, fit_text_map
from llmd4rec.io.files import atomic_dir, write_json
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.llm.item_text import encode_texts
from llmd4rec.models.sequential import MODELS
from llmd4rec.runs.memory import validation_alone
from llmd4rec.runs.run import Run

Floats = NDArray[np.float32]
#: As `encode_texts` cuts them.
MAX_TOKENS = 64


@dataclass(frozen=True)
class ExportOptions:
    """What an export holds besides the model.

    Attributes:
        both: the undistilled model too, in `undistilled/`.
        table: numbers of the item table; int8 takes a quarter of the room and costs a measured bit of accuracy.
        new_items: the map that places new items by their texts; None: where the run reads texts.
        text_encoder: the sentence encoder, so that new items can be given as text.
        example_histories: so many histories of real people, without their identifiers. Rare items can tell who somebody
            is: do not publish such an export.
        memory: what is counted, beside each model: where validation wants it, always, or never.
        min_pair_users: of the memory, what fewer users than these chose after one another, or together, is left out.
    """

    both: bool = False
    table: Literal["float32", "int8"] = "float32"
    new_items: bool | None = None
    text_encoder: bool = False
    example_histories: int = 0
    memory: MemoryOption = "auto"
    min_pair_users: int = 1


def export_run(
    run: Run,
    data: Dataset,
    folder: Path,
    name: str = "served",
    *,
    overwrite: bool = False,
    options: ExportOptions = ExportOptions(),
) -> str:
    """Exports one model of a run; nothing is kept unless the graph agrees with PyTorch on real histories.

    Args:
        run, data: the run and its data set (for the catalogue and the parity check).
        folder: where to; must not exist unless `overwrite`, and even then only an export is replaced.
        name: its stage; see :meth:`Run.resolve`.

    Returns:
        A line about what was written and how well it agrees.

    Raises:
        ModelError: the graph and the model disagree.
        DataError: `folder` exists.
        RunError: `folder` holds something else, the data is not the run's, or the run has no such model.
        ConfigError: options contradict each other or the data, or the stage is a language model.
    """
    data = run.trained_on(data)
    if overwrite:
        require_export_or_new(folder)
    asked, (name, beside) = name, without_memory(name)
    if beside and options.memory == "off":
        raise ConfigError(f"{asked} is to be exported without its memory", f"Name {name}, or leave the memory on.")
    if beside and options.memory == "auto":
        options = replace(options, memory="on")
    if name == MEMORY:
        raise ConfigError("the memory alone has no network to export", "Export a model, with the memory beside it.")
    without = options.memory == "off"
    stage = run.stage(run.resolve_alone() if without and name == SERVED else name)
    if stage.beside_memory and without:
        raise ConfigError(
            f"{stage.id} was taught to stand beside the memory, and says by itself only what the memory does not",
            f"Export {run.resolve_alone()}, or with the memory.",
        )
    if stage.beside_memory:
        options = replace(options, memory="on")
    if stage.role == "llm":
        raise ConfigError(
            f"{stage.id} is a language model, which is too large to serve this way", "Export another stage (--stage)."
        )
    if options.both and stage.id == UNDISTILLED:
        raise ConfigError("the undistilled model is what is exported", "Leave out --both, or name another --stage.")
    if options.both and stage.role != "model":
        raise ConfigError(
            f"{stage.id} is another network than the undistilled model, which stands beside it with --both",
            "Leave out --both, or name another --stage.",
        )
    texts = _Texts.of(run, data, options)
    with atomic_dir(folder, replace=overwrite) as temporary:
        head: dict[str, Any] = {"format": FORMAT_VERSION, "llmd4rec": __version__, "data": data.fingerprint}
        head["items"] = data.num_items
        head["filter_seen"] = run.settings.evaluation.filter_seen
        head["fields"] = kinds_of(data.catalogue, data.multi_fields)
        if data.multi_fields is not None:
            head["multi_fields"] = data.multi_fields
        head["text_fields"] = list(texts.fields) if texts else []
        if (origin := run.record.origin) is not None:
            came_from = Path(origin["run"]).name
            head["origin"] = {"kind": origin["kind"], "run": came_from, "metrics": origin["metrics"]}
        worst = _write_model(run, data, stage, temporary, "", options, texts, head)
        if options.both:
            head["undistilled"] = {}
            undistilled = run.stage(UNDISTILLED)
            _write_model(run, data, undistilled, temporary, "undistilled", options, texts, head["undistilled"])
        if (temporary / MEMORY).exists():
            head["format"] = FORMAT_WITH_MEMORY
        write_catalogue(temporary, data.catalogue, data.train_counts)
        if texts is not None and options.text_encoder:
            head["text_encoder"] = write_text_encoder(
                texts.encoder, temporary, texts.lines, texts.vectors_IT, MAX_TOKENS
            )
        if options.example_histories:
            write_json(temporary / "histories.json", _examples(data, options.example_histories, run.settings.seed))
        finish(temporary, head)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    parts = [f"{size / 2**20:.1f} MiB; ONNX Runtime and PyTorch agree to {worst:.1e} and on every top 10 checked"]
    parts += [line for line in (_about_table(head), _about_new_items(head), _about_encoder(head)) if line]
    parts += lines_about(head)
    return "\n  ".join(parts)


@dataclass(frozen=True)
class _Texts:
    """The catalogue's texts and their vectors, [I, T]."""

    fields: tuple[str, ...]
    lines: list[str]
    encoder: str
    vectors_IT: Floats

    @classmethod
    def of(cls, run: Run, data: Dataset, options: ExportOptions) -> _Texts | None:
        """Where new items are to be placed by text; a run that read texts has them encoded already."""
        settings = run.settings.texts
        fields = tuple(data.text_fields if settings.fields is None else settings.fields)
        wanted = options.new_items
        if wanted is None:
            wanted = options.text_encoder or (run.folder / "text_vectors.safetensors").exists()
        if options.text_encoder and not wanted:
            raise ConfigError("a text encoder is of no use without --new-items", "Leave out one of the two.")
        if not wanted:
            return None
        lines = data.texts(fields)
        if not any(lines):
            if options.new_items is None and not options.text_encoder:
                return None
            raise ConfigError("no item of this data set has a text", "Leave out --new-items and --text-encoder.")
        # A language model is too large to serve; where it read the texts, the usual sentence encoder places new items.
        encoder = settings.encoder if settings.encoder != "llm" else TextSettings().encoder
        return cls(fields, lines, encoder, encode_texts(lines, encoder, max_tokens=MAX_TOKENS))


def _write_model(
    run: Run,
    data: Dataset,
    stage: Stage,
    root: Path,
    subfolder: str,
    options: ExportOptions,
    texts: _Texts | None,
    head: dict[str, Any],
) -> float:
    """Writes graph, table and text map of one model, and the memory beside it, and describes them in `head`.

    Returns:
        The worst difference between the graph and PyTorch.
    """
    folder = root / subfolder
    folder.mkdir(exist_ok=True)
    model = run.load(stage.id).cpu()
    write_encoder(model, folder / "encoder.onnx")
    table_ID = item_embedding_of(model).table().detach().float().numpy().copy()
    worst = check_parity(model, folder / "encoder.onnx", table_ID, data)
    validation, selection = validation_alone(run, stage.id)
    head |= {
        "model": MODELS.dump(stage.network),
        "stage": stage.id,
        "validation": validation,
        "selection": selection,
        "dim": model.dim,
        "max_length": model.max_length,
    }
    if model.reads:
        head["reads"] = list(model.reads)
    write_table(folder, table_ID, int8=options.table == "int8")
    if options.table == "int8":
        codes_ID, scales_I = to_int8(table_ID)
        rounded_ID = codes_ID * scales_I[:, None]
        loss = _loss_of(model, data, table_ID, rounded_ID, run.settings.evaluation.filter_seen)
        head["table"] = {"numbers": "int8", **loss}
        table_ID = rounded_ID
    if texts is not None:
        encoder = OnnxEncoder(folder / "encoder.onnx", model.dim)
        valid, test = (
            _cases(data, positions, encoder, table_ID, model.max_length) for positions in (data.valid, data.test)
        )
        text_map, report = fit_text_map(texts.vectors_IT, table_ID, valid, test)
        np.save(folder / "text_map.npy", text_map, allow_pickle=False)
        head["new_items"] = {"encoder": texts.encoder, "width": texts.vectors_IT.shape[1], **report}
    graph = OnnxEncoder(folder / "encoder.onnx", model.dim)
    scorer = FactorRowScorer(graph, table_ID, max_length=model.max_length)
    head |= _write_memory(run, data, model, scorer, stage.id, root / MEMORY, options)
    return worst


def _write_memory(
    run: Run,
    data: Dataset,
    model: SequenceEncoder,
    scorer: FactorRowScorer,
    stage_id: str,
    folder: Path,
    options: ExportOptions,
) -> dict[str, Any]:
    """Writes the memory that stands beside a model, where another one has not done so; what is said of it there."""
    every = Beside.of(run, stage_id, options.memory)
    if every is None:
        return {}
    memory = every.memory if options.both else every.memory.without_unused()  # two models share one folder
    memory, about = without_rare_pairs(memory, data, options.min_pair_users)
    validation = every.validation
    if about:
        about |= loss_by_rare_pairs(model, every, memory, data, run.settings.evaluation.filter_seen)
        validation = float(about.get("ndcg@10_kept_pairs", validation))
    if not folder.exists():
        memory.save(folder)
    about |= described(Beside(memory, every.weight, validation), scorer, model.max_length, data)
    if memory.content is not None:
        encoder = run.settings.texts.encoder
        encoder = encoder if encoder != "llm" else TextSettings().encoder
        about["texts"] = {"encoder": encoder, "width": len(memory.content.mean_T)}
    return {MEMORY: {**about, "bytes": bytes_in(folder)}}


def _loss_of(
    model: SequenceEncoder, data: Dataset, table_ID: Floats, rounded_ID: Floats, filter_seen: bool
) -> dict[str, float]:
    """Validation NDCG@10 of the model with its own table and with the rounded one, which its input reads too."""
    if not len(data.valid):
        return {}
    weight = item_embedding_of(model).weight
    found = {}
    for name, rows_ID in (("ndcg@10_rounded", rounded_ID), ("ndcg@10_float32", table_ID)):
        with torch.no_grad():
            weight.copy_(torch.from_numpy(rows_ID))
        found[name] = validation_value(model, data, filter_seen=filter_seen)
    return found


def _cases(
    data: Dataset, positions: NDArray[np.int64], encoder: OnnxEncoder, table_ID: Floats, max_length: int
) -> Cases:
    """Held-out interactions behind histories that do not hold the item already; at most 20,000, spread evenly."""
    positions = np.asarray(positions)[:: max(1, len(positions) // 20_000)]
    histories = [np.asarray(data.history(int(position)), dtype=np.int64) for position in positions]
    targets = np.asarray(data.items)[positions].astype(np.int64)
    kept = [place for place, history in enumerate(histories) if len(history) and targets[place] not in history]
    windows = [histories[place][-max_length:].tolist() for place in kept]
    moments = data.event_times
    times = now = None
    if encoder.reads and moments is not None:
        ends = positions[kept].tolist()
        times = [moments[end - len(window) : end].tolist() for end, window in zip(ends, windows, strict=True)]
        now = moments[ends].tolist()
    states = encode(encoder, windows, table_ID, times, now)
    return Cases(states, targets[kept], [histories[place] for place in kept])


def _examples(data: Dataset, count: int, seed: int) -> Sequence[dict[str, Any]]:
    """Histories before the test item, and that item, of people drawn at random; no identifiers of people."""
    positions = np.asarray(data.test)
    if not len(positions):
        raise ConfigError("the data set has no test items, behind which example histories would end", "Leave them out.")
    drawn = np.random.default_rng(seed).choice(positions, min(count, len(positions)), replace=False)
    names = data.item_ids
    return [
        {"history": [names[item] for item in data.history(int(position))], "next": names[data.items[position]]}
        for position in drawn
    ]


# ---- what to say ------------------------------------------------------------------------------------------------
def _about_table(head: dict[str, Any]) -> str:
    table = head.get("table", {})
    if "ndcg@10_rounded" not in table:
        return ""
    return (
        f"item table in 8-bit numbers: validation NDCG@10 {table['ndcg@10_rounded']:.4f}, "
        f"in 32-bit ones {table['ndcg@10_float32']:.4f}"
    )


def _about_new_items(head: dict[str, Any]) -> str:
    found = head.get("new_items")
    if not found:
        return ""
    return (
        f"new items by their texts: recall@50 of held-out items {found['recall']['@50']:.3f} "
        f"(their trained rows {found['recall_trained_rows']['@50']:.3f}, no texts "
        f"{found['recall_without_texts']['@50']:.3f}, chance {found['recall_by_chance']['@50']:.4f})"
    )


def _about_encoder(head: dict[str, Any]) -> str:
    found = head.get("text_encoder")
    if not found:
        return ""
    return (
        f"text encoder: {found['bytes'] / 2**20:.1f} MiB in {found['precision']}, cosine with the original "
        f"at least {found['cosine_min']:.4f}"
    )
