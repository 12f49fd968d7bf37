"""Puts the language model together from its settings: backbone, text vectors, recommender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmd4rec.data.dataset import Dataset
from llmd4rec.errors import ConfigError, ModelError
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.io.files import atomic_file
from llmd4rec.log import logger
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.llm.backbone import Backbone, forget_pretraining, load_backbone, resolve_layers
from llmd4rec.models.llm.item_text import encode_texts, standardise
from llmd4rec.models.llm.recommender import LLMNetwork
from llmd4rec.models.llm.settings import LLM

_FILE = "text_vectors.safetensors"


def prepare_text_vectors(
    texts: TextSettings, llm: LLM | None, data: Dataset, folder: Path, device: torch.device
) -> None:
    """Encodes the catalogue's texts, once, into `folder`; writes nothing where there is none.

    Args:
        texts: what they are made of, and the encoder.
        llm: the language model of the run; None where it has none.
        data: the data set.
        folder: where the vectors go.
        device: where the encoder runs.

    Raises:
        ConfigError: the language model reads nothing but texts, and the catalogue has none; or the language model is
            to encode the texts, and there is none.
    """
    if (folder / _FILE).exists():
        return
    of_items = data.texts(texts.fields)
    if not any(of_items):
        if llm is not None and llm.item_features == "text":
            raise ConfigError(
                "llm.item_features is text, but no item of this data set has a text",
                "Prepare it with --items and --text-cols, or set llm.item_features to id.",
            )
        logger.info("  no item has a text: models read identifiers only")
        return
    backbone = text_encoder(texts, llm, device)
    vectors = standardise(encode_texts(of_items, texts.encoder, llm=backbone, device=device))
    with atomic_file(folder / _FILE) as temporary:
        save_file({"text_vectors": torch.from_numpy(vectors).contiguous()}, temporary)


def text_encoder(texts: TextSettings, llm: LLM | None, device: torch.device) -> Backbone | None:
    """The language model that encodes the texts; None where a sentence encoder does."""
    return _backbone(llm, device) if texts.encoder == "llm" and llm is not None else None


def load_text_vectors(folder: Path) -> Tensor | None:
    """What :func:`prepare_text_vectors` wrote, [I, T]; None if it wrote nothing."""
    path = folder / _FILE
    return load_file(path)["text_vectors"] if path.exists() else None


def build_llm(
    settings: LLM,
    num_items: int,
    model_dim: int,
    text_vectors: Tensor | None,
    seed: int,
    device: torch.device,
    known: dict[str, Any] | None = None,
) -> tuple[LLMNetwork, dict[str, Any]]:
    """A freshly initialised language model as a recommender on `device`, and which language model it was built on.

    The item embeddings it reads are random numbers until those of a model are injected.

    Args:
        settings: of the language model.
        num_items: I.
        model_dim: the width of the model whose item embeddings it reads.
        text_vectors: [I, T]; None where no item has a text.
        seed: of every random initial value.
        device: where it is to be.
        known: what an earlier call gave for the same run: the same layers are kept, whatever the device, and other
            weights are refused, because what was trained fits only the weights it was trained on.

    Raises:
        ModelError: the language model cannot be had, or is not the one in `known`.
    """
    backbone = _backbone(settings if known is None else settings.model_copy(update={"layers": known["layers"]}), device)
    used = {"origin": backbone.origin, "layers": backbone.layers, "fingerprint": backbone.fingerprint}
    if known is not None and used["fingerprint"] != known["fingerprint"]:
        raise ModelError(
            f"{settings.model} is not what this run was trained on: then {known['origin']}, now {backbone.origin}",
            "Make the same weights available (the same hub, folder or package as then), or train a new run.",
        )
    if not settings.pretrained:
        forget_pretraining(backbone)
    network = LLMNetwork(
        backbone,
        num_items,
        item_features=settings.item_features if text_vectors is not None else "id",
        id_dim=model_dim,
        text_vectors=text_vectors,
        dim=settings.width(model_dim),
        prompt=settings.prompt,
        response=settings.response,
        max_length=settings.max_length,
        dropout=settings.dropout,
        lora=settings.lora,
        tune=settings.tune,
        init_table_from_model=settings.starts_from_model(model_dim),
        tie_table=settings.tie_table,
        state_dropout=settings.state_dropout,
        branch_dropout=settings.branch_rate(backbone.layers),
        seed=seed,
    )
    if network.uses_id:
        generator = torch.Generator().manual_seed(seed)
        network.inject(torch.randn(num_items, model_dim, generator=generator))
    return network.to(device), used


def inject_items(ranker: SequenceEncoder, table_ID: Tensor) -> None:
    """ID-embedding injection: another model's item table becomes the LLM's input item embedding, if it reads any."""
    assert isinstance(ranker, LLMNetwork)
    if ranker.uses_id:
        ranker.inject(table_ID)


def _backbone(settings: LLM, device: torch.device) -> Backbone:
    layers = resolve_layers(settings.layers, device)
    return load_backbone(settings.model, layers=layers, gguf_file=settings.gguf_file, device=device)
