"""Which trainings a setting has a say in, and so what may still be changed in a run that has begun.

A language model that does not fit the GPU must not cost the CRMs that were trained before it: whatever no training that
has begun depends on may be changed, and the run goes on to what it would have come to with the new settings from the
start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmd4rec.config.settings import differences
from llmd4rec.distillation.settings import MutualDistillation

#: Where a run is trained and how often it is saved: changes no numbers that are kept.
_OF_NONE = re.compile(r"device|threads|training\.\w+\.checkpoint_seconds")
#: How models are taught.
_OF_ROUNDS = re.compile(
    r"direction|teacher|teacher_precision|consensus|weights|ranks|lambda_\w+|temperature_\w+|scale_by_t2|"
    r"logit_adjustment|method\..+|(crm|llm)_start|continue_by|taught_dropout|training\.\w+\.round_\w+"
)
#: What the language model is, reads and is trained by; the vectors of texts are the CRMs' too.
_OF_LLM = re.compile(r"inject|llm\.(?!encoder$|text_fields$).+|training\.llm\..+")
_OF_WIDE = re.compile(r"wide|wides(\..+)?")
#: How many rounds there are at most: more may be wanted at any time.
_HOW_MANY = ("rounds", "round_patience")


def depends(stage: str, setting: str) -> bool:
    """Whether the training `stage` would come out otherwise with another value of `setting`, a dotted key.

    Of a setting not known here: yes.
    """
    taught = "-round-" in stage
    if _OF_NONE.fullmatch(setting):
        return False
    if setting in _HOW_MANY or _OF_ROUNDS.fullmatch(setting):
        return taught
    if _OF_LLM.fullmatch(setting):
        return taught or stage.startswith("llm-")
    if _OF_WIDE.fullmatch(setting):
        return stage != "crm-alone"
    return True


def refused(old: MutualDistillation, new: MutualDistillation, begun: Iterable[str]) -> dict[str, list[str]]:
    """Differences between two settings that trainings depend on which have begun: each, and which those are."""
    found: dict[str, list[str]] = {}
    # Then the vectors of texts, which the CRMs' tables are trained from too, are the language model's.
    encodes = "llm" in (old.llm.encoder, new.llm.encoder)
    for line in differences(old, new):
        setting = line.partition(":")[0]
        if setting in _HOW_MANY and getattr(new, setting) > getattr(old, setting):
            continue
        stages = [stage for stage in begun if depends(stage, setting) or (encodes and setting.startswith("llm."))]
        if stages:
            found[line] = stages
    return found
