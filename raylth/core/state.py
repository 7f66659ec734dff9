"""State dicts that have lost what torch keeps beside their tensors: each module's version, which some modules ask for."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["like", "load_tensors"]


def like(tensors: Mapping[str, Tensor], *states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a state dict that loads wherever the first of `states` that knows its modules' versions does.

    Nothing is copied. Where none of them knows any, it is a plain dictionary.
    """
    metadata = next((found for state in states if (found := getattr(state, "_metadata", None)) is not None), None)
    if metadata is None:
        return dict(tensors)
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    state._metadata = metadata.copy()  # type: ignore[attr-defined]
    return state


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load named tensors of this very architecture, as a store, a file or a pack has them; RuntimeError for any other's.

    Their modules' versions, where they do not say them, are the network's own.
    """
    network.load_state_dict(like(tensors, tensors, network.state_dict()))
