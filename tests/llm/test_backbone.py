"""Loading: the right layers, refusals that say what to do, and adapters that train and nothing else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import WORDS, save
from transformers import AutoModel, GemmaConfig, GemmaForCausalLM

from llmd4rec.errors import FetchError, ModelError
from llmd4rec.models.llm.backbone import (
    LoRA,
    add_lora,
    forget_pretraining,
    load_backbone,
    resolve_layers,
    trainable_state,
)


@pytest.fixture
def copied(llama: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def test_first_layers_give_the_full_models_intermediate_states(llama: str) -> None:
    inputs = torch.randn(2, 5, 32)
    full = AutoModel.from_pretrained(llama).eval()
    cut = load_backbone(llama, layers=2)
    with torch.no_grad():
        middle = full(inputs_embeds=inputs, output_hidden_states=True).hidden_states[2]
        states = cut.model(inputs_embeds=inputs).last_hidden_state
    assert (cut.layers, cut.total_layers, cut.width) == (2, 3, 32)
    torch.testing.assert_close(states, full.norm(middle))


def test_loading_is_silent(llama: str, capfd: pytest.CaptureFixture[str]) -> None:
    load_backbone(llama, layers=1)
    assert capfd.readouterr() == ("", "")


def test_fingerprint_follows_the_weights_used(llama: str, copied: Path) -> None:
    whole, again, cut = (load_backbone(llama, layers=k).fingerprint for k in (None, 3, 2))
    assert whole == again != cut
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(copied)).fingerprint != whole
    assert load_backbone(str(copied), layers=2).fingerprint == cut, "the third layer is not in use"


@pytest.mark.parametrize("layers", [0, 4])
def test_impossible_number_of_layers(llama: str, layers: int) -> None:
    with pytest.raises(ModelError, match=r"has 3 layers(.|\n)*between 1 and 3"):
        load_backbone(llama, layers=layers)


def test_encoders_are_refused(bert: str) -> None:
    with pytest.raises(ModelError, match="it is an encoder"):
        load_backbone(bert)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text('{"model_type": "unheard-of"}'), "cannot be read"),
        (
            lambda f: save_file(
                {"model.norm.weight": torch.ones(32)}, f / "model.safetensors", metadata={"format": "pt"}
            ),
            "incomplete",
        ),
    ],
)
def test_damaged_folders(copied: Path, damage: object, message: str) -> None:
    damage(copied)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        load_backbone(str(copied))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_backbone(name)


def test_unknown_id_without_network_fails_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMD4REC_OFFLINE")
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"does not answer(.|\n)*HuggingFaceTB/SmolLM2-135M"):
        load_backbone("nobody/no-such-model")
    assert time.monotonic() - start < 5


def test_the_local_hugging_face_cache_needs_no_network(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub/models--some--model"
    shutil.copytree(llama, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_backbone("some/model")
    assert loaded.fingerprint == load_backbone(llama).fingerprint
    assert "some/model at aaaa" in loaded.origin


def test_packaged_id_offline_names_the_file_to_provide() -> None:
    with pytest.raises(FetchError, match=r"LLMD4REC_OFFLINE(.|\n)*Q4_1\.gguf"):
        load_backbone("HuggingFaceTB/SmolLM2-135M")


def test_gguf_is_converted_once_and_exactly(
    gguf_file: Path, tiny_llama: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_backbone(str(gguf_file))
    converted = list((gguf_file.parent / "cache/models").iterdir())
    stamp = (converted[0] / "model.safetensors").stat().st_mtime_ns
    assert load_backbone(str(gguf_file), layers=1).layers == 1
    assert load_backbone(str(gguf_file.parent), gguf_file=gguf_file.name).fingerprint == loaded.fingerprint
    assert (converted[0] / "model.safetensors").stat().st_mtime_ns == stamp
    assert capfd.readouterr() == ("", "")
    assert "GGUF" in loaded.origin
    inputs = torch.randn(1, 6, 32)
    with torch.no_grad():
        expected = tiny_llama.model(inputs_embeds=inputs).last_hidden_state
        torch.testing.assert_close(loaded.model(inputs_embeds=inputs).last_hidden_state, expected)


def test_bad_gguf_files(gguf_file: Path) -> None:
    cut = gguf_file.with_name("cut.gguf")
    cut.write_bytes(gguf_file.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be read as a GGUF"):
        load_backbone(str(cut))
    cut.write_bytes(b"PK\3\4" + b"x" * 100)
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_backbone(str(cut))
    with pytest.raises(ModelError, match="no GGUF file"):
        load_backbone(str(gguf_file.with_name("absent.gguf")))


@pytest.mark.parametrize(("kind", "linears"), [("llama", 7), ("gpt2", 4)])
def test_lora_adapts_every_linear_and_starts_at_zero(kind: str, linears: int, request: pytest.FixtureRequest) -> None:
    backbone = load_backbone(request.getfixturevalue(kind), layers=2)
    inputs = torch.randn(2, 5, 32)
    with torch.no_grad():
        before = backbone.model(inputs_embeds=inputs).last_hidden_state
        add_lora(backbone, LoRA(r=4, alpha=8), seed=3)
        torch.testing.assert_close(backbone.model(inputs_embeds=inputs).last_hidden_state, before)
    trained = trainable_state(backbone.model)
    assert len(trained) == 2 * 2 * linears
    assert all("lora_" in name for name in trained)
    backbone.model(inputs_embeds=inputs).last_hidden_state.square().sum().backward()
    ups = [p for n, p in backbone.model.named_parameters() if "lora_B" in n]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)


def test_lora_seed_targets_and_reuse(llama: str) -> None:
    def downs(seed: int) -> torch.Tensor:
        backbone = load_backbone(llama, layers=1)
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        add_lora(backbone, LoRA(targets=("q_proj",)), seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return next(p for n, p in backbone.model.named_parameters() if "lora_A" in n).detach()

    assert torch.equal(downs(1), downs(1))
    assert not torch.equal(downs(1), downs(2))
    backbone = load_backbone(llama, layers=1)
    with pytest.raises(ModelError, match=r"named c_attn(.|\n)*q_proj"):
        add_lora(backbone, LoRA(targets=("c_attn",)), 0)
    add_lora(backbone, LoRA(), 0)
    with pytest.raises(ModelError, match="already"):
        add_lora(backbone, LoRA(), 0)


def test_a_configurations_own_dropout_is_off(gpt2: str) -> None:
    """Dropout is set by this package's settings alone; GPT-2 brings .1 in three places."""
    backbone = load_backbone(gpt2)
    tokens = torch.randn(1, 5, backbone.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        still = backbone.model.eval()(inputs_embeds=tokens).last_hidden_state
        training = backbone.model.train()(inputs_embeds=tokens).last_hidden_state
    assert torch.equal(still, training)


def test_random_weights_are_those_of_the_models_own_kind(tmp_path: Path) -> None:
    """Gemma multiplies by 1 + weight behind its norms: there a norm's weight begins at zero."""
    config = GemmaConfig(
        vocab_size=len(WORDS) + 2, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.05,
    )  # fmt: skip
    model = GemmaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    backbone = load_backbone(save(tmp_path / "gemma", model))
    forget_pretraining(backbone)
    weights = dict(backbone.model.named_parameters())
    for name, weight in weights.items():
        if "norm" in name:
            assert torch.equal(weight, torch.zeros_like(weight)), name
        else:
            assert 0.03 < weight.std() < 0.07, name
            assert abs(weight.mean()) < 0.02, name


def test_auto_layers() -> None:
    assert resolve_layers("auto", "cpu") == 2
    assert resolve_layers("auto", "cuda:0") is None
    assert resolve_layers(7, "cpu") == 7


@pytest.mark.slow
def test_smollm2_answers() -> None:
    """The real weights, from wherever they can be had, predict the capital of France."""
    try:
        backbone = load_backbone("HuggingFaceTB/SmolLM2-135M")
    except (ModelError, FetchError) as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error.what}")
    tokens = backbone.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        state = backbone.model(input_ids=tokens).last_hidden_state[0, -1]
    # The model ties its token head to its token embeddings.
    best = (backbone.model.embed_tokens.weight @ state).argmax()  # type: ignore[union-attr]
    assert backbone.tokenizer.decode([int(best)]).strip() == "Paris"
    assert backbone.total_layers == 30
