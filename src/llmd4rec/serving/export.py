"""Export of the served CRM: a folder that needs neither this package nor PyTorch to answer.

    encoder.onnx        items int64 [batch, length], lengths int64 [batch]  →  states float32 [batch, d]
    item_table.npy      float32 [I, d]; scores = states @ item_table.T
    catalogue.parquet   item_id, title and the other fields, in the table's order
    export.json         format, settings, what it came from, SHA-256 of every file
    README.md           model card: what it is, how it was trained, its validation figure, how to use it

Histories are cut to their last `max_length` items and padded on the right with any index.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmd4rec import __version__
from llmd4rec.data.dataset import Dataset
from llmd4rec.distill.run import Run, Stage
from llmd4rec.errors import ModelError, RunError
from llmd4rec.files import atomic_dir, sha256_file, write_json
from llmd4rec.models.crm.items import item_table_of
from llmd4rec.models.ranker import Ranker, last_states
from llmd4rec.serving.catalogue import kinds_of
from llmd4rec.serving.folder import FORMAT_VERSION

#: Scores of the exported graph may differ from PyTorch's by this share of the largest (of 1 where all are smaller).
TOLERANCE = 1e-4


class _Encoder(nn.Module):
    """The network behind its item table: it is handed the rows of a history instead of looking them up."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        item_table_of(ranker)  # refuses a model without one
        self.ranker = copy.deepcopy(ranker)
        self.ranker.items = nn.Identity()

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        return last_states(self.ranker, vectors, lengths)


def export_run(run: Run, data: Dataset, folder: Path, stage: Stage, *, overwrite: bool = False) -> str:
    """Exports the CRM of a run; nothing is kept unless the graph agrees with PyTorch on real histories.

    Args:
        run, data: the run and its data set (for the catalogue and the parity check).
        folder: where to; must not exist unless `overwrite`, and even then only an export is replaced.
        stage: `alone` or `distilled`.

    Returns:
        A line about what was written and how well it agrees.

    Raises:
        ModelError: the graph and the model disagree.
        DataError: `folder` exists.
        RunError: `folder` holds something else, or the data is not the run's.
    """
    run.require(data)
    foreign = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if overwrite and foreign and not (folder / "export.json").is_file():
        raise RunError(f"{folder} exists and is no export: it is not replaced", "Choose another folder with --out.")
    ranker = run.load("crm", stage).cpu()
    with atomic_dir(folder, replace=overwrite) as temporary:
        write_encoder(ranker, temporary / "encoder.onnx")
        table = ranker.item_table().detach().float().numpy()
        np.save(temporary / "item_table.npy", table, allow_pickle=False)
        data.catalogue.write_parquet(temporary / "catalogue.parquet")
        np.save(temporary / "counts.npy", data.train_counts, allow_pickle=False)
        worst = check_parity(ranker, temporary / "encoder.onnx", table, data)
        stage_name = run.stage_of("crm", stage)
        head = {
            "format": FORMAT_VERSION,
            "llmd4rec": __version__,
            "model": run.settings.crm.model_dump(mode="json"),
            "stage": stage,
            "trained_in": stage_name,
            "validation_ndcg@10": run.record.stages[stage_name]["validation_ndcg"],
            "data": data.fingerprint,
            "items": data.num_items,
            "dim": ranker.dim,
            "max_length": ranker.max_length,
            "fields": kinds_of(data.catalogue),
        }
        (temporary / "README.md").write_text(_model_card(head), encoding="utf-8")
        files = sorted(path.name for path in temporary.iterdir())
        write_json(
            temporary / "export.json", {**head, "files": {name: sha256_file(temporary / name) for name in files}}
        )
        size = sum(path.stat().st_size for path in temporary.iterdir())
    return f"{size / 2**20:.1f} MiB; ONNX Runtime and PyTorch agree to {worst:.1e} and on every top 10 checked"


def write_encoder(ranker: Ranker, path: Path) -> None:
    """Writes the user encoder as one ONNX file with dynamic batch and length."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=ranker.max_length)
    # A model that reads one item has no length to vary.
    shapes = {"vectors": {0: batch, 1: length} if ranker.max_length > 1 else {0: batch}, "lengths": {0: batch}}
    example = min(3, ranker.max_length)
    inputs = (torch.zeros(2, example, ranker.dim), torch.tensor([example, 1]))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Encoder(ranker).eval(),
            inputs,
            dynamo=True,
            input_names=["vectors", "lengths"],
            output_names=["states"],
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)


def check_parity(ranker: Ranker, path: Path, table: np.ndarray[Any, Any], data: Dataset, histories: int = 64) -> float:
    """The largest difference of scores between the graph and PyTorch on real test histories.

    Raises:
        ModelError: it exceeds :data:`TOLERANCE`, or a top 10 differs by more than a tie.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    positions = np.asarray(data.test if len(data.test) else data.train_end[np.diff(data.offsets) > 0])
    worst = 0.0
    for position in positions[:: max(1, len(positions) // histories)]:
        items = np.asarray(data.history(int(position)), dtype=np.int64)[None, -ranker.max_length :]
        if not items.size:
            continue
        lengths = np.array([items.shape[1]], dtype=np.int64)
        state = session.run(None, {"vectors": table[items], "lengths": lengths})[0]
        with torch.inference_mode():
            expected = last_states(ranker, torch.from_numpy(items), torch.from_numpy(lengths)).numpy()
        ours, theirs = (state @ table.T)[0], (expected @ table.T)[0]
        worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # which, unlike max(), keeps a NaN
        allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
        k = min(10, len(table))
        best = np.argsort(-theirs, kind="stable")[:k]
        if not worst <= allowed or ours[best].min() < np.sort(ours)[-k] - allowed:
            raise ModelError(
                f"the exported graph differs from the model by {worst:.2g} in a score", "Report this as a bug."
            )
    return worst


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter's chatter about optional packages and progress is not for users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _model_card(head: dict[str, Any]) -> str:
    return f"""# Sequential recommender ({head["model"]["name"]}, {head["stage"]})

Scores every item of a catalogue of {head["items"]:,} as the next one after a history.

- Trained by llmd4rec {head["llmd4rec"]} in stage `{head["trained_in"]}`, selected at validation NDCG@10
  {head["validation_ndcg@10"]:.4f}; data fingerprint `{head["data"]}`.
- Reads the last {head["max_length"]} items of a history. Knows only the items of `catalogue.parquet`.
- Learned from logged behaviour: it repeats what was popular and shown there, and says nothing about why.

```python
import numpy as np, onnxruntime, pyarrow.parquet as pq
encoder = onnxruntime.InferenceSession("encoder.onnx")
table, ids = np.load("item_table.npy"), pq.read_table("catalogue.parquet")["item_id"].to_pylist()
history = np.array([[ids.index(i) for i in ["an-item", "another-item"]]])[:, -{head["max_length"]}:]
states = encoder.run(None, {{"items": history, "lengths": np.array([history.shape[1]])}})[0]
scores = (states @ table.T)[0]
scores[history[0]] = -np.inf  # not what was seen already
print([ids[i] for i in np.argsort(-scores)[:10]])
```
"""
