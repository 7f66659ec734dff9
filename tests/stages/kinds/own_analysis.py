"""An analysis of one's own. Its code is part of its key: test_kinds.py pins that."""

from raylth.analyses import Analysis
from raylth.config.analyses import NetworksConfig


def measure(networks, settings, inputs):
    for name, network in networks.items():
        yield {"network": name, "norm": sum(p.detach().norm().item() for p in network.parameters())}


norms = Analysis(measure, NetworksConfig, "Sum of the tensors' norms.")
