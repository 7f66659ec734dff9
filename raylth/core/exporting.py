"""A network as a graph of ATen operations, by torch.export: branches decided, modules inlined, defaults bound."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raylth.core.graph import UnknownOperation, place_of
from raylth.core.modes import in_mode
from raylth.core.precision import same_precision

__all__ = ["export"]

BRANCHES = ("GuardOnDataDependentSymNode", "UserError: Could not guard on data-dependent")


def export(model: nn.Module, example_input: Tensor, *, training: bool = False) -> ExportedProgram:
    """Return the operations that `model` computes on inputs of the shape of `example_input`, in evaluation or in training.

    The program has the network's own tensors. Raises UnknownOperation, with the source line, for a network whose course
    depends on the data.
    """
    with in_mode(model, training=training), same_precision(), _quiet():
        try:
            return torch.export.export(model, (example_input,), strict=False)
        except Exception as error:  # of the network's own code, which may do anything
            what = " ".join(f"{type(error).__name__}: {error}".split("\n\n")[0].split())
            if what.startswith(BRANCHES):
                what = "control flow that depends on the data"
            raise UnknownOperation(f"{type(model).__name__} cannot be exported: {what}{place_of(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and pages of advice away: the error is one line."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # it prints the graph, too
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
