"""MLflow's runs are read back with its client: labels, curves, numbers and tags of each network, once."""

import socket
import time

import mlflow
import pytest

from raylth.config.tracking import LogConfig
from raylth.driver.run_record import Recorder, Run
from raylth.trackers.mlflow import Mlflow

pytestmark = pytest.mark.filterwarnings("ignore:.*noload")  # SQLAlchemy 2.1 of MLflow's own use


def read(uri, experiment="tiny"):
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return client, {run.data.tags["raylth.key"]: run for run in client.search_runs([found.experiment_id])}


def points(client, run, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


@pytest.mark.parametrize("uri", ["sqlite:///{}/new/runs.db", "file:{}/runs"])
def test_every_network_has_a_run_with_its_labels_curve_and_numbers(uri, finished, tmp_path, capfd):
    plan, store, graph = finished
    uri = uri.format(tmp_path)
    config = plan.config.model_copy(update={"log": LogConfig(mlflow=uri)})
    run = Run.open(config, store)
    for _ in range(2):  # the second time nothing is new
        recorder = Recorder(run, plan, graph)
        recorder.close()
        assert not recorder.take_notes()
    assert capfd.readouterr() == ("", ""), "the terminal is the sweep's"
    client, written = read(uri)
    trained = [stage for stage in plan.stages if stage.epochs]
    assert set(written) == {stage.key for stage in trained}
    assert len(client.search_runs([next(iter(written.values())).info.experiment_id])) == len(trained)
    for stage in trained:
        told, metrics = written[stage.key], store.metrics(stage.key)
        assert told.info.status == "FINISHED"
        assert f"({told.info.run_name})" in stage.name
        assert told.data.tags["raylth.stage"] == stage.kind
        assert (told.data.tags["raylth.run"], told.data.tags["raylth.status"]) == (run.name, "done")
        for label in ("arm", "sparsity", "rewind_epoch", "width", "replicate", "match_method"):
            value = stage.labels.get(label)
            assert told.data.params.get(label) == (None if value is None else str(value))
        assert (told.data.params["model"], told.data.params["dataset"]) == ("mlp", "mnist1d")
        assert (told.data.params["lr"], told.data.params["optimizer"]) == (str(stage.settings.recipe.lr), "sgd")
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert points(client, told, name) == [(p["epoch"], p[name]) for p in metrics["curve"] if name in p]
            assert told.data.metrics[name] == metrics[name]
        for name in ("mask_sparsity", "seconds", "test_top5"):
            assert points(client, told, name) == [(metrics["epochs"], metrics[name])]


def test_an_interrupted_run_is_resumed(trained, tmp_path, monkeypatch):
    uri, network = f"sqlite:///{tmp_path}/runs.db", next(network for network in trained if len(network.curve) > 2)
    monkeypatch.setattr("raylth.trackers.mlflow.MANY", 2)
    real, calls = mlflow.MlflowClient.log_batch, []

    def dies(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        Mlflow(uri, "tiny", "tiny-00000000").write(network)
    client, written = read(uri)
    assert written[network.key].info.status == "RUNNING"
    Mlflow(uri, "tiny", "tiny-00000000").write(network)
    client, written = read(uri)
    (run,) = written.values()
    assert run.info.status == "FINISHED"
    assert points(client, run, "train_loss") == [(epoch, values["train_loss"]) for epoch, values in network.curve]


def test_the_runs_of_other_settings_of_the_sweep_are_others(trained, tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    for run in ("tiny-00000000", "tiny-11111111", "tiny-11111111"):
        Mlflow(uri, "tiny", run).write(trained[0])
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    assert len(client.search_runs([experiment])) == 2


def test_two_drivers_of_one_sweep_write_a_network_once(trained, tmp_path):
    uri, (first, second, *_) = f"sqlite:///{tmp_path}/runs.db", trained
    drivers = [Mlflow(uri, "tiny", "tiny-00000000") for _ in range(2)]
    for network in (first, second):
        for driver in drivers:
            driver.write(network)
    client, written = read(uri)
    assert len(client.search_runs([written[first.key].info.experiment_id])) == 2
    for network in (first, second):
        assert len(points(client, written[network.key], "train_loss")) == len(network.curve)


def test_what_a_server_holds_is_asked_for_once(trained, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/runs.db"
    exporter = Mlflow(uri, "tiny", "tiny-00000000")
    for network in trained:
        exporter.write(network)
    real, asked = mlflow.MlflowClient.search_runs, []
    monkeypatch.setattr("raylth.trackers.mlflow.MANY", 3)
    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", lambda *a, **k: asked.append(1) or real(*a, **k))
    exporter = Mlflow(uri, "tiny", "tiny-00000000")
    for network in trained:
        exporter.write(network)
    assert len(asked) == len(trained) // 3 + 1
    assert len(read(uri)[1]) == len(trained)


def test_a_server_that_never_answers_is_given_up(trained, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        start = time.monotonic()
        with pytest.raises(Exception, match="Read timed out"):
            Mlflow(f"http://127.0.0.1:{server.getsockname()[1]}", "tiny", "tiny-00000000").write(trained[0])
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("uri", ["", "runs", "sqlite://runs.db", "sqllite:///runs.db", "http://", "gopher://host"])
def test_what_is_no_tracking_uri_is_refused(uri):
    with pytest.raises(ValueError, match="is not a tracking URI"):
        LogConfig(mlflow=uri)


def test_a_password_is_refused():
    with pytest.raises(ValueError, match="a password belongs in the environment") as raised:
        LogConfig(mlflow="https://me:secret@host/mlflow")
    LogConfig(mlflow="https://me@host:5000/mlflow")
    assert "a password" in str(raised.value)
