"""Workers that import this may use RAYLTH_MEMORY_GB of their GPU's memory, so that packs do not fit."""

import os

import torch

wanted = float(os.environ["RAYLTH_MEMORY_GB"]) * 2**30
torch.cuda.set_per_process_memory_fraction(wanted / torch.cuda.get_device_properties(0).total_memory)
