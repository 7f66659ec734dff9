"""What each of torch's operations does to the axes of its tensors. Importing this files all rules."""

from raylth.core.permutation.operations import elementwise, linear, norms, reductions, shapes, spatial

__all__ = ["elementwise", "linear", "norms", "reductions", "shapes", "spatial"]
