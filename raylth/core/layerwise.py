"""A network run layer by layer over all samples, so that batch norm sees them as one batch, however many there are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.batches import Batches, inputs_of
from raylth.core.batchnorm import reset_bn_stats
from raylth.core.graph import trace
from raylth.core.modes import in_mode
from raylth.core.precision import precision

__all__ = ["reset_and_predict"]

NO_EPS = 1e-12  # added to a variance before its root is taken, and taken off again


@precision("float32")
@torch.no_grad()
def reset_and_predict(model: nn.Module, batches: Batches) -> Tensor:
    """Measure batch norm's statistics anew, in place, and return the outputs that the network then has for the same samples.

    `batches` are network inputs (B, *in_shape), or (inputs, labels) as a DataLoader yields them. The samples count as one
    batch: every layer sees all of them normalised by the statistics that evaluation uses from then on; `reset_bn_stats` of
    one batch and an evaluation give the same in two passes, but for the biased variance that training mode divides by. All
    activations of one layer are held at a time.
    Returns (samples, ...), the outputs in evaluation mode.
    Raises ValueError for no data, UnknownOperation for a network that cannot be traced.
    """
    batches = list(inputs_of(batches, model))
    if not batches:
        raise ValueError("no samples: statistics need at least one batch")
    with in_mode(model, training=False):
        traced = trace(model)
        modules = dict(traced.named_modules())
        read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
        if any(isinstance(module, _BatchNorm) and f"{name}.running_mean" in read for name, module in model.named_modules()):
            return _in_two_passes(model, batches)
        last_user = {read: node for node in traced.graph.nodes for read in node.all_input_nodes}
        values: dict[fx.Node, list[Any]] = {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = batches
                continue
            if node.op == "output":
                return torch.cat(values[node.args[0]])
            module = modules[str(node.target)] if node.op == "call_module" else None
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                _set_statistics(module, values[node.args[0]])
            done = [read for read in node.all_input_nodes if last_user[read] is node]
            values[node] = [_compute(traced, node, module, values, done, number) for number in range(len(batches))]
            for read in done:
                del values[read]
    raise AssertionError("a traced network has an output")


def _in_two_passes(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Do the same where a batch norm with a forward pass of its own is no single node."""
    reset_bn_stats(model, [torch.cat(list(batches))])
    return torch.cat([model(x) for x in batches])


def _compute(
    traced: fx.GraphModule,
    node: fx.Node,
    module: nn.Module | None,
    values: dict[fx.Node, list[Any]],
    done: list[fx.Node],
    number: int,
) -> Any:
    """Compute a node for one batch, and let go of what nobody else reads."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: values[read][number])
    for read in done:
        values[read][number] = None
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    found: Any = traced
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def _set_statistics(module: _BatchNorm, inputs: list[Tensor]) -> None:
    """Set running mean and (unbiased) variance to those of all inputs together; parallel variance of Chan et al. (1979)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for x in inputs:
        rows = x.numel() // x.shape[1]
        _, own, scale = torch.native_batch_norm(x, None, None, None, None, True, 0.0, NO_EPS)
        own, own_squares = own.double(), rows * (scale.double() ** -2 - NO_EPS)
        gap, total = own - mean, count + rows
        squares = squares + own_squares + gap**2 * (count * rows / total)
        mean, count = mean + gap * (rows / total), total
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.copy_(mean)
    module.running_var.copy_(squares / max(count - 1, 1))
