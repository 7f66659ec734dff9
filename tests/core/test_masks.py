import pytest
import torch

from raylth.core.masks import (
    MaskBroken,
    apply_mask,
    check_mask,
    full_mask,
    mask_sparsity,
    model_sparsity,
    prunable_names,
    shuffle_mask,
)
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude


def resnet(width: float = 1):
    return init_model(0, "resnet20", width=width, num_classes=10, in_shape=(3, 32, 32))


def test_shortcuts_biases_and_norms_are_not_prunable():
    names = prunable_names(resnet())
    assert len(names) == 20  # 19 convolutions on the main path and the linear layer
    assert not [name for name in names if "shortcut" in name or "bn" in name or "bias" in name]
    assert len(prunable_names(resnet(), prune_shortcuts=True)) == 22


def test_97_percent_of_the_prunable_is_88_9_percent_of_a_resnet20():
    model = resnet()
    mask = full_mask(model)
    total = sum(alive.numel() for alive in mask.values())
    pruned = prune_global_magnitude(model.state_dict(), mask, count=round(0.97 * total))
    assert mask_sparsity(pruned) == pytest.approx(0.97, abs=1e-5)
    assert model_sparsity(model, pruned) == pytest.approx(0.889, abs=1e-3)  # design.md 2.6


def test_apply_and_check():
    state = {"w": torch.tensor([1.0, float("nan"), 3.0]), "b": torch.ones(1)}
    mask = {"w": torch.tensor([True, False, True])}
    with pytest.raises(MaskBroken, match="w: 1 of 1"):
        check_mask(state, mask)
    masked = apply_mask(state, mask)
    check_mask(masked, mask)
    assert masked["w"].tolist() == [1.0, 0.0, 3.0]
    assert state["w"].isnan().any(), "the argument was changed"


def test_shuffle_keeps_the_density_of_each_layer_and_moves_the_places():
    model = resnet(0.25)
    mask = prune_global_magnitude(model.state_dict(), full_mask(model), fraction=0.5)
    shuffled = shuffle_mask(mask, seed=1)
    assert {n: int(m.sum()) for n, m in mask.items()} == {n: int(m.sum()) for n, m in shuffled.items()}
    assert any(not torch.equal(mask[n], shuffled[n]) for n in mask)
    assert all(torch.equal(shuffled[n], again) for n, again in shuffle_mask(mask, seed=1).items())
