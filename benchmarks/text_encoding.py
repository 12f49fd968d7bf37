"""Item texts to vectors: every text once, sorted by length, remembered; against the order in which they stand.

Ours is `encode_texts`: equal texts once, texts of similar length in batches of a number of tokens, the vectors kept on
disk. Against it the usual loop over the same sentence encoder: 64 texts at a time as they stand, padded to the batch's
longest, repeats encoded again. Its time without the order and the repeats says what each is worth:

    as it stands     64 texts at a time, padded
    sorted           the same, texts sorted by length first
    ours             distinct, sorted, batches of 4,096 tokens, into an empty memory
    ours again       the same call once more, from the memory
    nothing padded   the machine's limit: batches of texts of one length each, distinct; no tokenising, nothing written

The texts are some of the catalogue's (titles, categories and brands), every tenth of them another item's again. The
encoder is all-MiniLM-L6-v2; it is fetched if it is not on this machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import Figure, alternate, beauty, best, report

from llmd4rec.models.llm import item_text
from llmd4rec.models.llm.item_text import encode_texts

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 64
USUAL_BATCH = 64
LIMIT_BATCH = 64
Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--texts", type=int, default=600, help="how many texts to encode")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way, after one to warm up")
    arguments = parser.parse_args()

    dataset = beauty(arguments.data)
    texts = some_texts(dataset.texts(), arguments.texts)
    encoder = item_text.SentenceEncoder(ENCODER, "cpu")
    tokenizer, embed = encoder.open()
    vectors: dict[str, np.ndarray] = {}
    with (
        tempfile.TemporaryDirectory(prefix="llmd4rec-bench-") as folder,
        mock.patch.object(
            # What is loaded before the clock starts for the other ways must not be loaded within ours.
            item_text.SentenceEncoder,
            "open",
            return_value=(tokenizer, embed),
        ),
    ):
        memory = Path(folder)

        def ours(name: str, *, empty: bool) -> None:
            if empty:
                shutil.rmtree(memory / "texts", ignore_errors=True)
            with mock.patch.dict(os.environ, {"LLMD4REC_CACHE": str(memory)}):
                vectors[name] = encode_texts(texts, str(encoder.folder), max_tokens=MAX_TOKENS)

        lengths = [len(line) for line in tokens_of(tokenizer, texts)]
        by_length = np.argsort(lengths, kind="stable").tolist()
        ready = groups_of_one_length(tokens_of(tokenizer, list(dict.fromkeys(texts))))
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: ours("ours", empty=True),
            "ours again": lambda: ours("again", empty=False),
            "as it stands": lambda: vectors.update(naive=usual(tokenizer, embed, texts, range(len(texts)))),
            "sorted": lambda: usual(tokenizer, embed, texts, by_length),
            "nothing padded": lambda: unpadded(embed, ready),
        }
        # `ours again` finds the memory that some `ours` before it has filled.
        ours("ours", empty=True)
        seconds = {name: best(taken) for name, taken in alternate(ways, repeats=arguments.repeats).items()}

    apart = float(np.abs(vectors["ours"] - vectors["naive"]).max())
    distinct = len(set(texts))
    ours_s = seconds["ours"]
    figures = [
        Figure("ours, into an empty memory", ours_s, "s", note=f"{len(texts):,} texts, {distinct:,} distinct"),
        Figure(
            "in the order they stand, over ours",
            seconds["as it stands"] / ours_s,
            "x",
            "> 1 x",
            seconds["as it stands"] > ours_s,
            f"{seconds['as it stands']:.2f} s; {padding(lengths):.0%} of its tokens are padding",
        ),
        Figure("sorted only, over ours", seconds["sorted"] / ours_s, "x", note="repeats encoded again, 64 at a time"),
        Figure("ours over the encoder's passes alone", ours_s / seconds["nothing padded"], "x", note="without padding"),
        Figure(
            "ours again, from the memory",
            seconds["ours again"],
            "s",
            "< 5% of the first",
            seconds["ours again"] < 0.05 * ours_s,
            f"{ours_s / seconds['ours again']:,.0f} times as fast; the encoder's files are read to know them again",
        ),
        Figure("12,101 texts, ours, scaled up", ours_s * 12_101 / len(texts), "s", note=f"from {len(texts):,} texts"),
    ]
    report(
        "text_encoding",
        "Item texts to vectors",
        figures,
        [f"Largest difference of a vector's entry from the usual loop's: {apart:.1e}.", f"Encoder: {ENCODER}."],
    )


def some_texts(texts: list[str], count: int) -> list[str]:
    """So many of the texts, every tenth another one's again, in random order."""
    rng = np.random.default_rng(0)
    texts = [text for text in texts if text.strip()]
    own = count - count // 10
    chosen = rng.choice(len(texts), own, replace=own > len(texts))
    chosen = np.concatenate([chosen, rng.choice(chosen, count - own)])
    return [texts[row] for row in rng.permutation(chosen)]


# ---- ways -------------------------------------------------------------------------------------------------------
def usual(tokenizer: Any, embed: Embed, texts: list[str], order: Sequence[int]) -> np.ndarray:
    """A fixed number of texts at a time, padded to the longest of them."""
    vectors: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(order), USUAL_BATCH):
            part = [texts[row] for row in order[start : start + USUAL_BATCH]]
            batch = tokenizer(part, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
            vectors.append(embed(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(vectors).numpy()


def groups_of_one_length(tokens: list[list[int]]) -> list[torch.Tensor]:
    """Batches of texts that have the same number of tokens."""
    same: dict[int, list[list[int]]] = {}
    for line in tokens:
        same.setdefault(len(line), []).append(line)
    return [part for lines in same.values() for part in torch.tensor(lines).split(LIMIT_BATCH)]


def unpadded(embed: Embed, groups: list[torch.Tensor]) -> None:
    """The encoder's passes and nothing else."""
    with torch.inference_mode():
        for tokens in groups:
            embed(tokens, torch.ones_like(tokens))


def tokens_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Each text's tokens."""
    found: list[list[int]] = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return found


def padding(lengths: list[int]) -> float:
    """The share of tokens that the usual loop only pads with."""
    batches = [lengths[start : start + USUAL_BATCH] for start in range(0, len(lengths), USUAL_BATCH)]
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


if __name__ == "__main__":
    main()
