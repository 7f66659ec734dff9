"""Workers that import this may use a small part of their GPU's memory (RAYLTH_MEMORY_FRACTION), so that packs do not fit."""

import os

import torch

torch.cuda.set_per_process_memory_fraction(float(os.environ["RAYLTH_MEMORY_FRACTION"]))
