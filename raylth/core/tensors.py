"""Which networks' tensors can be permuted and pruned: each is a parameter as it stands, and tied ones are known."""

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["check_tensors", "computed_tensor", "shared_tensors", "tied_names"]

UNTIE = "masks and permutations change each by itself, and a state dict holds both: give each a tensor of its own"
PLAIN = "make it plain (parametrize.remove_parametrizations, prune.remove, remove_weight_norm, or without torch.compile)"


def check_tensors(model: nn.Module, *, tied: bool = True) -> None:
    """Raise ValueError, with the names, for a network with a tensor that has no shape, is computed, or overlaps another.

    One whole tensor under several names (tied weights) is allowed unless `tied` is False.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet (a lazy layer): give the layer its sizes")
    if (names := shared_tensors(model, tied=not tied)) is not None:
        raise ValueError(f"{names[0]!r} and {names[1]!r} are one tensor under two names: {UNTIE}")
    if (found := computed_tensor(model)) is not None:
        raise ValueError(f"{found}: {PLAIN}")


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the further names of parameters and buffers that have several (tied weights), each with the first of them."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            first.setdefault(id(tensor), name)
    held = model.state_dict(keep_vars=True).items()
    return {name: first[id(tensor)] for name, tensor in held if first.get(id(tensor), name) != name}


def shared_tensors(model: nn.Module, *, tied: bool = True) -> tuple[str, str] | None:
    """Return two names of a network's parameters and buffers that share memory; None where all have their own.

    With `tied` two names of one whole tensor are such; without, only tensors that overlap otherwise.
    """
    passed_over = set() if tied else set(tied_names(model))
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.numel() == 0 or name in passed_over:
            continue
        first = int(tensor.storage_offset()) * tensor.element_size()
        extent = sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        storage = tensor.untyped_storage()._cdata  # the same for all views, also on the meta device
        spans.setdefault(storage, []).append((first, first + extent * tensor.element_size(), name))
    for found in spans.values():
        order = {name: place for place, (_, _, name) in enumerate(found)}
        furthest = (0, "")
        for first, end, name in sorted(found):
            if first < furthest[0]:
                one, other = sorted((furthest[1], name), key=order.__getitem__)
                return one, other
            furthest = max(furthest, (end, name))
    return None


def computed_tensor(model: nn.Module) -> str | None:
    """Say which weight is computed from others whenever it is read, and what the network is wrapped in; None for neither."""
    for path, module in model.named_modules():
        if type(module).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel") or _is_scripted(module):
            return f"{path or 'the network'} is wrapped in a {type(module).__name__}"
        prefix = f"{path}." if path else ""
        if isinstance(parametrized := getattr(module, "parametrizations", None), nn.ModuleDict):
            return f"{prefix}{next(iter(parametrized))} is parametrized: it is computed from other tensors"
        held = (*module._parameters, *module._buffers)
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and any(other.startswith(f"{name}_") for other in held):
                return f"{prefix}{name} is computed from other tensors (pruned by torch.nn.utils.prune, or normalised)"
    return None


def _is_scripted(module: nn.Module) -> bool:
    return any(base.__name__ == "ScriptModule" for base in type(module).__mro__)
