"""Resources of stages, and how often trainings are saved: settings that change no result."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from raylth.config.types import (
    AUTO,
    MOST_WORKERS,
    Count,
    EngineSetting,
    GpuCount,
    GpuShare,
    Integer,
    PackSize,
    Real,
    Settings,
    is_path,
)

__all__ = ["ResourcesConfig", "Share", "TrainingShare"]


class Share(Settings):
    """Resources of one stage."""

    cpus: Count = Field(1, description="CPU cores, also the number of torch threads.")
    gpus: GpuShare = Field(
        0.0,
        description="Share of one GPU: 0, 1/n, or auto: what fits by its memory, measured once in the first steps. Small "
        "networks gain more from packs, which have a GPU to themselves: processes that share one take turns (docs/gpu.md).",
    )


class TrainingShare(Share):
    """Resources of one training, which may have several workers, each with this many CPU cores and a GPU."""

    gpus: GpuCount = Field(
        0.0,
        description="Share of one GPU: 0, 1/n, or auto: what fits by its memory, measured once in the first steps. Small "
        "networks gain more from packs, which have a GPU to themselves: processes that share one take turns (docs/gpu.md). "
        "n: that many GPUs, with a worker for each.",
    )
    workers: Annotated[Count, Field(le=MOST_WORKERS)] | None = Field(
        None,
        description="Processes that train a network together, each with its part of every batch; null: one for each GPU.",
    )
    min_workers: Count | None = Field(
        None,
        description="Minimum number of workers with which a training continues after it lost machines, with the same "
        "batches; null: it waits for as many as before.",
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> "TrainingShare":
        if self.workers is not None and self.workers > 1 and self.gpus not in (0, self.workers):
            raise ValueError(f"workers: {self.workers} with gpus: {self.gpus}: each worker has its own GPU, or none has")
        if self.workers == 1 and self.gpus != AUTO and self.gpus > 1:
            raise ValueError(f"workers: 1 with gpus: {self.gpus:g}: needs a worker for each GPU")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers: {self.min_workers} of {self.num_workers} workers")
        return self

    @property
    def num_workers(self) -> int:
        """How many processes train one network."""
        if self.gpus == AUTO or self.gpus <= 1:
            return self.workers or 1
        return int(self.gpus)


class ResourcesConfig(Settings):
    """Where stages run; nothing here changes a result, except that `precision: auto` depends on whether a GPU is used."""

    dense: TrainingShare = TrainingShare()
    dynamic: TrainingShare = Field(TrainingShare(), description="Trainings of A while a mask finder changes its mask.")
    imp: TrainingShare = TrainingShare()
    find: Share = Share()
    mask: Share = Share()
    universe: Share = Field(Share(), description="Resources of each match of all networks at once (match.method: c2m3).")
    match: Share = Share()
    connect: Share = Share()
    sparse: TrainingShare = TrainingShare()
    ensemble: Share = Share()
    plane: Share = Share()
    overlap: Share = Share()
    analysis: Share = Field(Share(), description="Resources of each stage of a custom analysis.")
    pack: PackSize = Field(
        AUTO,
        description="Networks that differ only in seeds and masks, trained by one worker as one program: a number, off, "
        "or auto: the fastest number, measured once for each network and device. Each network is as if "
        "trained alone, to rounding. With gpus: auto a program has a GPU to itself.",
    )
    engine: EngineSetting = Field(
        AUTO,
        description="How training steps are run: eager (kernel by kernel), graph (a CUDA graph of a whole step), "
        "compiled (the same, compiled by torch), stacked (the same, convolutions of several networks as one "
        "kernel), or auto: on a GPU the fastest of those that are verified there, measured once together "
        "with the size of packs; on a CPU eager. A named engine is verified, too; if that fails, a simpler "
        "one is used.",
    )
    staging: Annotated[str, AfterValidator(is_path)] | None = Field(
        None,
        min_length=1,
        description="Folder on each machine's local disk to which images in files are copied once before training.",
    )
    checkpoint_actors: Count = Field(1, description="Actors that hold checkpoints in the object store.")
    checkpoint_bytes: Count | None = Field(
        None, description="Maximum bytes held by each actor; null: all together a third of the smallest object store."
    )
    capacity_minutes: Real = Field(
        10.0, gt=0, description="Minutes after which it is reported that no machine has room for any waiting stage."
    )
    retries: Integer = Field(2, ge=0, description="How often a stage is restarted after its worker process died.")
    state_every: Integer = Field(
        10, ge=0, description="Epochs between saved states of a training; 0: only when its process gets SIGTERM."
    )
    state_seconds: Real = Field(
        10.0, ge=0, description="Minimum seconds between two saved states: more frequent ones would cost more than they save."
    )

    def shares(self) -> dict[str, Share]:
        """Return what stages take, by kind of stage."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Share)}

    def of(self, kind: str) -> Share:
        """Return what a stage of a kind takes."""
        return self.shares()[kind]
