"""What is installed only with an extra, and the error that says which."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llmd4rec.errors import LLMD4RecError

_TRAIN = (
    *("torch", "transformers", "peft", "gguf", "safetensors", "pyarrow", "filelock", "scipy", "onnx", "onnxscript"),
)
_SERVE = (
    *("onnxruntime", "tokenizers", "huggingface_hub", "fastapi", "starlette", "uvicorn", "httptools", "uvloop"),
    *("orjson", "prometheus_client"),
)
#: Package → the extra it comes with; some come with both, where the smaller one is named.
EXTRA_OF = {
    **dict.fromkeys(_TRAIN, "train"),
    **dict.fromkeys(_SERVE, "serve"),
    "faiss": "large",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
}


class MissingExtraError(LLMD4RecError, ImportError):
    """A package is not installed that comes with an extra of this one."""


def explanation(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to raise instead, if the missing package comes with an extra."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    return MissingExtraError(f"this needs the package {package}, which is not installed", install(extra))


def install(extra: str) -> str:
    """How to get an extra."""
    return f"Install it with: pip install 'llmd4rec[{extra}]'"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around an import: says which extra is missing.

    Raises:
        MissingExtraError: a package of an extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        better = explanation(error)
        if better is None:
            raise
        raise better from error
