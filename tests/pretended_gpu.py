"""Trains runs on a GPU that is not there; to be run by itself, as it changes what torch is.

    python pretended_gpu.py DATA FOLDER...

Each folder has a settings.json, and is given a `run` and a result.json.

A tensor that is on `pretended` holds its numbers in memory. What a real GPU would refuse is refused: an operation on
tensors of two devices, reading one by NumPy, a file or a loop without a copy. Operations themselves run on the CPU, in
autocast with the dtypes that CUDA's would have. What waits for the device is counted, by the place in the code.

Not covered: kernels, streams, pinned memory, CUDA's random state, and a GRU's own kernel, written out here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
#: Where the host waited for the device: file of the package, line, operation.
waits: Counter[tuple[str, int, str]] = Counter()


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class OnDevice(Tensor):
    """A tensor that says that it is on the device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("pretended", 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        _waits("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees what is made on the device, or brought there, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_COPIES = {aten._to_copy.default, aten.copy_.default}
_LOOKUPS = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


#: How much comes out of these is known when they are done; a real GPU is waited for.
_SIZES = {
    *(aten.nonzero.default, aten.masked_select.default, aten.bincount.default, aten._unique2.default),
    *(aten.unique_dim.default, aten.unique_consecutive.default),
}


def _size_is_unknown(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is aten.index.Tensor:
        return any(isinstance(index, OnDevice) and index.dtype == torch.bool for index in args[1])
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func in _SIZES


def _tensors(values: Any, found: list[Tensor]) -> list[Tensor]:
    """Those among an operation's arguments."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            _tensors(value, found)
    return found


def _each(value: Any, change: Any) -> Any:
    """The same arguments or results with other tensors; much quicker than PyTorch's trees, which know more types."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each(part, change) for part in value])
    return value


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, OnDevice) else tensor


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = _tensors(kwargs.values(), _tensors(args, []))
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if there and func not in _COPIES:
        for tensor in tensors:
            index = func in _LOOKUPS and tensor is not args[0]  # a GPU takes indices from the CPU
            if not isinstance(tensor, OnDevice) and tensor.dim() and not index:
                raise RuntimeError(f"{func}: a tensor of shape {tuple(tensor.shape)} is on the CPU, others are not")
    target = device.type == "pretended" if device is not None else bool(there)
    if func is aten.copy_.default:
        target = isinstance(args[0], OnDevice)
    if func is aten._local_scalar_dense.default or (there and not target):
        _waits(str(func))
        target = False
    if there and _size_is_unknown(func, args, kwargs):
        _waits(str(func))
    more = {name: _each(value, _held) for name, value in kwargs.items()}
    if device is not None and device.type == "pretended":  # `meta` stays what it is
        more["device"] = torch.device("cpu")
    result = func(*_each(args, _held), **more)
    if not target:
        return result
    return _each(result, lambda tensor: there[id(tensor)] if id(tensor) in there else OnDevice(tensor))


def _waits(what: str) -> None:
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/optim/" in name:  # is not fused on this device
            return
        if "/src/llmd4rec/" in name:
            waits[name.split("/src/llmd4rec/")[1], frame.f_lineno, what] += 1
            return
        frame = frame.f_back


# ---- autocast: CUDA's lists of operations, as far as they are used -------------------------------------------------
_LOWER = "linear matmul mm bmm addmm mv baddbmm scaled_dot_product_attention"
_FULL = (
    "exp log log2 log1p softplus layer_norm nll_loss cross_entropy_loss cosine_similarity kl_div mse_loss rsqrt "
    "reciprocal norm.Scalar logsumexp softmax.int log_softmax.int cumsum cumprod sum sum.dim_IntList prod "
    "pow.Tensor_Scalar pow.Tensor_Tensor"
)


def _cast(operation: Any, dtype: torch.dtype | None) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        to = dtype or torch.get_autocast_dtype("pretended")

        def cast(leaf: Any) -> Any:
            wanted = isinstance(leaf, OnDevice) and leaf.is_floating_point() and leaf.dtype != torch.float64
            return leaf.to(to) if wanted else leaf

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _gru(self: nn.GRU, x_BLH: Tensor, state: None = None) -> tuple[Tensor, Tensor]:
    """One layer of it, as its documentation writes it."""
    assert state is None
    assert self.num_layers == 1
    weights: Any = self
    h_BH, states = x_BLH.new_zeros(len(x_BLH), self.hidden_size), []
    for x_BH in x_BLH.unbind(1):
        ir, iz, i_n = nn.functional.linear(x_BH, weights.weight_ih_l0, weights.bias_ih_l0).chunk(3, 1)
        hr, hz, hn = nn.functional.linear(h_BH, weights.weight_hh_l0, weights.bias_hh_l0).chunk(3, 1)
        z = (iz + hz).sigmoid()
        h_BH = (1 - z) * (i_n + (ir + hr).sigmoid() * hn).tanh() + z * h_BH
        states.append(h_BH)
    return torch.stack(states, 1), h_BH


def pretend() -> TorchDispatchMode:
    """Makes torch believe in the device; gives the mode to work in."""
    _setup_privateuseone_for_python_backend("pretended", _Backend())
    everything = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, dtype in ((_LOWER, None), (_FULL, torch.float32)):
        for name in names.split():
            packet, _, overload = name.partition(".")
            casts.impl(name, _cast(getattr(getattr(aten, packet), overload or "default"), dtype))
    torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]  # whose tensors cannot be wrapped
    _device_constructors()  # remembers torch.tensor as it is, for `with torch.device("meta")`
    made = torch.tensor  # fills its storage behind the modes' backs
    torch.tensor = lambda data, device=None, **more: made(data, **more).to(device)
    nn.GRU.forward = _gru  # type: ignore[assignment,method-assign]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _libraries.extend([everything, casts])  # what is registered goes when they do
    return _Everywhere()  # type: ignore[no-untyped-call]


_libraries: list[torch.library.Library] = []


def main() -> None:
    data, *folders = map(Path, sys.argv[1:])
    with pretend():
        try:
            torch.ones(2, device="pretended") + torch.ones(2)
        except RuntimeError as error:
            refused = str(error)
        from settings_of import parse_settings

        from llmd4rec.data.dataset import Dataset
        from llmd4rec.runs.results import score

        dataset = Dataset.load(data)
        for folder in folders:
            waits.clear()
            values = json.loads((folder / "settings.json").read_text())
            run = parse_settings(values).fit(dataset, folder / "run")
            scores = {stage.id: score(run, dataset, stage.id).metrics["ndcg@10"] for stage in run.reported()}
            best = run.recommender().recommend([dataset.item_ids[0]], k=3).items
            result = {
                "refused": refused,
                "scores": scores,
                "best": [item.item_id for item in best],
                "waits": [[*where, times] for where, times in waits.items()],
            }
            (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
