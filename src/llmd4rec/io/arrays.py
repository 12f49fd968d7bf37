"""Arrays from files of strangers: what a file says of itself is compared with what is needed before it is read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Larger numbers would overflow where products of them are summed up in 32 bits.
LARGEST = 1e12
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Reads an array that has this type and shape, and only numbers up to :data:`LARGEST`.

    Args:
        path: a file that `np.save` wrote.
        dtype, shape: what it must have; None stands for any length.

    Raises:
        ValueError: it has not, or is as long as it should not be; says what is wrong, without the path.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            found, by_column, kind = _HEADS[np.lib.format.read_magic(file)](file)
        except OSError:
            raise
        except Exception as error:  # numpy parses the head as Python, which fails in many ways
            raise ValueError(f"cannot be read as a NumPy array: {str(error)[:300]}") from error
        fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=True))
        if not fits or min(found, default=0) < 0:
            wanted = " x ".join("any" if size is None else f"{size:,}" for size in shape)
            raise ValueError(f"has shape {str(found)[:100]}, but {wanted} is needed")
        if kind != dtype:
            raise ValueError(f"contains {str(kind)[:100]}, but {np.dtype(dtype)} is needed")
        count, rest = math.prod(found), os.fstat(file.fileno()).st_size - file.tell()
        if count * kind.itemsize != rest:
            raise ValueError(f"has {rest:,} bytes of numbers, but {count * kind.itemsize:,} are needed for its shape")
        array = np.fromfile(file, kind, count)
    if array.size and array.dtype.kind == "f" and not (array.min() >= -LARGEST and array.max() <= LARGEST):
        raise ValueError(f"contains NaN, infinite values or numbers beyond {LARGEST:.0e}")
    return np.ascontiguousarray(array.reshape(found, order="F" if by_column else "C"))
