"""A tiny Llama with a tokenizer, saved as a real Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["given", "items", "user", "next", "predict", "the", "red", "blue", "comedy", "film", ":", ";", "title"]
WORDS += ["Item", *map(str, range(20))]  # so that no two items of small catalogues read the same


def save(folder: Path, model: PreTrainedModel) -> str:
    """Writes any model together with a tokenizer that knows :data:`WORDS`."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def llama_model(layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)
