"""A network's operations as data, which a store can keep: importing torch's exporter takes seconds, running them none."""

import functools
import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from raylth.core.exporting import export
from raylth.core.tensors import tied_names

__all__ = ["Call", "Program", "Run", "architecture_of", "program_of"]

TYPES = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}  # of torch's named constants
NO_FLOATS = {str(value): value for value in (float("inf"), float("-inf"), float("nan"))}  # that JSON does not have


@dataclass(frozen=True)
class Call:
    """An operation on the values of others.

    Arguments are JSON-like: numbers, words and lists as they are, anything else as a mapping of one entry: `{"node": name}`,
    `{"per_batch": [a, b]}` for a + b * (size of the batch), `{"dtype": "float32"}`, `{"device": None}` for the network's.
    """

    name: str  # of the node
    operation: str  # such as "aten.conv2d.default", or "getitem"
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """What a network computes in evaluation, operation by operation, on batches of one shape of sample."""

    architecture: str  # `architecture_of` the network
    sample: tuple[int, ...]  # the shape of one sample
    batch: int | None  # the size of batch that it is for; None: any
    inputs: tuple[tuple[str, str | None], ...]  # node -> the network's tensor; None: the batch
    calls: tuple[Call, ...]
    constants: Mapping[str, Any]  # node -> a tensor's type and values, as lists

    def fits(self, model: nn.Module, x: Tensor) -> bool:
        """Whether it is what `model` computes on a batch `x`."""
        shape = tuple(x.shape)
        return shape[1:] == self.sample and self.batch in (None, shape[0]) and self.architecture == architecture_of(model)


def program_of(model: nn.Module, x: Tensor, exported: ExportedProgram | None = None) -> Program:
    """Return what `model` computes in evaluation on batches like `x` (B, *in_shape), on the network's device.

    `exported` is what `export` returned for it, if that is known. The program is for any size of batch where the one for
    B + 1 differs in nothing but numbers that grow with B. Raises UnknownOperation as `export` does.
    """
    exported = export(model, x) if exported is None else exported
    encoder = _Encoder(exported, next((each.device for each in model.parameters()), x.device))
    calls, batch = encoder.calls(), len(x)
    larger = export(model, torch.cat([x, x[:1]]))
    found = _in_terms_of_batch(calls, _Encoder(larger, encoder.device).calls(), batch)
    return Program(
        architecture_of(model),
        tuple(x.shape[1:]),
        batch if found is None else None,
        encoder.inputs(),
        tuple(calls if found is None else found),
        encoder.constants(),
    )


def architecture_of(model: nn.Module) -> str:
    """Return a hash of all that distinguishes a network from others but its values: modules, plain attributes, tensors."""
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        kind = type(module)
        own = {name: value for name, value in sorted(vars(module).items()) if _is_plain(value) and name != "training"}
        functions = [getattr(value, "__qualname__", "") for _, value in sorted(vars(module).items()) if callable(value)]
        digest.update(repr((path, kind.__module__, kind.__qualname__, own, functions)).encode())
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
    digest.update(repr(sorted(tied_names(model).items())).encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):  # an empty one may become a cache of tensors
        return bool(value) and all(map(_is_plain, (*value, *value.values())))
    return value is None or isinstance(value, bool | int | float | str)


class _Encoder:
    """Writes an exported program as data."""

    def __init__(self, exported: ExportedProgram, device: torch.device) -> None:
        self.exported, self.device = exported, device
        self.specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}

    def inputs(self) -> tuple[tuple[str, str | None], ...]:
        """Return which node stands for which tensor of the network, and which for the batch."""
        return tuple(
            (name, None if spec.kind == InputKind.USER_INPUT else str(spec.target))
            for name, spec in self.specs.items()
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.USER_INPUT)
        )

    def constants(self) -> dict[str, Any]:
        """Return the tensors that the forward pass makes of plain numbers."""
        found = {}
        for name, spec in self.specs.items():
            if spec.kind == InputKind.CONSTANT_TENSOR:
                tensor = self.exported.constants[spec.target]
                found[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "values": tensor.tolist()}
        return found

    def calls(self) -> list[Call]:
        """Return the operations, in order."""
        return [
            Call(
                node.name,
                str(getattr(node.target, "__name__", "")) if node.target is operator.getitem else str(node.target),
                tuple(map(self._value, node.args)),
                {name: self._value(value) for name, value in node.kwargs.items()},
            )
            for node in self.exported.graph.nodes
            if node.op == "call_function"
        ]

    def _value(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, tuple | list):
            return [self._value(each) for each in value]
        if isinstance(value, torch.device):
            return {"device": None if value.type == self.device.type else str(value)}
        for name, kind in TYPES.items():
            if isinstance(value, kind):
                return {name: str(value).removeprefix("torch.")}
        return {"float": str(value)} if isinstance(value, float) and str(value) in NO_FLOATS else value


