"""Named tensors to numpy arrays and back."""

import numpy as np
import torch

__all__ = ["state_arrays", "to_torch"]


def state_arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copy named tensors to numpy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def to_torch(arrays: dict[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """Copy named arrays to a device, once; a view of the object store is read-only and is never aliased."""
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}
