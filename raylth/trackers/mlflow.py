"""MLflow: one run per network, as it finishes, in a database, a folder or on a server."""

import logging
import os
import time
from typing import TYPE_CHECKING

from raylth.trackers.network import Network

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Mlflow", "packages"]

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PATIENCE = {  # a server is asked again by who calls
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # who writes file: in a sweep has asked for it
}
MANY = 1000  # metrics that MLflow takes, and runs that it gives, at once


class Mlflow:
    """Writes a sweep's networks as the runs of one experiment, each once: they are found by the tag `raylth.key`.

    One that is there but not finished, of a driver that was killed, is continued.
    """

    def __init__(self, uri: str, sweep: str, run: str) -> None:
        self.uri, self.sweep, self.run = uri, sweep, run
        self.client: MlflowClient | None = None
        self.experiment = ""
        self.written: set[str] = set()  # keys of finished networks, as far as known
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)

    def write(self, network: Network) -> None:
        """Write a network: labels as params, the curve by epoch and the final numbers as metrics, the rest as tags."""
        if self.client is None:
            self.client = self._open()
        if network.key in self.written:
            return
        place = f"tags.`raylth.key` = '{network.key}' and tags.`raylth.run` = '{self.run}'"
        found = self.client.search_runs([self.experiment], place, max_results=1)
        if not found or found[0].info.status != "FINISHED":
            self._write(self.client, network, found[0] if found else None)
        self.written.add(network.key)

    def _write(self, client: "MlflowClient", network: Network, half: "Run | None") -> None:
        from mlflow.entities import Metric, Param, RunTag

        tags = {"raylth.key": network.key, "raylth.run": self.run, "raylth.stage": network.kind}
        run = half or client.create_run(self.experiment, tags=tags, run_name=network.name)
        identity, now = run.info.run_id, int(time.time() * 1000)
        held = {(name, point.step) for name in run.data.metrics for point in client.get_metric_history(identity, name)}
        numbers = {(name, epoch): value for epoch, values in network.curve for name, value in values.items()}
        texts = []
        for name, value in network.final.items():
            if isinstance(value, str):
                texts.append(RunTag(f"raylth.{name}", value))
            else:
                numbers.setdefault((name, network.final.get("epochs", 0)), value)
        metrics = [Metric(name, value, now, step) for (name, step), value in numbers.items() if (name, step) not in held]
        client.log_batch(identity, params=[Param(name, str(value)) for name, value in network.labels.items()], tags=texts)
        for start in range(0, len(metrics), MANY):
            client.log_batch(identity, metrics=metrics[start : start + MANY])
        client.set_terminated(identity)

    def _open(self) -> "MlflowClient":
        """Return a client; notes the sweep's experiment, which is made if need be, and what it holds."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.sweep)
        self.experiment = client.create_experiment(self.sweep) if experiment is None else experiment.experiment_id
        finished, token = f"tags.`raylth.run` = '{self.run}' and attributes.status = 'FINISHED'", None
        while True:
            page = client.search_runs([self.experiment], finished, max_results=MANY, page_token=token)
            self.written |= {run.data.tags["raylth.key"] for run in page if "raylth.key" in run.data.tags}
            token = page.token
            if not token:
                return client


def packages(uri: str) -> list[str]:
    """Return the packages that a tracking URI needs."""
    return ["mlflow", *(["sqlalchemy", "alembic"] if uri.startswith(DATABASES) else [])]
