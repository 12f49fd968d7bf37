"""Conventional recommendation models, one file each: the models that are served.

A new one is a settings class with `name`, `dim`, `max_length` and `build(num_items, seed) -> Ranker` in a file of its
own, added to :data:`CRM`.
"""

from llmd4rec.models.crm.sasrec import SASRec

#: Settings of any conventional model; with a second model this becomes a union discriminated by `name`.
CRM = SASRec

__all__ = ["CRM", "SASRec"]
