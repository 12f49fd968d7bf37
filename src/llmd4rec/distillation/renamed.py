"""Keys that settings once had, and what they are called now."""

from __future__ import annotations

from collections.abc import Mapping

#: Old dotted key → its new name, or a sentence that says what to do. `*` stands for any one part.
RENAMED: Mapping[str, str] = {
    "crm": "model",
    "crm.items": "model.item_features",
    "model.items": "model.item_features",
    "direction": "set distill.students (both: [model, llm], up: [model], down: [llm])",
    "teacher": "set distill.source (consensus is now ensemble)",
    "consensus": "ensemble.weights",
    "weights": "distill.sample_weights",
    "ranks": "distill.student_ranks",
    "inject": "llm.inject",
    "lambda_up": "distill.weight.model",
    "lambda_down": "distill.weight.llm",
    "temperature_up": "distill.temperature.model",
    "temperature_down": "distill.temperature.llm",
    "scale_by_t2": "distill.scale_by_t2",
    "logit_adjustment": "distill.logit_adjustment",
    "method": "distill.method",
    "teacher_precision": "distill.teacher_precision",
    "crm_start": "set distill.warm_start to a list of the models that go on, such as [model, llm]",
    "llm_start": "set distill.warm_start to a list of the models that go on, such as [model, llm]",
    "continue_by": "distill.rollout_length",
    "taught_dropout": "distill.dropout",
    "wide": "set teachers (null: none; each may have a dim of its own)",
    "wides": "teachers",
    "llm.items": "llm.item_features",
    "llm.encoder": "texts.encoder",
    "llm.text_fields": "texts.fields",
    "llm.init_table_from_crm": "llm.init_table_from_model",
    "training.crm": "training.model",
    "training.*.average": "training.*.ema",
    "training.*.candidates": "training.*.num_candidates",
    "method.strength": "distill.method.weight",
    "distill.method.strength": "distill.method.weight",
    "evaluation.seen": "set evaluation.filter_seen (remove is true, keep is false)",
}
