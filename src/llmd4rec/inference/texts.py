"""Texts to vectors with the exported sentence encoder: ONNX Runtime and the tokenizer's own library, no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.extras import explained
from llmd4rec.inference.encoder import Graph

Floats = NDArray[np.float32]
#: Inside an export folder.
GRAPH, TOKENIZER = "text_encoder/encoder.onnx", "text_encoder/tokenizer.json"
_AT_ONCE = 32


class TextEncoder:
    """A sentence encoder; it can be called from several threads at once.

    Args:
        folder: the export folder.
        max_tokens: longer texts are cut, as in training.
        threads: of one call; None: ONNX Runtime's choice.

    Raises:
        RunError: its files cannot be read.
        MissingExtraError: the package tokenizers is not installed.
    """

    def __init__(self, folder: Path, max_tokens: int, threads: int | None = None) -> None:
        with explained():
            from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # the library raises plain Exception
            raise RunError(
                f"{folder / TOKENIZER} cannot be read: {error}", "Export the run again with --text-encoder."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._graph = Graph(folder / GRAPH, threads)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Unit vectors [n, T]; zero where a text is empty."""
        tokens = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        session = self._graph.session()
        vectors = np.zeros((len(texts), session.get_outputs()[0].shape[-1]), dtype=np.float32)
        order = [row for row in np.argsort([len(each) for each in tokens], kind="stable") if texts[row].strip()]
        for start in range(0, len(order), _AT_ONCE):
            rows = order[start : start + _AT_ONCE]
            ids = np.zeros((len(rows), len(tokens[rows[-1]])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = tokens[row]
                mask[place, : len(tokens[row])] = 1
            vectors[rows] = session.run(["vectors"], {"tokens": ids, "mask": mask})[0]
        return vectors


def text_of(title: str | None, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """An item's text, as the data set's: its text fields as `name: value`, joined by `; `."""
    values = {**fields, "title": title}
    parts = [(name, str(values[name]).strip()) for name in names if values.get(name) is not None]
    return "; ".join(f"{name}: {value}" for name, value in parts if value)
