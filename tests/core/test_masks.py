import pytest
import torch
from torch import nn

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
from raylth.core.models import build_shapes, init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.core.tensors import tied_names
from tests.core import own_networks as own


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
    assert model_sparsity(model, pruned) == pytest.approx(0.889, abs=1e-3)


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


class Block(nn.Module):
    """A residual block whose shortcut has a name of its own, in any of the ways in which blocks are written."""

    def __init__(self, kind, name):
        super().__init__()
        self.kind, self.name = kind, name
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4 if kind == "before" else 8), nn.ReLU()
        way = [nn.AvgPool2d(1), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)] if kind == "pooled" else [nn.Conv2d(4, 8, 1)]
        self.add_module(name, nn.Sequential(*way))

    def forward(self, x):
        shortcut = getattr(self, self.name)
        if self.kind == "before":  # pre-activation, which both ways share
            x = self.act(self.norm(x))
            return self.conv2(self.act(self.conv1(x))) + shortcut(x)
        y = self.conv2(torch.relu(self.norm(self.conv1(x))))
        if self.kind == "gated":
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        if self.kind == "in place":
            y += shortcut(x)
            return y
        return torch.add(shortcut(x), y) if self.kind == "reversed" else self.act(y + shortcut(x))


@pytest.mark.parametrize("kind", ["plain", "before", "pooled", "gated", "in place", "reversed"])
@pytest.mark.parametrize("name", ["proj", "skip", "convShortcut", "shortcut", "conv3"])
def test_shortcuts_are_found_by_what_they_do_whatever_they_are_called(kind, name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Block(kind, name), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    place = 1 if kind == "pooled" else 0
    names = prunable_names(model)
    assert set(prunable_names(model, prune_shortcuts=True)) - set(names) == {f"2.{name}.{place}.weight"}
    assert names == ("0.weight", "2.conv1.weight", "2.conv2.weight", "5.weight")


def test_what_is_no_shortcut_is_pruned_even_if_it_is_called_so():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.downsample, self.shortcut, self.head = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 1), nn.Linear(16, 5)

        def forward(self, x):
            x = torch.relu(self.downsample(x))
            x = x + torch.relu(self.shortcut(x))  # a branch
            return self.head(x.flatten(1))

    assert prunable_names(Plain()) == ("downsample.weight", "shortcut.weight", "head.weight")


def test_names_decide_where_a_network_cannot_be_traced():
    class Branching(Block):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    assert prunable_names(Branching("plain", "shortcut")) == ("conv1.weight", "conv2.weight")
    assert prunable_names(Branching("plain", "proj")) == ("conv1.weight", "conv2.weight", "proj.0.weight")


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("torchvision:resnet18", {f"layer{n}.0.downsample.0" for n in (2, 3, 4)}),
        ("torchvision:regnet_x_400mf", {f"trunk_output.block{n}.block{n}-0.proj.0" for n in (1, 2, 3, 4)}),
        ("torchvision:regnet_y_400mf", {f"trunk_output.block{n}.block{n}-0.proj.0" for n in (1, 2, 3, 4)}),
        ("torchvision:densenet121", set()),
        ("torchvision:mobilenet_v3_small", set()),
        ("torchvision:convnext_tiny", set()),
        ("timm:resnetv2_50", {f"stages.{n}.blocks.0.downsample.conv" for n in (0, 1, 2, 3)}),
        ("timm:nf_resnet50", {f"stages.{n}.0.downsample.conv" for n in (0, 1, 2, 3)}),
    ],
)
def test_the_shortcuts_of_networks_of_libraries(name, shortcuts):
    model = build_shapes(name, num_classes=10, in_shape=(3, 64, 64))
    left_out = set(prunable_names(model, prune_shortcuts=True)) - set(prunable_names(model))
    assert left_out == {f"{layer}.weight" for layer in shortcuts}


@pytest.mark.parametrize("make", [own.SharedModule, own.SharedWeight, own.SharedAcrossList])
def test_a_weight_that_layers_share_stays_dense(make):
    model = make()
    names = prunable_names(model)
    assert names
    assert not {
        name for name in names if any(model.get_parameter(name) is model.get_parameter(other) for other in tied_names(model))
    }
    pruned = apply_mask(
        model.state_dict(), {name: torch.zeros_like(model.state_dict()[name], dtype=torch.bool) for name in names}
    )
    model.load_state_dict(pruned)
    check_mask(model.state_dict(), {name: pruned[name] != 0 for name in names})


def test_the_projections_of_attention_are_pruned_and_embeddings_and_norms_are_not():
    one, other = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    model = nn.ModuleDict({"one": one, "other": other, "norm": nn.LayerNorm(8), "embed": nn.Embedding(5, 8)})
    assert prunable_names(model, prune_shortcuts=True) == (
        "one.in_proj_weight", "one.out_proj.weight",
        "other.q_proj_weight", "other.k_proj_weight", "other.v_proj_weight", "other.out_proj.weight",
    )  # fmt: skip


@pytest.mark.parametrize("make", [own.SharedMemory, own.SharedView, own.WeightNorm, own.Pruned])
def test_tensors_that_cannot_be_pruned_one_by_one_are_refused(make):
    with pytest.raises(ValueError, match=r"one tensor under two names|parametrized|computed from other tensors"):
        full_mask(make())
