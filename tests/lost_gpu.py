"""Workers import this: stages that only publish, and one that leaves its process without a GPU, as some CUDA errors do."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import tests.fake_gpus  # noqa: F401
from benchmarks.stub_stages import stub
from raylth.cluster.worker import gpu
from raylth.stages import KINDS
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage

ILLEGAL = "CUDA error: an illegal memory access was encountered"
lost: list[str] = []  # what this process met


def on_a_gpu(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Raise what the first error was, whatever is asked of the process afterwards."""
    if stage.key == os.environ["RAYLTH_TEST_POISONOUS"] and not lost:
        lost.append(stage.key)
        with Path(os.environ["RAYLTH_TEST_LOST"]).open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "at": time.time()}) + "\n")
    if lost:
        raise RuntimeError(f"{ILLEGAL}\nCUDA kernel errors might be asynchronously reported at some other API call")
    return stub(stage, context)


gpu.is_healthy = lambda: not lost
for name, kind in KINDS.items():
    KINDS[name] = replace(kind, compute=on_a_gpu, prepare=None)