def _in_terms_of_batch(calls: Sequence[Call], larger: Sequence[Call], batch: int) -> list[Call] | None:
    """Write numbers that differ between a batch of `batch` samples and one more in terms of that; None if more differs."""
    if [(call.name, call.operation) for call in calls] != [(call.name, call.operation) for call in larger]:
        return None
    try:
        return [_merged(*pair, batch) for pair in zip(calls, larger, strict=True)]
    except ValueError:
        return None


def _merged(one: Call, other: Call, batch: int) -> Call:
    args = _merge(list(one.args), list(other.args), batch)
    return Call(one.name, one.operation, tuple(args), _merge(dict(one.kwargs), dict(other.kwargs), batch))


def _merge(one: Any, other: Any, batch: int) -> Any:
    """Return an argument of both, ValueError where they differ in more than numbers."""
    if type(one) is not type(other):
        raise ValueError
    if isinstance(one, list):
        return [_merge(*pair, batch) for pair in zip(one, other, strict=True)]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            raise ValueError
        return {name: _merge(one[name], other[name], batch) for name in one}
    if one == other:
        return one
    if type(one) is not int:
        raise ValueError
    each = other - one
    return {"per_batch": [one - each * batch, each]}


class Run:
    """A program as one network computes it on one batch: step by step, each value kept until it is needed no more."""

    def __init__(self, program: Program, model: nn.Module) -> None:
        first = next(iter((*model.parameters(), *model.buffers())), torch.empty(0))
        self.program, self.device, self.dtype = program, first.device, first.dtype
        self.tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        self.steps = [(call, _function(call.operation)) for call in program.calls]
        self.values: dict[str, Any] = {}
        self.batch = 0
        last = {name: place for place, call in enumerate(program.calls) for name in _read((call.args, dict(call.kwargs)))}
        self.unused: dict[int, list[str]] = {}  # place -> what is not needed behind it
        for name, place in last.items():
            self.unused.setdefault(place, []).append(name)

    def begin(self, x: Tensor) -> None:
        """Take a batch, of any device and precision."""
        x = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        self.batch = len(x)
        self.values = {node: x if name is None else self.tensors[name] for node, name in self.program.inputs}
        for node, constant in self.program.constants.items():
            self.values[node] = torch.tensor(constant["values"], dtype=getattr(torch, constant["dtype"]), device=self.device)

    def step(self, place: int) -> Any:
        """Compute the value of the call at a place."""
        call, function = self.steps[place]
        kwargs = {name: self._value(value) for name, value in call.kwargs.items()}
        value = self.values[call.name] = function(*map(self._value, call.args), **kwargs)
        return value

    def free(self, place: int) -> None:
        """Free the values that are not needed after a place."""
        for name in self.unused.get(place, ()):
            del self.values[name]

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(each) for each in value]
        if not isinstance(value, dict):
            return value
        ((kind, what),) = value.items()
        if kind == "node":
            return self.values[what]
        if kind == "per_batch":
            return int(what[0] + what[1] * self.batch)
        if kind == "device":
            return self.device if what is None else torch.device(what)
        return NO_FLOATS[what] if kind == "float" else getattr(torch, what)


@functools.cache
def _function(operation: str) -> Callable[..., Any]:
    if operation == "getitem":
        return operator.getitem
    found: Any = torch.ops
    for name in operation.split("."):
        found = getattr(found, name)
    return found


def _read(value: Any) -> list[str]:
    """Return the nodes that arguments name."""
    if isinstance(value, list | tuple):
        return [name for each in value for name in _read(each)]
    if isinstance(value, dict):
        return [value["node"]] if list(value) == ["node"] else [name for each in value.values() for name in _read(each)]
    return []
