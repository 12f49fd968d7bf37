"""Item texts: each encoded once, alone or in company, remembered, and never trusted when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from llmd4rec.errors import ConfigError, FetchError, ModelError
from llmd4rec.models.llm import item_text
from llmd4rec.models.llm.backbone import LoRA, add_lora, load_backbone
from llmd4rec.models.llm.item_text import Vectors, encode_texts, remember, standardise

TEXTS = ["title : red film", "title : the blue comedy film", "  ", "red", "title : red film"]


class Encoded:
    """Counts the texts that really go through an encoder, by their keys, and can fail at a file."""

    def __init__(self, fails_at: int = 0) -> None:
        self.keys, self.files, self.fails_at = list[bytes](), 0, fails_at

    def __call__(self, folder: Path, keys: list[bytes], vectors: Vectors) -> None:
        self.files += 1
        if self.files == self.fails_at:
            raise KeyboardInterrupt
        self.keys += keys
        remember(folder, keys, vectors)


@pytest.fixture
def encoded() -> Encoded:
    return Encoded()


def test_sentence_vectors_are_the_normalised_mean_of_real_tokens(bert: str) -> None:
    vectors = encode_texts(TEXTS, bert)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        if not text.strip():
            assert not vector.any()
            continue
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


def test_the_language_model_can_encode(llama: str) -> None:
    llm = load_backbone(llama, layers=2)
    vectors = encode_texts(TEXTS, "llm", llm=llm, max_tokens=3)
    tokens = llm.tokenizer(TEXTS[1], return_tensors="pt").input_ids[:, :3]
    with torch.no_grad():
        mean = llm.model(input_ids=tokens).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(vectors[1], mean, atol=1e-5)
    add_lora(llm, LoRA(), 0)
    with pytest.raises(ModelError, match="adapters"):
        encode_texts(TEXTS, "llm", llm=llm)
    with pytest.raises(ConfigError, match="no language model"):
        encode_texts(TEXTS, "llm")


def test_each_text_is_encoded_once_and_a_new_item_costs_one(bert: str, encoded: Encoded) -> None:
    first = encode_texts(TEXTS, bert, remember=encoded)
    assert sorted(encoded.keys) == sorted({item_text._key(t) for t in TEXTS if t.strip()})
    assert np.array_equal(first[0], first[4])
    encoded.keys.clear()
    second = encode_texts([*TEXTS, "new : book"], bert, remember=encoded)
    assert encoded.keys == [item_text._key("new : book")]
    assert np.array_equal(second[:5], first)
    encoded.keys.clear()
    encode_texts(TEXTS, bert, max_tokens=2, remember=encoded)
    assert len(encoded.keys) == 3, "another limit gives other vectors"


def test_batches_keep_to_the_token_budget_and_change_nothing(bert: str, tmp_path: Path) -> None:
    lengths = [5, 1, 9, 3, 3, 0, 7]
    groups = list(item_text._batches(lengths, 9))
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 4, 6]
    assert all(len(group) * max(lengths[row] for row in group) <= 9 for group in groups)
    in_order = [lengths[row] for group in groups for row in group]
    assert in_order == sorted(in_order), "texts of similar length share a batch"
    texts = [" ".join(["red"] * n + ["film"]) for n in range(20)]
    together = encode_texts(texts, bert)
    alone = encode_texts(list(reversed(texts)), bert, batch_tokens=1, max_tokens=63)[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_memory_is_encoded_anew(
    bert: str, encoded: Encoded, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    first = encode_texts(TEXTS, bert)
    (file,) = (tmp_path / "cache/texts").rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    np.testing.assert_array_equal(encode_texts(TEXTS, bert, remember=encoded), first)
    assert len(encoded.keys) == 3


def test_an_interrupted_encoding_keeps_what_was_done(bert: str, encoded: Encoded) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_texts(TEXTS, bert, texts_per_file=2, remember=Encoded(fails_at=2))
    encode_texts(TEXTS, bert, remember=encoded)
    assert len(encoded.keys) == 1


def test_standardise_centres_scales_and_keeps_empty_rows() -> None:
    generator = np.random.default_rng(0)
    vectors = (5 + generator.normal(size=(40, 6)) * [3, 1, 1, 2, 1, 0]).astype(np.float32)
    vectors[7] = 0
    present = np.arange(40) != 7
    plain = standardise(vectors)
    np.testing.assert_allclose(plain[present].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(plain[present].std(0), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert not plain[7].any()
    axes = standardise(vectors, dim=3)
    assert axes.shape == (40, 3)
    np.testing.assert_allclose(axes[present].T @ axes[present] / 39, np.eye(3), atol=1e-5)
    raw = standardise(vectors, dim=6, unit_variance=False)
    centred = vectors[present] - vectors[present].mean(0)
    np.testing.assert_allclose(raw[present] @ raw[present].T, centred @ centred.T, atol=1e-2)
    assert np.all(np.diff(raw[present].var(0)) <= 1e-6)


def test_standardise_does_not_depend_on_signs_or_blow_up_noise() -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(30, 4)).astype(np.float32)
    np.testing.assert_allclose(standardise(vectors[::-1].copy(), dim=2)[::-1], standardise(vectors, dim=2), atol=1e-4)
    flat = np.outer(generator.normal(size=30), np.ones(4)).astype(np.float32)
    assert np.abs(standardise(flat, dim=4)[:, 1:]).max() == 0, "a line has one axis, the others are rounding"
    assert not standardise(np.zeros((3, 4), np.float32), dim=2).any()
    assert not standardise(np.ones((3, 4), np.float32)).any()


@pytest.mark.slow
def test_minilm_gives_its_published_similarities() -> None:
    sentences = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    try:
        vectors = encode_texts(sentences, "sentence-transformers/all-MiniLM-L6-v2")
    except (ModelError, FetchError) as error:
        pytest.skip(f"MiniLM cannot be had here: {error.what}")
    np.testing.assert_allclose(vectors[0] @ vectors[1], 0.7553, atol=2e-3)
    assert vectors[0] @ vectors[2] < 0.1
