"""Many sequences behind one prompt, as a single row of tokens without padding.

    row:   p1 … pP   a1 a2 a3   b1   c1 c2 …        P tokens of the prompt, then N of B sequences, one behind another

Everything in a decoder but attention works on each token for itself, so it can run on the row as it is: one matrix
product per layer, prompt included, and nothing on padding. Only attention must know which token belongs where. It is
put in from outside, through transformers' registry of attention functions: prompt tokens read the prompt, a sequence's
tokens read the prompt and what stands before them in their own sequence. The prompt's keys and values stay where they
are and are read by all sequences in one product, where a key-value cache would copy them for each.

Not every decoder can be run so (some do not use the registry, some attend in ways of their own); :func:`can_pack`
tries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_NAME = "llmd4rec_packed"
#: Ways of attending that `_attend` has not learned; who asks for one is run the ordinary way.
_UNKNOWN = ("sliding_window", "softcap", "s_aux", "head_mask")


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a row belong.

    Attributes:
        prompt: P.
        batch, length: B and L, the grid in which sequences stand one below another.
        slot_N: each token's place in the flattened grid.
        token_S: each place's token, S = B · L; padding has some token of its sequence.
        padding_S: the places of padding.
        position_T: each token's position for the decoder, T = P + N.
    """

    prompt: int
    batch: int
    length: int
    slot_N: Tensor
    token_S: Tensor
    padding_S: Tensor
    position_T: Tensor

    @classmethod
    def of(cls, lengths_B: Tensor, length: int, prompt: int) -> Packing:
        """Sequences of `lengths_B` tokens, at least 1 and at most `length` each, behind `prompt` tokens."""
        column_L = torch.arange(length, device=lengths_B.device)
        real_S = (column_L < lengths_B[:, None]).flatten()
        slot_N, padding_S = real_S.nonzero()[:, 0], real_S.logical_not().nonzero()[:, 0]
        first_B1 = (lengths_B.cumsum(0) - lengths_B)[:, None]
        token_S = (first_B1 + torch.minimum(column_L, lengths_B[:, None] - 1)).flatten()
        position_T = torch.cat([torch.arange(prompt, device=lengths_B.device), prompt + slot_N % length])
        return cls(prompt, len(lengths_B), length, slot_N, token_S, padding_S, position_T)

    def spread(self, x_NW: Tensor) -> Tensor:
        """From row to grid, [B, L, W]; padding is 0."""
        grid_SW = x_NW.new_zeros(len(self.token_S), x_NW.shape[1]).index_copy(0, self.slot_N, x_NW)
        return grid_SW.view(self.batch, self.length, -1)


def run_packed(decoder: Any, inputs_TW: Tensor, packing: Packing) -> Tensor:
    """The decoder's last hidden states of a row, [T, W]."""
    with _attention(decoder.config):
        output = decoder(
            inputs_embeds=inputs_TW[None], position_ids=packing.position_T[None], use_cache=False, packing=packing
        )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


@torch.no_grad()
def can_pack(decoder: Any, inputs_TW: Tensor) -> bool:
    """Whether `run_packed` gives what the decoder gives for each sequence alone, tried on four inputs."""
    packing = Packing.of(torch.tensor([2, 1], device=inputs_TW.device), 2, 1)
    alone = [[0, 1, 2], [0, 3]]
    try:
        packed = run_packed(decoder, inputs_TW, packing)
        for tokens in alone:
            plain = decoder(inputs_embeds=inputs_TW[tokens][None], use_cache=False).last_hidden_state[0]
            if not torch.allclose(packed[tokens], plain, rtol=0, atol=1e-3 * float(plain.abs().max())):
                return False
    except Exception:  # a decoder that is not made for it fails in its own way
        return False
    return True


