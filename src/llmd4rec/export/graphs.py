"""Conversion of PyTorch models to ONNX graphs, and the check that a graph gives the scores of its model."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmd4rec.data.batching import SequenceBatch, read_histories
from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ModelError
from llmd4rec.inference.encoder import HistoryBatch, OnnxEncoder
from llmd4rec.inference.texts import GRAPH, TOKENIZER, TextEncoder
from llmd4rec.io.files import atomic_file
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.llm.item_text import SentenceEncoder

Floats = NDArray[np.float32]
#: Scores of the exported graph may differ from PyTorch's by this share of the largest score, or of 1 if that is larger.
TOLERANCE = 1e-4
#: The minimum cosine between a text's vector from the exported encoder and the one used in training.
MIN_COSINE = 0.99


class _Encoder(nn.Module):
    """The network without its item embedding: its input is the embeddings of a history instead of its items."""

    def __init__(self, ranker: SequenceEncoder) -> None:
        super().__init__()
        item_embedding_of(ranker)  # refuses a model without one
        self.ranker = copy.deepcopy(ranker)
        self.ranker.items = nn.Identity()

    def forward(
        self, vectors: Tensor, lengths: Tensor, times: Tensor | None = None, target_times: Tensor | None = None
    ) -> Tensor:
        given = {"times": times, "target_times": target_times}
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
        return last_states(self.ranker, SequenceBatch(vectors, lengths, inputs))


def write_encoder(ranker: SequenceEncoder, path: Path) -> None:
    """Writes the user encoder as one ONNX file with dynamic batch and length; what the model reads are named inputs."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=ranker.max_length)
    # A model that reads one item has no length to vary.
    per_event = {0: batch, 1: length} if ranker.max_length > 1 else {0: batch}
    shapes = {"vectors": per_event, "lengths": {0: batch}} | dict.fromkeys(ranker.reads, per_event)
    example = min(3, ranker.max_length)
    inputs = {"vectors": torch.zeros(2, example, ranker.dim), "lengths": torch.tensor([example, 1])}
    inputs |= {name: torch.zeros(2, example, dtype=torch.int64) for name in ranker.reads}
    _write(_Encoder(ranker), path, inputs, "states", shapes)


