"""Looks at a group's units while networks run: several networks in step, nothing kept longer than it is needed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from raylth.core.permutation.spec import Site
from raylth.core.program import Program, Run, program_of

__all__ = ["Observer", "rows"]


class Observer:
    """Several networks of one architecture that run operation by operation, all in step, and show the units of every site.

    A site's output is shown as soon as every network has it, before anything overwrites it in place, and is freed when it is
    needed no more; no network keeps more than one forward pass of inference does. Networks may lie on different devices.
    Raises ValueError when the networks are of different architectures, or not of the one that the sites belong to.
    """

    def __init__(self, models: Sequence[nn.Module], sites: Sequence[Site], program: Program | None = None) -> None:
        """`program` is what networks of this architecture compute, if known; where it does not fit it is made anew."""
        self.models, self.sites, self.program = list(models), list(sites), program
        self.runs: dict[tuple[int, ...], list[Run]] = {}  # shape of a batch -> how each network computes it

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
        for place, call in enumerate(runs[0].program.calls):
            if not left:
                return
            outputs = tuple(run.step(place) for run in runs)
            for number in shown.get(call.name, ()):
                yield number, outputs
            left.discard(call.name)
            for run in runs:
                run.free(place)

    def _runs(self, x: Tensor) -> list[Run]:
        shape = tuple(x.shape)
        if shape not in self.runs:
            programs = [self._program(model, x) for model in self.models]
            first = [(call.name, call.operation) for call in programs[0].calls]
            if any([(call.name, call.operation) for call in program.calls] != first for program in programs[1:]):
                raise ValueError("the networks are of different architectures: their programs differ")
            known = {name for name, _ in first}
            for site in self.sites:
                if site.node not in known:
                    raise ValueError(f"the network has no node {site.node!r}: the spec was derived from another architecture")
            self.runs[shape] = [Run(program, model) for program, model in zip(programs, self.models, strict=True)]
        return self.runs[shape]

    def _program(self, model: nn.Module, x: Tensor) -> Program:
        """Return the program for a network and a batch: the given one or the last one made, where that fits."""
        if self.program is None or not self.program.fits(model, x):
            first = next(iter(model.parameters()), x)
            with torch.inference_mode(False), torch.no_grad():
                x = x.to(first.device, first.dtype if x.is_floating_point() else x.dtype).clone()
                self.program = program_of(model, x)
        return self.program


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
