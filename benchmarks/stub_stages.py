"""Stages that only sleep and publish something small, in place of the real ones; a worker imports this module.

`RAYLTH_STUB_SECONDS` says how long each kind takes, as JSON: {"sparse": 0.1, "dense": [4, 6, 9]}; of a list, replicate i has
the i-th.
"""

import json
import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from raylth.stages import KINDS
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage

SECONDS = json.loads(os.environ["RAYLTH_STUB_SECONDS"])


def stub(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Sleep as long as the stage is said to take, and return what a real one would, but small."""
    started = time.time()
    taken = SECONDS.get(stage.kind, 0.0)
    time.sleep(taken[stage.labels["replicate"]] if isinstance(taken, list) else taken)
    weights = {"weights": {"w": np.zeros(8, np.float32)}}
    metrics: dict[str, Any] = {
        "epochs": stage.epochs, "test_accuracy": 50.0, "test_loss": 1.0, "train_loss": 1.0, "mask_sparsity": 0.5,
        "model_sparsity": 0.5, "seconds": time.time() - started, "device": "none", "curve": [],
        "started": started, "ended": time.time(), "pid": os.getpid(),
    }  # fmt: skip
    early = {key: Artefact(weights, {"epochs": int(epoch)}) for epoch, key in stage.checkpoints.items()}
    return {**early, stage.key: Artefact(weights, metrics)}


for name, kind in KINDS.items():
    KINDS[name] = replace(kind, compute=stub, prepare=None)
