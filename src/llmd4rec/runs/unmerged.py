"""The item embedding of a trained model before its features were merged, so that an update can go on with them.

    checkpoints/STAGE/item_embedding.safetensors    ID embeddings, towers and vectors of attributes; and a key for each
                                                    attribute, by which it is found again in another catalogue

The columns of attributes and words depend on the catalogue. What tells one from another is which items have it, so its
key is a hash of their identifiers. In a catalogue with more items the key is made of those that both have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from llmd4rec.data.arrays import Int64Array
from llmd4rec.features.item_features import ItemFeatures
from llmd4rec.models.embedding import ItemEmbedding
from llmd4rec.training import checkpoint

FILE = "item_embedding.safetensors"


def save_unmerged(path: Path, embedding: ItemEmbedding, features: ItemFeatures, item_ids: Sequence[str]) -> None:
    """Writes an item embedding with its features still attached.

    Args:
        path: the file.
        embedding: of the model.
        features: that were attached.
        item_ids: of the catalogue, in its order.
    """
    tensors = dict(embedding.state_dict())
    if features.attributes is not None:
        tensors["attribute_keys"] = torch.from_numpy(attribute_keys(features.attributes, item_ids))
    checkpoint.save(path, tensors, {"towers": len(features.vectors)})


def attribute_keys(attributes: sp.csr_matrix, item_ids: Sequence[str], known: Int64Array | None = None) -> Int64Array:
    """A key for each attribute, [A], of the identifiers of the items that have it; 0 where none of them has it.

    Args:
        attributes: [I, A], which attributes an item has.
        item_ids: [I].
        known: the items that keys are made of; None: all.
    """
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest(), "little") for each in item_ids],
        dtype=np.uint64,
    )
    if known is not None:
        mask = np.zeros(len(hashes), dtype=bool)
        mask[known] = True
        hashes[~mask] = 0
    entries = attributes.tocoo()
    keys = np.zeros(attributes.shape[1], dtype=np.uint64)
    np.add.at(keys, entries.col, hashes[entries.row])  # a sum modulo 2^64: the order of items does not matter
    return keys.view(np.int64)


def load_unmerged(
    path: Path, embedding: ItemEmbedding, features: ItemFeatures, item_ids: Sequence[str], old_row: Int64Array
) -> None:
    """Gives an item embedding, with features attached, the weights of a trained one of another catalogue.

    A new item begins with an ID embedding of zero: what its features say is its row. A new attribute begins at zero.

    Args:
        path: what :func:`save_unmerged` wrote.
        embedding: to be changed.
        features: that are attached to it.
        item_ids: of its catalogue, in its order.
        old_row: the row of each of these in the trained embedding; -1: it had none.
    """
    tensors, _ = checkpoint.load(path, embedding.weight.device)
    known = np.flatnonzero(old_row >= 0)
    state = {name: tensor for name, tensor in tensors.items() if name.startswith("towers.")}
    if set(state) != {name for name in embedding.state_dict() if name.startswith("towers.")}:
        state = {name: tensor for name, tensor in embedding.state_dict().items() if name.startswith("towers.")}
    state["weight"] = moved_rows(tensors["weight"], old_row)
    if features.attributes is not None and embedding.of_attributes is not None:
        rows = torch.zeros_like(embedding.of_attributes)
        if "attribute_keys" in tensors:
            at = {int(key): place for place, key in enumerate(tensors["attribute_keys"].tolist()) if key}
            keys = attribute_keys(features.attributes, item_ids, known).tolist()
            found = [(place, at[key]) for place, key in enumerate(keys) if key in at]
            if found:
                new, old = (torch.tensor(places, device=rows.device) for places in zip(*found, strict=True))
                rows[new] = tensors["of_attributes"][old]
        state["of_attributes"] = rows
    embedding.load_state_dict(state)


def moved_rows(table_ID: Tensor, old_row: Int64Array) -> Tensor:
    """The rows of another catalogue's items in a new order; zero for those that it has not."""
    rows = table_ID.new_zeros(len(old_row), table_ID.shape[1])
    known = torch.from_numpy(np.flatnonzero(old_row >= 0))
    rows[known] = table_ID[torch.from_numpy(old_row)[known]]
    return rows
