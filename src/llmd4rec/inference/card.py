"""The model card of an export: what it is, its measured accuracy, its limits."""

from __future__ import annotations

from typing import Any

from llmd4rec.distillation.stage_ids import BESIDE_MEMORY
from llmd4rec.scoring.memory.settings import WEIGHED_BY


def model_card(head: dict[str, Any]) -> str:
    """README.md of an export, from export.json."""
    return "\n".join([_front(head), *_about(head), _use(head)])


def _front(head: dict[str, Any]) -> str:
    return f"""---
library_name: llmd4rec
tags: [recommender-systems, sequential-recommendation, {head["model"]["name"]}, onnx]
---
# Sequential recommender ({head["model"]["name"]}, {head["stage"]})

Scores every item of a catalogue of {head["items"]:,} as the next one after a history.
"""


def _about(head: dict[str, Any]) -> list[str]:
    validation = f"validation {head['selection']} {head['validation']:.4f}"
    selected = f", selected at {validation}"
    if head["stage"] == BESIDE_MEMORY:
        selected = f", taught to stand beside the memory; by itself it has {validation}, and is not meant to be used so"
    lines = [
        f"- Trained by llmd4rec {head['llmd4rec']} in stage `{head['stage']}`{selected}; data fingerprint "
        f"`{head['data']}`.",
        f"- Reads the last {head['max_length']} items of a history.",
        "- Selected and evaluated with the items of the history "
        + ("removed from the candidates." if head["filter_seen"] else "among the candidates: they may be recommended."),
        "- Learned from logged behaviour: it repeats what was popular and shown there, and says nothing about why.",
    ]
    if "origin" in head:
        origin = head["origin"]
        what = {"refit": "the refit", "update": "an update"}[origin["kind"]]
        figures = ", ".join(f"{name} {value:.4f}" for name, value in origin["metrics"].items() if name.endswith("@10"))
        lines.append(
            f"- It is {what} of the run `{origin['run']}`: every row of its data was trained on and none was held out. "
            f"Figures are those of that run, validation above{f' and on test items {figures}' if figures else ''}."
        )
    if "undistilled" in head:
        lines.append(
            f"- `undistilled/` is the same network trained without distillation, with validation {head['selection']} "
            f"{head['undistilled']['validation']:.4f}; graph and table have the same size."
        )
    if "table" in head:
        table = head["table"]
        lines.append("- The item table is in 8-bit numbers with a scale per row (`item_scales.npy`)" + (
            f": validation NDCG@10 {table['ndcg@10_rounded']:.4f}, in 32-bit numbers {table['ndcg@10_float32']:.4f}."
            if "ndcg@10_rounded" in table
            else "."
        ))  # fmt: skip
    lines += _memory(head)
    if "new_items" in head:
        new = head["new_items"]
        lines.append(
            f"- Embeddings of new items are made from their texts with `text_map.npy`, ridge regression on vectors of "
            f"{new['encoder']}. Measured on {new['cases']:,} test interactions with items whose embeddings were held "
            "out, each ranked among the whole catalogue:"
        )
        lines += ["", "  | recall | " + " | ".join(new["recall"]) + " |", "  |---" * (len(new["recall"]) + 1) + "|"]
        for name, key in (
            ("embeddings made from texts", "recall"),
            ("their trained embeddings", "recall_trained_rows"),
            ("the mean embedding for all", "recall_without_texts"),
            ("chance", "recall_by_chance"),
        ):
            lines.append(f"  | {name} | " + " | ".join(f"{value:.4f}" for value in new[key].values()) + " |")
        lines += [
            "",
            f"  These items, a fifth of the catalogue at a time, then take {new['share_of_top10']:.1%} of the top ten; "
            f"with their trained embeddings {new['share_of_top10_trained_rows']:.1%}.",
        ]
    elif not head.get("memory", {}).get("texts"):
        lines.append("- Knows only the items of `catalogue.parquet`.")
    if "text_encoder" in head:
        encoder = head["text_encoder"]
        lines += [
            "",
            f"- `text_encoder/` is {encoder['name']} in {encoder['precision']} ({encoder['bytes'] / 2**20:.1f} MiB); "
            f"cosine with the original's vectors at least {encoder['cosine_min']:.4f}.",
        ]
    return lines


def _memory(head: dict[str, Any]) -> list[str]:
    """What stands beside the model without being trained."""
    found = head.get("memory")
    if not found:
        return []
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in found["weights"].items())
    lines = [
        "- Beside the model stands a memory (`memory/`), which was counted and not trained: what follows what, what "
        f"reads alike, what is chosen now. Scores are a sum with the weights {weights}; validation "
        f"{WEIGHED_BY} of both together is {found['validation']:.4f}. "
        f"It takes {found['bytes'] / 2**20:.1f} MiB; when it was exported, scoring a request took "
        f"{found['milliseconds']:.2f} ms with it and {found['milliseconds_without']:.2f} ms without. "
        "The snippet without this package below is of the model without its memory"
        + (
            ", which was not taught to recommend so: it shows how the graph is read."
            if head["stage"] == BESIDE_MEMORY
            else "."
        )
    ]
    if "min_pair_users" in found:
        measured = (
            f" (validation NDCG@10 {found['ndcg@10_kept_pairs']:.4f}, with all pairs {found['ndcg@10_all_pairs']:.4f})"
            if "ndcg@10_kept_pairs" in found
            else ""
        )
        lines.append(
            f"- Items that fewer than {found['min_pair_users']} users chose after one another, or together, are "
            f"left out of it: {found['pairs_kept']:.1%} of the pairs are kept{measured}."
        )
    else:
        lines.append(
            "- It holds which items were chosen after one another"
            + (", and which ones far apart in one history" if "item_knn" in found["weights"] else "")
            + ", also where one person alone did so; "
            "`llmd4rec export --min-pair-users N` leaves rare ones out."
        )
    return lines


def _use(head: dict[str, Any]) -> str:
    table = 'np.load("item_table.npy")'
    if "table" in head:
        table += ' * np.load("item_scales.npy")[:, None]'
    filtering = "scores[history[0]] = -np.inf  # leave out seen items\n" if head["filter_seen"] else ""
    reads = head.get("reads", [])
    # Of a model that reads times: those of the events, and the moment for which the request is answered.
    times = _TIMES if reads else ""
    given = {"times": "times[:, :-1]", "target_times": "times[:, 1:]"}
    inputs = "".join(f', "{name}": {given[name]}' for name in reads)
    text = _USE.replace("LENGTH", str(head["max_length"])).replace("TABLE", table).replace("FILTERING", filtering)
    return text.replace("TIMES", times).replace("INPUTS", inputs)


_TIMES = "times = np.array([[1_700_000_000, 1_700_000_060, 1_700_000_120]])  # of both items, and now\n"


_USE = """
With this package:

```python
from llmd4rec import Recommender

recommender = Recommender.load(".")
for item in recommender.recommend(["an-item", "another-item"], k=10).items:
    print(item.title, item.score)
```

Without it:

```python
import numpy as np, onnxruntime, polars as pl
encoder = onnxruntime.InferenceSession("encoder.onnx")
table = TABLE
ids = pl.read_parquet("catalogue.parquet")["item_id"].to_list()
history = np.array([[ids.index(i) for i in ["an-item", "another-item"]]])[:, -LENGTH:]
TIMESstates = encoder.run(None, {"vectors": table[history], "lengths": np.array([history.shape[1]])INPUTS})[0]
scores = (states @ table.T)[0]
FILTERINGprint([ids[i] for i in np.argsort(-scores)[:10]])
```
"""
