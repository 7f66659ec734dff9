"""Looks at a group's units while networks run: several networks in step, nothing kept longer than it is needed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from raylth.core.permutation.spec import Site
from raylth.core.program import export

__all__ = ["Observer", "rows"]


class Observer:
    """Several networks of one architecture that run operation by operation, all in step, and show the units of every site.

    A site's output is shown as soon as every network has it, before anything overwrites it in place, and is freed when it is
    needed no more; no network keeps more than one forward pass of inference does. Networks may lie on different devices.
    Raises ValueError when the networks are of different architectures, or not of the one that the sites belong to.
    """

    def __init__(self, models: Sequence[nn.Module], sites: Sequence[Site]) -> None:
        self.models, self.sites = list(models), list(sites)
        self.runs: dict[tuple[int, ...], list[_Run]] = {}  # shape of a batch -> how each network computes it

    @torch.inference_mode()
    def run(self, x: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield (site's number, its node's output in each network) for one batch, in the program's order, in eval mode.

        Nothing behind the last site is computed.
        """
        runs = self._runs(x)
        shown: dict[str, list[int]] = {}
        for number, site in enumerate(self.sites):
            shown.setdefault(site.node, []).append(number)
        for run in runs:
            run.begin(x)
        left = set(shown)
        for place, node in enumerate(runs[0].nodes):
            if not left:
                return
            outputs = tuple(run.step(place) for run in runs)
            for number in shown.get(node.name, ()):
                yield number, outputs
            left.discard(node.name)
            for run in runs:
                run.free(place)

    def _runs(self, x: Tensor) -> "list[_Run]":
        shape = tuple(x.shape)
        if shape not in self.runs:
            with torch.inference_mode(False), torch.no_grad():
                runs = [_Run(model, x) for model in self.models]
            first = [(node.name, str(node.target)) for node in runs[0].nodes]
            if any([(node.name, str(node.target)) for node in run.nodes] != first for run in runs[1:]):
                raise ValueError("the networks are of different architectures: their programs differ")
            known = {node.name for node in runs[0].nodes}
            for site in self.sites:
                if site.node not in known:
                    raise ValueError(f"the network has no node {site.node!r}: the spec was derived from another architecture")
            self.runs[shape] = runs
        return self.runs[shape]


class _Run:
    """A network's program, and the values that are needed still."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        first = next(iter(model.parameters()), x)
        self.device, self.dtype = first.device, first.dtype
        self.program = export(model, self._input(x))
        self.nodes = list(self.program.graph.nodes)
        self.interpreter = fx.Interpreter(self.program.graph_module)
        self.tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}

    def _input(self, x: Tensor) -> Tensor:
        """Return the input on the network's device, in its precision."""
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def begin(self, x: Tensor) -> None:
        """Give the program its inputs."""
        self.interpreter.env = {}
        values = [_value(spec, self.program, self.tensors, self._input(x)) for spec in _inputs(self.program)]
        self.interpreter.args_iter = iter(values)

    def step(self, place: int) -> Any:
        """Compute a node's value."""
        node = self.nodes[place]
        value = self.interpreter.env[node] = self.interpreter.run_node(node)
        return value

    def free(self, place: int) -> None:
        """Free the values that are not needed after a node."""
        for unused in self.interpreter.user_to_last_uses.get(self.nodes[place], ()):
            del self.interpreter.env[unused]


def _inputs(program: ExportedProgram) -> list[Any]:
    return list(program.graph_signature.input_specs)


def _value(spec: Any, program: ExportedProgram, tensors: dict[str, Tensor], x: Tensor) -> Any:
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return tensors[spec.target]
    return x if spec.kind == InputKind.USER_INPUT else program.constants[spec.target]


def rows(output: Tensor, site: Site) -> Tensor:
    """Return a site's units as rows (n, entries): its axis moved last, all samples and positions in front, unit by unit."""
    if output.ndim > 2 or site.axis != output.ndim - 1:
        output = output.movedim(site.axis, -1).flatten(0, -2)
    entries = site.part.entries().flatten()
    if torch.equal(entries, torch.arange(output.shape[1])):
        return output
    if torch.equal(entries, torch.arange(int(entries[0]), int(entries[0]) + len(entries))):
        return output[:, int(entries[0]) : int(entries[0]) + len(entries)]
    return output.index_select(1, entries.to(output.device))
