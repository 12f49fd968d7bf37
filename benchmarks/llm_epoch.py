"""One training epoch of the language model: ours against E4SRec's way on the same model, layers and positions.

E4SRec (Li et al. 2023) makes a sample of every training position: the prompt's tokens and the soft tokens of the items
up to there go through the language model, a batch is padded to its longest, and the state of the last token is scored.
Ours reads a user's whole sequence once, behind a prompt that is encoded once per step, and scores every state.

Everything else is the same code in both: backbone, adapters, dropout, item tokens, item table, prediction layer over
the catalogue, clipping, AdamW, positions per step. E4SRec's way is given what helps it: padding on the right, so that
attention needs no mask; item tokens are made for real items only; the item table and its gradient are made once per
step, although samples go through the model in parts that fit into memory. It is measured four times:

    as E4SRec runs    128 samples a step in random order, as its code has; layers of transformers and peft, products
                      of PyTorch; still our loss in blocks
    on our layers     the same with our adapters and our products
    in our steps      the same with as many samples a step as ours has positions, so that item table and update are
                      as rare as in ours
    sorted by length  that with samples of one length together, which its code has not, but which anybody could do

The arithmetic limit is what the epoch's multiplications would take at the machine's best rate (see `ceiling.py`). A
frozen weight costs 2 operations per token and element forward and 2 backward, a trained one 2 and 4; the layers that
read constants (text vectors) have no gradient to hand on.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from ceiling import Ceiling
from harness import Figure, alternate, beauty, best, report
from torch import Tensor

from llmd4rec.data.batching import TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.settings import LLMTraining
from llmd4rec.losses.objective import RankingObjective
from llmd4rec.losses.softmax import ranking_loss
from llmd4rec.models.llm.assemble import build_llm
from llmd4rec.models.llm.recommender import LLMNetwork
from llmd4rec.models.llm.settings import LLM

#: The width of the text vectors of the default encoder; their values cost nothing, so they are drawn.
TEXT_DIM = 384
MODEL_DIM = 64
#: Samples per step in E4SRec's code.
THEIR_BATCH = 128


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: a synthetic log of Beauty's shape)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way, after one to warm up")
    parser.add_argument("--steps", type=int, default=12, help="our steps per turn; E4SRec's way takes one")
    parser.add_argument("--part", type=int, default=64, help="samples of E4SRec's way that go through at once")
    arguments = parser.parse_args()

    dataset = beauty(arguments.data)
    network = recommender(dataset)
    windows = TrainingWindows(dataset, network.max_length)
    batches = windows.shuffled(LLMTraining().batch, np.random.default_rng(0))
    chosen = batches[:: max(1, len(batches) // arguments.steps)][: arguments.steps]
    samples = Samples(dataset, windows)
    difference = parity(network, windows, samples)

    trainer = Trainer(network)
    with stock_layers():
        stock_trainer = Trainer(recommender(dataset))
    ceiling = Ceiling(dataset.num_items, network.dim)
    drawn = samples.draw(LLMTraining().batch)
    theirs = np.split(drawn, range(THEIR_BATCH, len(drawn), THEIR_BATCH))
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: [trainer.step(windows, batch) for batch in chosen],
        "shared": lambda: [trainer.shared(windows, batch) for batch in chosen],
        "as E4SRec runs": lambda: stock_trainer.step_stock(samples, theirs),
        "on our layers": lambda: [trainer.step_by_samples(samples, some, THEIR_BATCH) for some in theirs],
        "in our steps": lambda: trainer.step_by_samples(samples, drawn, arguments.part),
        "sorted by length": lambda: trainer.step_by_samples(samples, samples.by_length(drawn), arguments.part),
        "ceiling": ceiling.measure,
    }
    seconds = alternate(ways, repeats=arguments.repeats)

    positions = sum(len(windows.batch(batch).target_N) for batch in chosen)
    ours = best(seconds["ours"]) / positions * windows.num_positions
    shared = best(seconds["shared"]) / positions * windows.num_positions
    as_theirs, on_ours, in_our_steps, by_length = (
        best(seconds[way]) / len(drawn) * windows.num_positions
        for way in ("as E4SRec runs", "on our layers", "in our steps", "sorted by length")
    )
    flops = epoch_flops(network, windows, len(batches))
    rate = ceiling.square()
    share = 1 - sum(int(windows.batch(b).lengths_B.sum()) for b in batches) / sum(
        windows.batch(b).items_BL.numel() for b in batches
    )
    figures = [
        Figure("epoch", ours, "s", note=f"{len(chosen)} of {len(batches)} steps measured, scaled up"),
        Figure(
            "epoch / arithmetic limit",
            ours * rate / flops,
            "x",
            note=f"{flops / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s (large square product) = {flops / rate:.0f} s",
        ),
        Figure(
            "E4SRec's way / ours, as E4SRec runs", as_theirs / ours, "x", "≥ 40", as_theirs >= 40 * ours,
            f"{as_theirs:,.0f} s, {len(theirs)} steps of {THEIR_BATCH} samples measured, scaled up; "
            f"{samples.tokens(network, drawn, THEIR_BATCH):.0f} tokens a sample with padding",
        ),
        Figure("E4SRec's way on our layers / ours", on_ours / ours, "x", note=f"{on_ours:,.0f} s"),
        Figure(
            "E4SRec's way on our layers, in our steps / ours", in_our_steps / ours, "x",
            note=f"{in_our_steps:,.0f} s, 1 step of {len(drawn)}, {arguments.part} at once; "
            f"{samples.tokens(network, drawn, arguments.part):.0f} tokens",
        ),
        Figure(
            "that, language model alone / ours", (in_our_steps - shared) / max(ours - shared, 1e-9), "x",
            note=f"item table, prediction layer and update are {shared:.0f} s of either",
        ),
        Figure(
            "that in our steps, sorted by length / ours", by_length / ours, "x",
            note=f"{by_length:,.0f} s; {samples.tokens(network, samples.by_length(drawn), arguments.part):.0f} tokens",
        ),
        Figure("padding that ours leaves out", 100 * share, "%", note="of the tokens of padded batches"),
    ]  # fmt: skip
    notes = [
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {windows.num_positions:,} training positions; "
        f"{LLM().model}, first 2 layers, d {network.dim}, LoRA r 16 on all linear layers, items id+text, "
        f"{LLMTraining().batch} positions a step; best of the turns.",
        f"Without dropout the two ways' states differ by at most {difference:.0e} of the largest.",
    ]
    report("llm_epoch", "Language model: one training epoch", figures, notes)


def recommender(dataset: Dataset) -> LLMNetwork:
    """The default language model on its first two layers, with drawn text vectors, ready to train."""
    vectors = torch.randn(dataset.num_items, TEXT_DIM, generator=torch.Generator().manual_seed(0))
    network, _ = build_llm(LLM(layers=2), dataset.num_items, MODEL_DIM, vectors, 0, torch.device("cpu"))
    return network.train()


@contextlib.contextmanager
def stock_layers() -> Iterator[None]:
    """Language models built and run here have peft's adapters and PyTorch's products."""
    with (
        mock.patch("llmd4rec.models.llm.backbone.AdaptedLinear", lambda layer, dropout: layer),
        mock.patch("llmd4rec.matmul.uses_onednn", return_value=False),
    ):
        yield


class Samples:
    """Every training position as a sample of its own: the items up to it, and the next one."""

    def __init__(self, dataset: Dataset, windows: TrainingWindows) -> None:
        self._items, self._limit = dataset.items, windows.max_length
        starts = np.asarray(dataset.offsets[:-1])
        inputs = np.maximum(np.asarray(dataset.train_end) - starts - 1, 0)
        nth = np.arange(inputs.sum()) - np.repeat(np.cumsum(inputs) - inputs, inputs)
        self._end = np.repeat(starts, inputs) + nth + 1
        self._length = np.minimum(nth + 1, self._limit)

    def draw(self, count: int) -> np.ndarray:
        """So many samples at random."""
        return np.random.default_rng(1).permutation(len(self._end))[:count]

    def by_length(self, chosen: np.ndarray) -> np.ndarray:
        """The same samples, shortest first."""
        return chosen[np.argsort(self._length[chosen], kind="stable")]

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Items [B, L], padded on the right to the longest; lengths [B]; next items [B]."""
        length, end = self._length[chosen], self._end[chosen]
        column = np.arange(length.max())
        index = np.where(column < length[:, None], (end - length)[:, None] + column, end[:, None] - 1)
        items = self._items[index].astype(np.int64)
        return torch.from_numpy(items), torch.from_numpy(length), torch.from_numpy(self._items[end].astype(np.int64))

    def tokens(self, network: LLMNetwork, chosen: np.ndarray, part: int) -> float:
        """Tokens that the language model reads per sample, padding included."""
        parts = np.split(chosen, range(part, len(chosen), part))
        return len(network._prompt_tokens) + sum(len(p) * self._length[p].max() for p in parts) / len(chosen)


