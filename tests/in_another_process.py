"""A training run to be stopped from outside; imported ahead, so that starting one takes no seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from llmd4rec.data.dataset import Dataset
from llmd4rec.distill import rounds  # noqa: F401
from llmd4rec.distill.run import parse_settings
from llmd4rec.training import fit

torch.set_num_threads(1)


def train(settings: dict[str, Any], data: Path, folder: Path) -> None:
    """Exits with 130 when it was interrupted, as the command does."""
    fit.MIN_STEPS = 4  # short epochs: these runs are about their stages
    try:
        parse_settings(settings).fit(Dataset.load(data), folder)
    except KeyboardInterrupt:
        os._exit(130)
