"""Texts to vectors with the exported sentence encoder: ONNX Runtime and the tokenizer's own library, no PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmd4rec.errors import RunError
from llmd4rec.extras import explained
from llmd4rec.inference.graph import INTEGERS, Graph
from llmd4rec.log import logger

Floats = NDArray[np.float32]
#: Inside an export folder.
GRAPH, TOKENIZER = "text_encoder/encoder.onnx", "text_encoder/tokenizer.json"
_AT_ONCE = 32
_AGAIN = "Export the run again with --text-encoder."
#: Most bytes of a tokenizer, and most characters of a text for each token that is read of it.
MOST_TOKENIZER, MOST_CHARACTERS = 1 << 27, 64


class TextEncoder:
    """A sentence encoder; it can be called from several threads at once.

    Args:
        folder: the export folder.
        width: T, of the vectors.
        max_tokens: longer texts are cut, as in training.
        threads: of one call; None: ONNX Runtime's choice.

    Raises:
        RunError: its files cannot be read.
        MissingExtraError: the package tokenizers is not installed.
    """

    def __init__(self, folder: Path, width: int, max_tokens: int, threads: int | None = None) -> None:
        with explained():
            from tokenizers import Tokenizer

        path = folder / TOKENIZER
        logger.debug("reading %s", path)
        with _said_of(path, "cannot be read"):
            if path.stat().st_size > MOST_TOKENIZER:
                raise ValueError(f"it is larger than {MOST_TOKENIZER:,} bytes")
            self._tokenizer: Any = Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_tokens)
        self._graph = Graph(folder / GRAPH, {"tokens": (INTEGERS, 2), "mask": (INTEGERS, 2)}, "vectors", threads)
        self._max_tokens = max_tokens
        if self._graph.width != width:
            raise RunError(f"{folder / GRAPH} does not give vectors of {width} numbers", _AGAIN)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Unit vectors [n, T]; zero where a text is empty.

        Raises:
            RunError: the tokenizer or the graph fails.
        """
        with _said_of(Path(TOKENIZER), "cannot be used"):
            # Far more than is read of a text: the time that some tokenizers take grows with more than its length.
            shortened = [text[: self._max_tokens * MOST_CHARACTERS] for text in texts]
            tokens = [each.ids[: self._max_tokens] for each in self._tokenizer.encode_batch(shortened)]
        vectors = np.zeros((len(texts), self._graph.width), dtype=np.float32)
        order = [row for row in np.argsort([len(each) for each in tokens], kind="stable") if tokens[row]]
        order = [row for row in order if texts[row].strip()]
        for start in range(0, len(order), _AT_ONCE):
            rows = order[start : start + _AT_ONCE]
            ids = np.zeros((len(rows), len(tokens[rows[-1]])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = tokens[row]
                mask[place, : len(tokens[row])] = 1
            vectors[rows] = self._graph.run({"tokens": ids, "mask": mask})
        return vectors


@contextlib.contextmanager
def _said_of(path: Path, what: str) -> Iterator[None]:
    """Turns whatever the tokenizers' library raises, plain exceptions and panics, into an error that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RunError(f"{path} {what}: {str(error)[:500]}", _AGAIN) from error


def text_of(title: str | None, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """An item's text, as the data set's: its text fields as `name: value`, joined by `; `."""
    values = {**fields, "title": title}
    parts = [(name, str(values[name]).strip()) for name in names if values.get(name) is not None]
    return "; ".join(f"{name}: {value}" for name, value in parts if value)
