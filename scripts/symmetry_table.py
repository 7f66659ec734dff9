"""Derives the symmetry of networks of torchvision and timm, proves it in float64, and writes the table of docs/networks.md.

    python scripts/symmetry_table.py [NETWORK ...]

Each network is given random affine weights, statistics and heads; a random permutation of all its groups must leave its
function. With names it prints those rows only, and writes nothing.
"""

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raylth.core.permutation import derive_spec, random_permutation

PAGE = Path(__file__).resolve().parents[1] / "docs/networks.md"
SIDE = 64  # pixels, but for networks that need more
LARGER = {
    "vgg11": 224, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224, "mixer_s32_224": 224, "resmlp_12_224": 224,
    "swin_tiny_patch4_window7_224": 224, "coatnet_nano_rw_224": 224, "levit_128s": 224, "inception_v3": 128,
    "xception41": 128, "torchvision:vit_b_16": 224, "torchvision:swin_t": 64, "torchvision:inception_v3": 299,
}  # fmt: skip
NETWORKS = (
    "resnet18", "resnet50", "resnext50_32x4d", "resnet26d", "seresnet50", "ecaresnet26t", "skresnet18",
    "res2net50_26w_4s", "densenet121", "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv2_050", "regnety_002",
    "regnetx_002", "convnext_atto", "convnextv2_atto", "vgg11", "repvgg_a0", "ghostnet_100", "mnasnet_small", "dla34",
    "darknet53", "cspresnet50", "hrnet_w18_small", "inception_v3", "xception41", "nfnet_l0", "resnetv2_50",
    "mobileone_s0", "tf_efficientnetv2_b0", "lcnet_050", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "mixer_s32_224", "resmlp_12_224", "swin_tiny_patch4_window7_224", "coatnet_nano_rw_224", "edgenext_xx_small",
    "poolformer_s12", "convmixer_768_32", "levit_128s", "mobilevit_xxs", "fasternet_t0", "repghostnet_050",
    "torchvision:shufflenet_v2_x0_5", "torchvision:mnasnet0_5", "torchvision:squeezenet1_0", "torchvision:alexnet",
    "torchvision:googlenet", "torchvision:inception_v3", "torchvision:regnet_y_400mf", "torchvision:convnext_tiny",
    "torchvision:mobilenet_v2", "torchvision:efficientnet_b0", "torchvision:densenet121", "torchvision:vit_b_16",
    "torchvision:swin_t", "torchvision:swin_v2_t", "torchvision:maxvit_t",
)  # fmt: skip
LARGER |= {"torchvision:maxvit_t": 224, "torchvision:alexnet": 224, "torchvision:googlenet": 64}
HEAD = """# Networks

What `derive_spec` finds in networks of timm and torchvision (made by `scripts/symmetry_table.py`; any other network is
derived in the same way). *Groups* are sets of units that are permuted together; those *within* others are permuted inside
each unit of another group, as the units of attention heads are. *Moved* counts the tensors of the state dict that a random
permutation of all groups changes. *Error* is the largest difference of the logits that this makes, in float64, relative to
the largest logit; affine weights, statistics and heads are random.

Of torchvision's 80 networks for classification all but `regnet_y_128gf`, which was not tried, are derived; the proof was made
for those below.

| network | groups | within others | units | moved tensors | error | seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def build(name: str) -> nn.Module:
    """Return a newly initialised network with ten classes; names without a prefix are timm's."""
    torch.manual_seed(0)
    library, _, short = name.rpartition(":")
    if library == "torchvision":
        import torchvision

        options: dict[str, Any] = {"init_weights": False} if short in ("googlenet", "inception_v3") else {}
        network: nn.Module = getattr(torchvision.models, short)(weights=None, num_classes=10, **options)
        return network
    import timm

    created: nn.Module = timm.create_model(name, num_classes=10)
    return created


def vary(network: nn.Module) -> None:
    """Give what is constant in a new network, such as norms, biases, layer scales and zero heads, random values."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        draw = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.data.copy_(draw + 0.5)
        elif tensor.ndim == 1 or float(tensor.detach().std()) < 1e-4:
            tensor.data.copy_(0.6 * (draw - 0.5))


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    """Return the logits, or all that a network returns, in one row."""
    found = network(x)
    return found if isinstance(found, Tensor) else torch.cat([each.flatten() for each in found])


def row(name: str) -> dict[str, Any]:
    """Derive a network's symmetry and prove it; returns what the table has of it."""
    network = build(name).double().eval()
    vary(network)
    x = torch.randn(2, 3, *[LARGER.get(name, SIDE)] * 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    spec = derive_spec(network, x)
    seconds = time.perf_counter() - start
    moved = copy.deepcopy(network)
    before = network.state_dict()
    after = random_permutation(spec, 1).apply(before)
    moved.load_state_dict(after)
    with torch.no_grad():
        expected, found = outputs(network, x), outputs(moved, x)
    assert float(expected.std()) > 0, "logits that are all alike prove nothing"
    return {
        "groups": len(spec.groups),
        "within": sum(bool(group.within) for group in spec.groups.values()),
        "units": sum(group.size for group in spec.groups.values()),
        "moved": f"{sum(not torch.equal(after[key], before[key]) for key in before)} of {len(before)}",
        "error": float((found - expected).abs().max() / expected.abs().max()),
        "seconds": seconds,
    }


def line(name: str, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [name, found["groups"], found["within"], found["units"], found["moved"], f"{found['error']:.0e}"]
    return f"| {' | '.join(map(str, cells))} | {found['seconds']:.1f} |"


def main(names: list[str]) -> int:
    """Print the rows, and write the page where all were asked for."""
    lines = []
    for name in names or NETWORKS:
        try:
            lines.append(line(name, row(name)))
        except ValueError as error:
            lines.append(f"| {name} | {' '.join(str(error).split())} | | | | | |")
        print(lines[-1], flush=True)
    if not names:
        PAGE.write_text(HEAD + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