def check_parity(ranker: SequenceEncoder, path: Path, table: Floats, data: Dataset, histories: int = 64) -> float:
    """The largest difference of scores between the graph and PyTorch on real test histories.

    Raises:
        ModelError: it exceeds :data:`TOLERANCE`, or a top 10 differs by more than a tie.
    """
    encoder = OnnxEncoder(path, ranker.dim)
    # Where nothing is held out, the last training item stands for what follows.
    last = data.train_end[data.train_end > data.offsets[:-1]] - 1
    positions = np.asarray(data.test if len(data.test) else last)
    max_difference = 0.0
    for position in positions[:: max(1, len(positions) // histories)]:
        start = data.offsets[data.users_of(np.asarray([position]))]
        if start[0] == position:
            continue
        batch = read_histories(data, start, np.asarray([position]), ranker.max_length, ranker.reads)
        inputs = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        state = encoder(HistoryBatch(batch.items_BL.numpy(), batch.lengths_B.numpy(), inputs), table)
        with torch.inference_mode():
            expected = last_states(ranker, batch).numpy()
        graph_scores, torch_scores = (state @ table.T)[0], (expected @ table.T)[0]
        max_difference = float(
            np.maximum(max_difference, np.abs(graph_scores - torch_scores).max())
        )  # which, unlike max(), keeps a NaN
        tolerance = TOLERANCE * max(1.0, float(np.abs(torch_scores).max()))
        k = min(10, len(table))
        best = np.argsort(-torch_scores, kind="stable")[:k]
        if not max_difference <= tolerance or graph_scores[best].min() < np.sort(graph_scores)[-k] - tolerance:
            raise ModelError(
                f"the exported graph differs from the model by {max_difference:.2g} in a score", "Report this as a bug."
            )
    return max_difference


# ---- sentence encoder -----------------------------------------------------------------------------------------
class _Sentences(nn.Module):
    """A sentence encoder from tokens to unit vectors."""

    def __init__(self, source: SentenceEncoder) -> None:
        super().__init__()
        self.tokenizer, self._embed = source.open()
        self.model = source.model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        vectors: Tensor = self._embed(tokens, mask)
        return vectors


def write_text_encoder(
    name: str, folder: Path, texts: Sequence[str], vectors: Floats, max_tokens: int
) -> dict[str, Any]:
    """Writes a sentence encoder into an export folder: in int8 if its vectors stay close enough, else float32.

    Args:
        name: Hugging Face id or folder.
        folder: the export folder.
        texts: of the catalogue, on which the vectors are compared.
        vectors: what they were encoded to for training, [n, T].
        max_tokens: longer texts are cut.

    Returns:
        What was written: name, width, precision, minimum and mean cosine, bytes.

    Raises:
        ModelError: its vectors differ from those that the models were trained with.
    """
    source = _Sentences(SentenceEncoder(name, "cpu"))
    graph = folder / GRAPH
    graph.parent.mkdir()
    with atomic_file(folder / TOKENIZER) as temporary:
        source.tokenizer.backend_tokenizer.save(str(temporary))
    inputs = {name: torch.ones(2, 3, dtype=torch.int64) for name in ("tokens", "mask")}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=max_tokens)
    shapes = {"tokens": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    _write(source, graph, inputs, "vectors", shapes)
    whole = graph.read_bytes()
    precision = "int8"
    store_in_int8(graph)
    cosines = _cosines(folder, texts, vectors, max_tokens)
    if not cosines.min() >= MIN_COSINE:
        precision = "float32"
        graph.write_bytes(whole)
        cosines = _cosines(folder, texts, vectors, max_tokens)
    if not cosines.min() >= MIN_COSINE:
        raise ModelError(
            f"the exported text encoder's vectors differ from those trained with (cosine {cosines.min():.4f})",
            "Export without --text-encoder, and hand vectors to the recommender.",
        )
    return {
        "name": name,
        "width": vectors.shape[1],
        "max_tokens": max_tokens,
        "precision": precision,
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "bytes": sum(path.stat().st_size for path in graph.parent.iterdir()),
    }


def store_in_int8(path: Path, min_size: int = 1 << 14) -> None:
    """Rewrites a graph so that its large matrices are stored as int8 with a scale per column, or per row where rows are
    looked up. They are multiplied out when the graph is loaded: the file is a quarter as large, and inference as fast.

    Args:
        path: the graph; replaced.
        min_size: matrices with fewer numbers are not changed.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    nodes, weights = [], []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim != 2 or values.size < min_size:
            weights.append(weight)
            continue
        over = 1 if weight.name in looked_up else 0
        scales = np.abs(values).max(axis=over, keepdims=True) / np.float32(127)
        codes = np.rint(values / np.where(scales > 0, scales, np.float32(1))).astype(np.int8)
        names = [f"{weight.name}.{part}" for part in ("codes", "scales", "float")]
        weights += [numpy_helper.from_array(codes, names[0]), numpy_helper.from_array(scales, names[1])]
        nodes.append(helper.make_node("Cast", [names[0]], [names[2]], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [names[2], names[1]], [weight.name]))
    every = [*nodes, *graph.node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(every)
    graph.initializer.extend(weights)
    onnx.save(model, path)


def _cosines(folder: Path, texts: Sequence[str], vectors: Floats, max_tokens: int, max_texts: int = 256) -> Floats:
    """Between the exported encoder's vectors and the given ones, on some texts spread over the catalogue."""
    rows = [row for row in range(0, len(texts), max(1, len(texts) // max_texts)) if texts[row].strip()]
    ours = TextEncoder(folder, vectors.shape[1], max_tokens)([texts[row] for row in rows])
    theirs = vectors[rows]
    cosines: Floats = (ours * theirs).sum(axis=1) / np.linalg.norm(theirs, axis=1)
    return cosines


# ---- ONNX -------------------------------------------------------------------------------------------------------
def _write(module: nn.Module, path: Path, inputs: dict[str, Tensor], output: str, shapes: dict[str, Any]) -> None:
    # The exporter puts another decomposition in place of the GRU's while it runs. PyTorch remembers which one it called
    # last, and would go on with the usual one in a second export, which fixes the length.
    torch.ops.aten.gru.input._dispatch_cache.clear()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)


@contextlib.contextmanager
def _quiet() -> Any:
    """Hides the exporter's messages about optional packages and progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "")]
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