def states_of_samples(network: LLMNetwork, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
    """E4SRec's way: each sample's whole text through the language model, the state of its last token; [B, dim]."""
    prompt_PW = network.decoder.get_input_embeddings()(network._prompt_tokens)
    real_BL = torch.arange(items_BL.shape[1]) < lengths_B[:, None]
    tokens_NW = network.dropout(network.item_tokens(items_BL[real_BL]))
    grid = tokens_NW.new_zeros(*items_BL.shape, tokens_NW.shape[1])
    grid[real_BL] = tokens_NW
    inputs = torch.cat([prompt_PW.expand(len(items_BL), -1, -1), grid], 1)
    hidden = network.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(items_BL)), len(prompt_PW) + lengths_B - 1]
    return network.head(last)


class Trainer:
    """Steps of `fit`, by either way."""

    def __init__(self, network: LLMNetwork) -> None:
        settings = LLMTraining()
        self.network, self.clip = network, settings.clip
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.objective = RankingObjective(settings)

    def step(self, windows: TrainingWindows, chosen: np.ndarray) -> None:
        """Ours: whole windows, every state scored."""
        batch = windows.batch(chosen)
        states_ND = batch.trained(self.network.states(batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(states_ND, self.network, batch, 0).loss.backward()
        self._update()

    def shared(self, windows: TrainingWindows, chosen: np.ndarray) -> None:
        """What every way does without the language model: item table, prediction layer, update."""
        batch = windows.batch(chosen)
        states_ND = torch.randn(len(batch.target_N), self.network.dim, requires_grad=True)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(states_ND, self.network, batch, 0).loss.backward()
        self._update()

    def step_by_samples(self, samples: Samples, chosen: np.ndarray, part: int) -> None:
        """E4SRec's: one prefix per position, gradients summed over parts of the step."""
        self.optimizer.zero_grad(set_to_none=True)
        table_ID = self.network.item_table()
        leaf_ID = table_ID.detach().requires_grad_()
        for some in np.split(chosen, range(part, len(chosen), part)):
            items_BL, lengths_B, target_B = samples.batch(some)
            states_BD = states_of_samples(self.network, items_BL, lengths_B)
            (ranking_loss(states_BD, leaf_ID, target_B).loss * (len(some) / len(chosen))).backward()
        table_ID.backward(leaf_ID.grad)
        self._update()

    def step_stock(self, samples: Samples, steps: list[np.ndarray]) -> None:
        """E4SRec's, a step each, on stock layers."""
        with stock_layers():
            for some in steps:
                self.step_by_samples(samples, some, len(some))

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()


@torch.no_grad()
def parity(network: LLMNetwork, windows: TrainingWindows, samples: Samples) -> float:
    """The largest difference between the two ways' states for the first 64 training positions, without dropout."""
    network.eval()
    batch = windows.batch(np.arange(64))
    ours = batch.trained(network.states(batch))[batch.position_N < 64]
    items_BL, lengths_B, target_B = samples.batch(np.arange(64))
    assert torch.equal(batch.target_N[batch.position_N < 64], target_B)
    theirs = states_of_samples(network, items_BL, lengths_B)
    network.train()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert difference < 1e-3, f"the two ways' states differ by {difference}"
    return difference


def epoch_flops(network: LLMNetwork, windows: TrainingWindows, steps: int) -> float:
    """Multiplications and additions of one epoch of ours, forward and backward."""
    length = np.array([int(windows.batch(np.array([w])).lengths_B) for w in range(len(windows))])
    prompt = len(network._prompt_tokens)
    tokens, items = int(length.sum()) + steps * prompt, network.num_items
    config = network.decoder.config
    layers = dict(network.decoder.layers.named_parameters())
    adapters = sum(p.numel() for name, p in layers.items() if "lora_" in name)
    frozen = sum(p.numel() for name, p in layers.items() if "lora_" not in name and p.ndim == 2)
    pairs = int((length * (length + 1) // 2).sum()) + prompt * int(length.sum())
    attention = 12.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs

    def tower(first: torch.nn.Linear, last: torch.nn.Linear) -> float:
        return 4.0 * first.weight.numel() + 6.0 * last.weight.numel()

    item_in = tower(network.text_in[0], network.text_in[2]) + 4.0 * network.id_in.weight.numel()
    table = steps * items * tower(network.text_out[0], network.text_out[2])
    head = 6.0 * network.head.weight.numel() * windows.num_positions
    prediction = 6.0 * windows.num_positions * items * network.dim
    return (
        (4.0 * frozen + 6.0 * adapters) * tokens + attention + item_in * int(length.sum()) + table + head + prediction
    )


if __name__ == "__main__":
    main()
