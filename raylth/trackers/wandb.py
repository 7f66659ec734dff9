"""Weights & Biases: one run per network, as it finishes, offline in files or on a server."""

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raylth.config.tracking import WandbConfig
from raylth.trackers.network import Network

if TYPE_CHECKING:
    import wandb

__all__ = ["Wandb", "check_login"]

INIT_SECONDS, FINISH_SECONDS = 20.0, 30.0  # for a server to answer, and to take a network

HEADER = 7  # bytes that W&B's file begins with


class Wandb:
    """Writes a sweep's networks as one group of runs, each once.

    What was written is listed in a file beside W&B's own. A server knows a run by its id: one that is there, of another
    machine or of a driver that was killed, is continued after its last epoch.
    """

    def __init__(self, config: WandbConfig, sweep: str, run: str) -> None:
        self.config, self.sweep, self.run = config, sweep, run
        self.folder = Path(config.folder).absolute()
        self.ledger = self.folder / f"written-{config.mode}-{config.project}.txt"
        self.written: set[str] = set()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline is offline

    def write(self, network: Network) -> None:
        """Write a network: labels as config, the curve by epoch as history, final numbers as summary."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK):  # W&B would go to the system's folder for temporary files
            raise PermissionError(f"{self.folder} cannot be written")
        identity = f"{network.key[:16]}-{self.run}"
        if identity not in self.written and self.ledger.exists():
            self.written = set(self.ledger.read_text(encoding="utf-8").splitlines())
        if identity in self.written:
            return
        for half in self.folder.glob(f"wandb/*run-*-{identity}"):  # of a driver that was killed
            shutil.rmtree(half)
        online = self.config.mode == "online"
        with wandb.init(
            project=self.config.project, group=self.sweep, job_type=network.kind, name=network.name, id=identity,
            config=network.labels, dir=self.folder, mode=self.config.mode, reinit="create_new",
            resume="allow" if online else None, settings=_settings(),
        ) as run:  # fmt: skip
            for epoch, values in network.curve:
                if epoch >= run.starting_step:  # above 0 where the server has the run
                    run.log(values, step=epoch)
            run.summary.update(network.final)
        self._wait_for_file(identity)
        with open(self.ledger, "a", encoding="utf-8") as file:
            file.write(f"{identity}\n")

    def _wait_for_file(self, identity: str) -> None:
        """Wait until a run's file has come to rest: W&B's own process writes it, sometimes a little after the run ends."""
        size, end = HEADER, time.monotonic() + FINISH_SECONDS
        while True:
            before, size = size, sum(path.stat().st_size for path in self.folder.glob(f"wandb/*run-*-{identity}/*.wandb"))
            if before == size > HEADER:
                return
            if time.monotonic() > end:
                raise OSError(f"{self.folder}: W&B wrote no file")
            time.sleep(0.02)


def check_login() -> None:
    """Raise ValueError when W&B knows no key for its server; it would ask for one in the middle of a sweep."""
    import wandb

    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ValueError(f"log.wandb: {error}") from error
    if not known:
        raise ValueError("log.wandb: W&B has no API key for mode online: set WANDB_API_KEY or run wandb login")


def _settings() -> "wandb.Settings":
    """Return settings that keep W&B to the numbers: nothing of the console, the code or the machine, and no long waits."""
    import wandb

    return wandb.Settings(
        init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, silent=True, console="off",
        use_dot_wandb=False, save_code=False, disable_git=True, label_disable=True, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