@contextlib.contextmanager
def _attention(config: Any) -> Iterator[None]:
    """Makes the decoder attend as a packed row should, within the block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _no_mask)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _no_mask(*_: Any, **__: Any) -> None:
    """Who sees whom follows from the packing."""


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row: query [1, H, T, k], key and value [1, G, T, k], H a multiple of G; [1, T, H, k]."""
    if any(rest.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError(f"packed attention with one of {', '.join(_UNKNOWN)}")
    heads, groups, prompt = query.shape[1], key.shape[1], packing.prompt
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prompt_q, grid_q = _to_grid(query[0], groups, packing)
    prompt_k, grid_k = _to_grid(key[0], groups, packing)
    prompt_v, grid_v = _to_grid(value[0], groups, packing)
    columns, sequences = packing.length, groups * packing.batch

    # Heads that share keys stand below one another: [G · B, H/G · L, L] scores of a sequence with itself ...
    later = torch.full((columns, columns), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    later = later.repeat(heads // groups, 1)
    scores = torch.baddbmm(later, grid_q, grid_k.transpose(1, 2), alpha=scale)
    if prompt:  # ... and before them those with the prompt, whose keys are the same for all sequences
        flat_q = grid_q.view(groups, -1, grid_q.shape[-1])
        with_prompt = torch.baddbmm(query.new_zeros(1, 1, 1), flat_q, prompt_k.transpose(1, 2), beta=0, alpha=scale)
        scores = torch.cat([with_prompt.view(sequences, -1, prompt), scores], -1)
    shares = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    shares_prompt, shares_own = torch.split(shares, [prompt, columns], -1)
    grid = torch.bmm(shares_own, grid_v)
    if not prompt:
        return _from_grid(grid, heads, groups, packing)[None], None
    flat_shares = shares_prompt.reshape(groups, -1, prompt)
    grid = torch.baddbmm(grid.view(groups, -1, value.shape[-1]), flat_shares, prompt_v)
    of_prompt = F.scaled_dot_product_attention(
        prompt_q[None],
        prompt_k[None],
        prompt_v[None],
        is_causal=True,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=heads != groups,
    )
    return torch.cat([of_prompt[0].transpose(0, 1), _from_grid(grid, heads, groups, packing)])[None], None


# ---- between row and grid --------------------------------------------------------------------------------------
def _to_grid(x_HTk: Tensor, groups: int, packing: Packing) -> tuple[Tensor, Tensor]:
    """The prompt's part [H, P, k], and the sequences' [G · B, H/G · L, k] with padding."""
    heads, tokens, size = x_HTk.shape
    prompt_PHk, items_NHk = torch.split(x_HTk.transpose(0, 1), [packing.prompt, tokens - packing.prompt])
    slots_SHk: Tensor = _Rearranged.apply(items_NHk, packing.token_S, packing.slot_N, None)  # type: ignore[no-untyped-call]
    split = slots_SHk.view(packing.batch, packing.length, groups, heads // groups, size)
    return prompt_PHk.transpose(0, 1), split.permute(2, 0, 3, 1, 4).reshape(groups * packing.batch, -1, size)


def _from_grid(grid: Tensor, heads: int, groups: int, packing: Packing) -> Tensor:
    """Back to the sequences' part of the row, [N, H, k]."""
    split = grid.view(groups, packing.batch, heads // groups, packing.length, -1)
    slots_SHk = split.permute(1, 3, 0, 2, 4).reshape(packing.batch * packing.length, heads, -1)
    items_NHk: Tensor = _Rearranged.apply(  # type: ignore[no-untyped-call]
        slots_SHk, packing.slot_N, packing.token_S, packing.padding_S
    )
    return items_NHk


class _Rearranged(torch.autograd.Function):
    """`x[there]`, whose gradient is not a sum but again a rearrangement, by `back`.

    Each row that counts has one place on either side. `unread`: rows of x that are not in the result, whose gradient
    is zero. Rows that the result has a second time are padding, and their gradient is not looked at.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, unread: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, unread)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back, unread = ctx.saved_tensors
        gradient = gradients[0].index_select(0, back)
        return gradient if unread is None else gradient.index_fill_(0, unread, 0.0), None, None, None
