"""Co-occurrence of items in training histories; a sparse matrix, items × items."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from llmd4rec.data.dataset import Dataset

#: Two items of a history co-occur up to this distance; at distance g they count 1/g.
REACH = 3


def co_occurrence(dataset: Dataset) -> sp.csr_matrix:
    """How often two items occur near each other in the training part of a history, D^-½ C D^-½ of the counts C.

    Symmetric, float32, no diagonal; rows of items that co-occur with none are empty. Nothing held out is read.
    """
    items = np.asarray(dataset.items)
    user = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    trained = np.arange(len(items)) < np.asarray(dataset.train_end)[user]
    size = (dataset.num_items, dataset.num_items)
    counts = sp.csr_matrix(size, dtype=np.float64)
    for gap in range(1, REACH + 1):
        near = (user[:-gap] == user[gap:]) & trained[gap:]
        first, second = items[:-gap][near], items[gap:][near]
        counts += sp.csr_matrix((np.full(len(first), 1 / gap), (first, second)), size)
    counts = sp.csr_matrix(counts + counts.T)
    counts.setdiag(0)
    counts.eliminate_zeros()
    return normalised(counts)


def normalised(counts: sp.csr_matrix) -> sp.csr_matrix:
    """D^-½ C D^-½ of a symmetric matrix of counts C with row sums D; float32."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    scale = sp.diags(np.divide(1.0, np.sqrt(total), out=np.zeros(len(total)), where=total > 0))
    return sp.csr_matrix((scale @ counts @ scale).astype(np.float32))


def top_k_per_row(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` largest entries of each row; of equal ones those of lower column."""
    matrix = sp.csr_matrix(matrix)
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - matrix.indptr[row[order]]
    top = order[place < count]
    return sp.csr_matrix((matrix.data[top], (row[top], matrix.indices[top])), matrix.shape)
