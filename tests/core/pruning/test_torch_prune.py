"""Masks that go to torch.nn.utils.prune and come back."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from raylth.core.masks import apply_mask, full_mask
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.core.pruning.torch_prune import from_torch_prune, to_torch_prune

SETTINGS = {"name": "resnet20", "width": 0.25, "num_classes": 10, "in_shape": (3, 8, 8)}


def pruned_network():
    model = init_model(0, **SETTINGS)
    return model, prune_global_magnitude(model.state_dict(), full_mask(model), fraction=0.7)


def test_our_mask_loads_into_a_network_that_torch_prunes_and_computes_the_same():
    model, mask = pruned_network()
    theirs = init_model(1, **SETTINGS)
    for name in mask:
        prune.identity(theirs.get_submodule(name.removesuffix(".weight")), "weight")
    theirs.load_state_dict(to_torch_prune(model.state_dict(), mask))
    model.load_state_dict(apply_mask(model.state_dict(), mask))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), model.eval()(x))


def test_a_network_that_torch_pruned_is_read_with_its_mask():
    model = init_model(0, **SETTINGS)
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.6)
    state, mask = from_torch_prune(model.state_dict())
    ours = init_model(1, **SETTINGS)
    ours.load_state_dict(state)
    assert sum(int((~alive).sum()) for alive in mask.values()) == round(0.6 * sum(m.weight.numel() for m, _ in layers))
    assert all(bool((state[name][~alive] == 0).all()) for name, alive in mask.items())
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), model.eval()(x))


def test_there_and_back_is_the_same():
    model, mask = pruned_network()
    state = apply_mask(model.state_dict(), mask)
    again, mask_again = from_torch_prune(to_torch_prune(state, mask))
    assert list(mask_again) == list(mask)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(mask_again[name], alive) for name, alive in mask.items())


def test_bad_input_is_named():
    w = torch.ones(2)
    for state, message in (
        ({"w": w}, "no mask"),
        ({"w_mask": w}, "w_mask has no w_orig"),
        ({"w_orig": w, "w_mask": 0.5 * w}, "w_mask holds values other than 0 and 1"),
        ({"w_orig": w, "w_mask": torch.ones(3)}, "size|shape"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            from_torch_prune(state)
    with pytest.raises(ValueError, match="'v', which the network does not have"):
        to_torch_prune({"w": w}, {"v": w})
    with pytest.raises(ValueError, match=r"the mask has shape \(3,\), the weight \(2,\)"):
        to_torch_prune({"w": w}, {"w": torch.ones(3)})
