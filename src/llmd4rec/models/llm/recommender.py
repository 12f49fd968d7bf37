"""A language model as a sequential recommender: items in as soft tokens, scores over the whole catalogue out.

A generalisation of E4SRec (Li et al. 2023, arXiv 2312.02443) that the LLMD4Rec paper builds on. Design choices:

- One pass, all positions. The instruction stands before the items and attention is causal, so the hidden state at item
  t is what E4SRec would compute from a sample of its own that ends at t. One sequence trains all its positions.
- The prompt is the same for everyone, so it is encoded once per call, with gradients, and its keys and values are
  shared by the batch. Prompt and sequences run as one row of tokens without padding (`packed.py`); for a decoder that
  cannot, the prompt's key-value cache is copied for each sequence (`expanded_cache`), and no real position looks right
  to where the padding is.
- Item token = `W_in E[i] + b` of another model's item table E ("ID-embedding injection": a frozen copy, see `inject`),
  or a small tower over the item's text vector, or their sum. Their size is matched to the model's own token embeddings,
  because a pre-trained block that is fed vectors of another scale gives little but noise.
- The token head is dropped. `dim=None` is the paper's output layer, a free table [I, width] against the last hidden
  state; `dim=k` puts a linear map to k before it, which is what makes large catalogues affordable.
- Trained: maps, towers, table and LoRA. Frozen: the base model and E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ConfigError, ModelError
from llmd4rec.matmul import linear
from llmd4rec.models.base import SequenceEncoder
from llmd4rec.models.dropout import Dropout
from llmd4rec.models.llm.backbone import (
    Backbone,
    LoRA,
    add_lora,
    drop_branches,
    embedding_rms,
    expanded_cache,
    trainable_state,
)
from llmd4rec.models.llm.packed import Packing, run_packed
from llmd4rec.models.llm.settings import ItemInputs, Tuning
from llmd4rec.models.seeded import seeded

_TABLE_STD = 0.02
_ROWS_AT_ONCE = 65_536


class LLMNetwork(SequenceEncoder):
    """A SequenceEncoder around a causal language model. Takes the backbone over: adapters are put into it in place.

    Args:
        backbone: a loaded decoder; one recommender each.
        num_items: I.
        items: what an item token is made of.
        id_dim: d, the width of the injected item table (ignored without "id").
        text_vectors: [I, T], one per item, zero where an item has no text; needed with "text", kept as a constant.
        dim: k, the width of states and item table; None: that of the backbone.
        prompt: instruction before the items; may be empty.
        response: marker behind the instruction, before the items; may be empty.
        max_length: the longest history read.
        dropout: on item tokens.
        lora: the adapters; needed with tune="lora", otherwise unused.
        tune: what of the backbone is trained: adapters, everything but the token embeddings, or nothing.
        init_table_from_model: the table's id part is the injected table plus a learned difference that starts at zero;
            needs dim == id_dim.
        seed: of every random initial value; the global random state is left as it was.

    Raises:
        ConfigError: settings contradict each other.
        ModelError: the prompt and a history do not fit the model's context.
    """

    injected: Tensor
    injected_rms: Tensor
    text_vectors: Tensor | None
    _prompt_tokens: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_items: int,
        *,
        item_features: ItemInputs = "id",
        id_dim: int = 0,
        text_vectors: Tensor | None = None,
        dim: int | None = None,
        prompt: str = "",
        response: str = "",
        max_length: int = 50,
        dropout: float = 0.0,
        lora: LoRA | None = None,
        tune: Tuning = "lora",
        init_table_from_model: bool = False,
        tie_table: bool = False,
        state_dropout: float = 0.0,
        branch_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.uses_id, self.uses_text = "id" in item_features.split("+"), "text" in item_features.split("+")
        _check_settings(self, num_items, id_dim, text_vectors, dim, lora, tune, init_table_from_model)
        self.max_length, self._num_items, self._dim = max_length, num_items, dim or backbone.width
        tokens = _prompt_tokens(backbone, prompt, response)
        _check_context(backbone, len(tokens) + max_length)
        self.register_buffer("_prompt_tokens", torch.tensor(tokens, dtype=torch.long), persistent=False)

        scale = embedding_rms(backbone.model)
        if tune == "lora" and lora is not None:
            add_lora(backbone, lora, seed)
        else:
            backbone.model.requires_grad_(tune == "full")
            backbone.model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
        self.decoder = backbone.model
        if branch_dropout:
            drop_branches(backbone, branch_dropout)
        self._packs = backbone.packs
        self.dropout, self.state_dropout = Dropout(dropout), Dropout(state_dropout)

        with seeded(seed):
            # Two parts are summed where there are two; each then carries half of the token's variance.
            part = scale / (self.uses_id + self.uses_text + tie_table) ** 0.5
            self.table_in = _linear(self._dim, backbone.width, part) if tie_table else None
            self.id_in = _linear(id_dim, backbone.width, part) if self.uses_id else None
            self.text_in = _tower(text_vectors, backbone.width, part) if self.uses_text else None
            self.head = _Linear(backbone.width, self._dim) if dim is not None else None
            self.table = nn.Parameter(torch.empty(num_items, self._dim).normal_(0.0, _TABLE_STD))
            self.text_out = _tower(text_vectors, self._dim, _TABLE_STD) if self.uses_text else None
        self.register_buffer("injected", torch.zeros(num_items, id_dim if self.uses_id else 0))
        self.register_buffer("injected_rms", torch.zeros(()))
        self.register_buffer("text_vectors", text_vectors, persistent=False)
        self.init_table_from_model = init_table_from_model
        if init_table_from_model:
            nn.init.zeros_(self.table)
        self.to(next(backbone.model.parameters()).device)

    # ---- SequenceEncoder ----------------------------------------------------------------------------------------
    @property
    def num_items(self) -> int:
        """I."""
        return self._num_items

    @property
    def dim(self) -> int:
        """k, or the backbone's width."""
        return self._dim

    def states(self, batch: SequenceBatch) -> Tensor:
        """States at every position, [B, L, dim]; see :class:`~llmd4rec.models.base.SequenceEncoder`.

        Those of padding are 0.

        Raises:
            ModelError: the items are made of identifiers and no item table was injected yet.
        """
        items_BL = batch.items_BL
        packing = Packing.of(batch.lengths_B, items_BL.shape[1], len(self._prompt_tokens))
        tokens_NW = self.dropout(self.item_tokens(items_BL.flatten()[packing.slot_N])).to(self._precision)
        run = self._packed if self._packs else self._with_cache
        hidden_NW = self.state_dropout(run(tokens_NW, packing).to(self.table.dtype))
        return packing.spread(hidden_NW if self.head is None else self.head(hidden_NW))

    def _packed(self, tokens_NW: Tensor, packing: Packing) -> Tensor:
        """The decoder's last hidden states of the item tokens [N, width], prompt and items as one row of tokens."""
        prompt_PW = self.decoder.get_input_embeddings()(self._prompt_tokens)  # type: ignore[operator]
        return run_packed(self.decoder, torch.cat([prompt_PW, tokens_NW]), packing)[packing.prompt :]

    def _with_cache(self, tokens_NW: Tensor, packing: Packing) -> Tensor:
        """The same for any decoder: padded sequences, and a copy of the prompt's keys and values for each."""
        cache, offset = None, packing.prompt
        if offset:
            prompt = self.decoder(input_ids=self._prompt_tokens[None], use_cache=True)
            cache = expanded_cache(prompt.past_key_values, packing.batch)
        positions = torch.arange(offset, offset + packing.length, device=tokens_NW.device)[None]
        hidden_BLW = self.decoder(
            inputs_embeds=packing.spread(tokens_NW),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden_BLW.flatten(0, 1)[packing.slot_N]  # type: ignore[no-any-return]

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """The output layer, [I, dim] or some of its rows: free part, plus the tower's, plus E where asked for."""

        def rows(whole: Tensor) -> Tensor:
            # The gradient of an embedding is added up row by row, that of an index is sorted first.
            return whole if items is None else F.embedding(items, whole)

        table_ID = rows(self.table)
        if self.init_table_from_model:
            table_ID = table_ID + rows(self._injected())
        if self.text_out is not None and self.text_vectors is not None:
            texts = rows(self.text_vectors)
            if torch.is_grad_enabled():
                table_ID = self.text_out(texts).add_(table_ID)
            else:  # the whole of a large catalogue is only asked for outside training: in parts, so that it fits
                table_ID = table_ID.clone()
                for start in range(0, len(texts), _ROWS_AT_ONCE):
                    table_ID[start : start + _ROWS_AT_ONCE] += self.text_out(texts[start : start + _ROWS_AT_ONCE])
        return table_ID

    # ---- items in ---------------------------------------------------------------------------------------------
    def item_tokens(self, items: Tensor) -> Tensor:
        """Input embeddings of items of any shape [...], giving [..., width]."""
        parts: list[Tensor] = []
        if self.id_in is not None:
            # One number scales the whole table, so that W_in sees the same size whichever model it is from.
            parts.append(self.id_in(self._injected()[items] / self.injected_rms))
        if self.text_in is not None and self.text_vectors is not None:
            parts.append(self.text_in(self.text_vectors[items]))
        if self.table_in is not None:
            rows = self.item_table(items.flatten()).view(*items.shape, -1)
            parts.append(self.table_in(rows / self._first_table_rms()))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _first_table_rms(self) -> Tensor:
        """The size of the item table's numbers as training starts."""
        of_texts = self.uses_text * _TABLE_STD**2
        free = (
            self.injected_rms.square()
            if self.init_table_from_model
            else torch.full_like(self.injected_rms, _TABLE_STD**2)
        )
        return (free + of_texts).sqrt()

    def inject(self, table_ID: Tensor) -> None:
        """Copies another model's item table [I, d] into the frozen E; to be repeated when that model was trained again.

        Raises:
            ModelError: the table has another shape or holds infinite or undefined numbers.
        """
        if table_ID.shape != self.injected.shape:
            raise ModelError(
                f"the injected item table has shape {tuple(table_ID.shape)}, expected {tuple(self.injected.shape)}",
                "Use the item table of a model trained on the same data set, and its width as id_dim.",
            )
        if not torch.isfinite(table_ID).all():
            raise ModelError("the injected item table holds infinite or undefined numbers", "Train that model again.")
        with torch.no_grad():
            self.injected.copy_(table_ID)
            self.injected_rms.copy_(self.injected.double().pow(2).mean().sqrt().clamp_min(1e-12))

    def _injected(self) -> Tensor:
        if not self.injected_rms > 0:
            raise ModelError(
                "no item table was injected into the language model yet",
                "Train the model it reads first and inject its item table.",
            )
        return self.injected

    # ---- saving -----------------------------------------------------------------------------------------------
    def saved_state(self) -> dict[str, Tensor]:
        """What training changed, by name: trained parameters and the injected table. The base model is not among it."""
        state = trainable_state(self)
        return {**state, "injected": self.injected.detach(), "injected_rms": self.injected_rms.detach()}

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Puts back what :meth:`saved_state` gave.

        Raises:
            ModelError: names or shapes differ: the state is of a recommender with other settings.
        """
        own = self.saved_state()
        differing = sorted(own.keys() ^ state.keys())
        differing += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if differing:
            raise ModelError(
                f"the saved language model does not fit these settings: {', '.join(differing[:3])}",
                "Use the settings and the data set it was trained with.",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    @property
    def _precision(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype


# ---- initial values -------------------------------------------------------------------------------------------
class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _linear(inputs: int, outputs: int, rms: float) -> nn.Linear:
    """A linear map that turns inputs of unit size into outputs of size `rms`."""
    layer = _Linear(inputs, outputs)
    nn.init.normal_(layer.weight, 0.0, rms / inputs**0.5)
    nn.init.zeros_(layer.bias)
    return layer


def _tower(text_vectors: Tensor | None, outputs: int, rms: float) -> nn.Sequential:
    """Linear, GELU, Linear from text vectors to `outputs`; over these vectors its outputs start with size `rms`."""
    assert text_vectors is not None
    size = text_vectors.shape[1]
    hidden = min(size, outputs)
    # A sample tells the size of the outputs as well as a million items do.
    sample = text_vectors[:: max(1, len(text_vectors) // 4096)]
    present = sample[sample.abs().sum(1) > 0]
    first, last = _linear(size, hidden, 1.0), _linear(hidden, outputs, 1.0)
    tower = nn.Sequential(first, nn.GELU(), last)
    if len(present):
        with torch.no_grad():
            first.weight /= present.pow(2).mean().sqrt()
            last.weight *= rms / tower(present).pow(2).mean().sqrt()
    return tower


# ---- checks ---------------------------------------------------------------------------------------------------
def _check_settings(
    model: LLMNetwork,
    num_items: int,
    id_dim: int,
    text_vectors: Tensor | None,
    dim: int | None,
    lora: LoRA | None,
    tune: Tuning,
    init_table_from_model: bool,
) -> None:
    if model.uses_id and id_dim < 1:
        raise ConfigError("items read by item embeddings need the width of the injected item table", "Set id_dim.")
    if init_table_from_model and not (model.uses_id and dim == id_dim):
        raise ConfigError(
            f"init_table_from_model needs injected item embeddings and dim equal to their width ({dim}, not {id_dim})",
            f"Set dim to {id_dim}, or switch init_table_from_model off.",
        )
    if model.uses_text and (text_vectors is None or text_vectors.ndim != 2 or len(text_vectors) != num_items):
        shape = None if text_vectors is None else tuple(text_vectors.shape)
        raise ConfigError(
            f"items made of text need one text vector for each of {num_items} items; got shape {shape}",
            "Encode the texts of the whole catalogue, or set items to id.",
        )
    if tune == "lora" and lora is None:
        raise ConfigError('tune is "lora" but no adapters are configured', 'Set lora, or set tune to "frozen".')


def _prompt_tokens(backbone: Backbone, prompt: str, response: str) -> list[int]:
    """Tokens of the prompt with whatever its tokenizer puts in front of a text, then those of the response."""
    tokenizer = backbone.tokenizer
    tokens: list[int] = list(tokenizer(prompt)["input_ids"]) if prompt else []
    while tokens and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()  # an end-of-text mark would cut the items off from the instruction
    if response:
        tokens += tokenizer(response, add_special_tokens=False)["input_ids"]
    return tokens


def _check_context(backbone: Backbone, needed: int) -> None:
    available = getattr(backbone.model.config, "max_position_embeddings", None)
    if available is not None and needed > available:
        raise ModelError(
            f"{backbone.name} reads {available} tokens; prompt and history need {needed}",
            "Shorten the prompt or max_length, or choose another model.",
        )
