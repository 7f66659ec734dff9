"""TensorBoard files: one run per network, as it finishes, with its curve."""

import os
import re
import shutil
from pathlib import Path

from raylth.trackers.network import Network

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes a sweep's networks below `folder/<sweep>/<kind>/<network>`, each once; Tune's own files would show its trials,
    which are batches of stages."""

    def __init__(self, folder: str, sweep: str) -> None:
        self.folder = Path(folder) / sweep

    def write(self, network: Network) -> None:
        """Write a network's curve by epoch into a run of its own, which appears whole."""
        from tensorboardX import SummaryWriter  # comes with ray[tune]

        name = re.sub(r"[^\w.=+-]+", "_", network.name).strip("_")
        place = self.folder / network.kind / f"{name}-{network.key[:8]}"
        if place.exists() or not network.curve:
            return
        beside = place.with_name(f".{place.name}")
        shutil.rmtree(beside, ignore_errors=True)  # of a driver that was killed
        with SummaryWriter(str(beside)) as writer:
            for epoch, values in network.curve:
                for measure, value in values.items():
                    writer.add_scalar(measure, value, epoch)
        os.replace(beside, place)
