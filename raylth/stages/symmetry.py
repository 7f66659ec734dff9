"""The symmetry of a sweep's networks, derived once for each architecture in a process."""

from torch import nn

from raylth.core.permutation import PermutationSpec, derive_spec
from raylth.stages.context import Context
from raylth.stages.settings import NetworkSettings

__all__ = ["symmetry_of"]

_known: dict[tuple[NetworkSettings, tuple[int, ...]], PermutationSpec] = {}


def symmetry_of(model: NetworkSettings, network: nn.Module, context: Context) -> PermutationSpec:
    """Return the permutation groups of `network`, which was built by the settings `model`.

    Raises UnknownOperation and ValueError as `derive_spec` does.
    """
    example = context.train.probe(2)
    key = (model, tuple(example.shape))
    if key not in _known:
        _known[key] = derive_spec(network, example)
    return _known[key]
