"""Looks at a group's units while networks run: several networks in step, nothing kept longer than it is needed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from raylth.core.graph import trace
from raylth.core.modes import in_mode
from raylth.core.permutation.spec import Site

__all__ = ["Observer", "rows"]


class Observer:
    """Several networks of one architecture that run node by node, all in step, and show the units of every site.

    A site's output is shown as soon as every network has it, before anything overwrites it in place, and is freed when the
    graph needs it no more; no network keeps more than one forward pass of inference does.
    Raises ValueError when the networks are of different architectures, or not of the one that the sites belong to.
    """

    def __init__(self, models: Sequence[nn.Module], sites: Sequence[Site]) -> None:
        self.traced = [trace(model) for model in models]
        self.nodes = [list(traced.graph.nodes) for traced in self.traced]
        first = [(node.op, node.target) for node in self.nodes[0]]
        if any([(node.op, node.target) for node in nodes] != first for nodes in self.nodes[1:]):
            raise ValueError("the networks are of different architectures: their traced graphs differ")
        names = {node.name: place for place, node in enumerate(self.nodes[0])}
        self.sites: dict[int, list[int]] = {}  # place in the graph -> which sites
        for number, site in enumerate(sites):
            if site.node not in names:
                raise ValueError(f"the network has no node {site.node!r}: the spec was derived from another architecture")
            self.sites.setdefault(names[site.node], []).append(number)
        self.last = max(self.sites, default=-1)

    @torch.inference_mode()
    def run(self, x: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield (site's number, its node's output in each network) for one batch, in the graph's order, in eval mode.

        Nothing behind the last site is computed.
        """
        interpreters = [fx.Interpreter(traced) for traced in self.traced]
        for interpreter in interpreters:
            interpreter.args_iter = iter([x])
        with in_mode(*self.traced, training=False):
            for place in range(self.last + 1):
                outputs = []
                for interpreter, nodes in zip(interpreters, self.nodes, strict=True):
                    interpreter.env[nodes[place]] = interpreter.run_node(nodes[place])
                    outputs.append(interpreter.env[nodes[place]])
                for number in self.sites.get(place, ()):
                    yield number, tuple(outputs)
                for interpreter, nodes in zip(interpreters, self.nodes, strict=True):
                    for unused in interpreter.user_to_last_uses.get(nodes[place], ()):
                        del interpreter.env[unused]


def rows(output: Tensor, site: Site) -> Tensor:
    """Return a site's units as rows (n, units * block): its axis moved last, all samples and positions in front."""
    if output.ndim > 2 or site.axis != output.ndim - 1:
        output = output.movedim(site.axis, -1).flatten(0, -2)
    return output if output.shape[1] == site.length else output[:, site.start : site.start + site.length]
