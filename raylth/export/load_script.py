"""The file load.py of an export: how a network is loaded without raylth."""

import importlib.metadata

from raylth.export.stored_network import Network

__all__ = ["snippet"]

HEAD = '''\
"""Loads a network that `raylth` trained; needs {packages}, not raylth."""

{imports}

IN_SHAPE = {in_shape}  # of one sample
MEAN, STD = {mean}, {std}  # per channel


def normalise(samples: {array}) -> {array}:
    """Turn samples (B, *IN_SHAPE), {units}, into the network's input."""
    {normalise}


'''

SCALED_TORCH = """\
mean, std = (torch.tensor(values, device=samples.device).reshape(-1{ones}) for values in (MEAN, STD))
    return (samples.to(torch.float32) - mean) / std"""

SCALED_NUMPY = """\
mean, std = (np.array(values, np.float32).reshape(-1{ones}) for values in (MEAN, STD))
    return (samples.astype(np.float32) - mean) / std"""

PROGRAM = '''\
def load(folder: str | Path = Path(__file__).parent) -> torch.nn.Module:
    """Return the network, in evaluation: normalised inputs (B, *IN_SHAPE) -> logits (B, {classes}), of any B."""
    return torch.export.load(Path(folder) / "model.pt2").module()


if __name__ == "__main__":
    with torch.inference_mode():
        print(load()(normalise(torch.zeros(1, *IN_SHAPE))))
'''

PRUNED = '''\
def load(network: torch.nn.Module, folder: str | Path = Path(__file__).parent) -> torch.nn.Module:
    """Load weights and masks into a network of your own whose tensors have these names and shapes; returns it."""
    state = torch.load(Path(folder) / "model.pt", weights_only=True)
    for name in state:
        if name.endswith("_mask"):
            layer, _, weight = name.removesuffix("_mask").rpartition(".")
            prune.identity(network.get_submodule(layer), weight)
    network.load_state_dict(state)
    return network.eval()


if __name__ == "__main__":
    for name, tensor in torch.load(Path(__file__).parent / "model.pt", weights_only=True).items():
        print(name, tuple(tensor.shape))
'''

ONNX = '''\
def load(folder: str | Path = Path(__file__).parent) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network: normalised float32 inputs (B, *IN_SHAPE) -> logits (B, {classes}), of any B."""
    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], {{"input": inputs}})[0]


if __name__ == "__main__":
    print(load()(normalise(np.zeros((1, *IN_SHAPE)))))
'''

IMPORTS = {
    "program": "from pathlib import Path\n\nimport torch",
    "torch-prune": "from pathlib import Path\n\nimport torch\nfrom torch.nn.utils import prune",
    "onnx": "from collections.abc import Callable\nfrom pathlib import Path\n\nimport numpy as np\nimport onnxruntime",
}


def snippet(network: Network, kind: str) -> str:
    """Return the text of load.py."""
    is_numpy, is_program = kind == "onnx", kind in ("safetensors", "hf")
    scaled = SCALED_NUMPY if is_numpy else SCALED_TORCH
    as_it_is = "return samples.astype(np.float32)" if is_numpy else "return samples.to(torch.float32)"
    ones = ", 1" * (len(network.in_shape) - 1)
    torch_version = importlib.metadata.version("torch")
    head = HEAD.format(
        packages="onnxruntime" if is_numpy else f"torch (this is from {torch_version})" if is_program else "torch",
        imports=IMPORTS["program" if is_program else kind],
        in_shape=network.in_shape,
        mean=list(network.scale.mean),
        std=list(network.scale.std),
        array="np.ndarray" if is_numpy else "torch.Tensor",
        units=network.scale.units,
        normalise=scaled.format(ones=ones) if network.scale.mean else as_it_is,
    )
    body = PROGRAM if is_program else ONNX if is_numpy else PRUNED
    return head + (body if body is PRUNED else body.format(classes=network.model.num_classes))
