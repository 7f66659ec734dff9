"""Processes that are killed while a sweep runs: the sweep ends with the undisturbed run's bits."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from raylth.cli.status import main as status
from raylth.cluster.nodes import preemption_notice
from raylth.cluster.worker.draining import ASK_SECONDS
from raylth.report import load_results
from tests.buckets import BucketServer
from tests.faults.conftest import FEW, assert_undisturbed, wait_until


def states(sweep):
    return list((sweep.store.root.path / "states").glob("*/*/MANIFEST.json"))


def states_of_arms(sweep, reference):
    """Those of a pack, as a rule: arms are ready several at a time."""
    arms = {stage.key for stage in reference[0].stages if stage.kind == "sparse"}
    return [file for file in states(sweep) if file.parent.name in arms]


def artefacts(sweep):
    return list((sweep.store.root.path / "artefacts").glob("*/*/MANIFEST.json"))


def half_published(sweep):
    folders = (sweep.store.root.path / "artefacts").glob("*/*")
    return [folder for folder in folders if not (folder / "MANIFEST.json").exists()]


def kill(processes, number=signal.SIGKILL):
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def assert_computed_twice(reference, sweep, stages, epochs=0):
    """At most so many stages began more than once, each with at most so many epochs trained again; none ended twice."""
    plan, _ = reference
    work = sweep.work(plan)
    names = {stage.key: stage.name for stage in plan.stages}
    assert set(work.began) == set(names)
    assert set(work.ended.values()) == {1}, "no stage is computed to its end twice"
    assert len(work.again) <= stages, [names[key] for key in work.again]
    assert max(work.epochs_twice.values(), default=0) <= epochs, {names[k]: n for k, n in work.epochs_twice.items()}


def incidents(output):
    found = re.search(r"workers that ended: (.*)", output)
    return dict(reversed(part.split(" ", 1)) for part in found[1].split(", ")) if found else {}


def test_kill_9_of_training_workers_in_mid_epoch(start_sweep, reference):
    """Each stage that was hit continues from its last saved epoch."""
    sweep = start_sweep()
    wait_until(lambda: states(sweep) and sweep.num_epochs() >= 12, "training of twelve epochs")
    kill(sweep.workers())
    output = sweep.finish()
    assert "its worker process died; restarted (1)" in output
    assert 1 <= int(incidents(output)["crashed"]) <= 2
    assert_computed_twice(reference, sweep, stages=2, epochs=5)
    work = sweep.work(reference[0])
    assert sum(work.resumed.values()) >= 5, "what was saved is not trained again"
    assert_undisturbed(reference, sweep.store)


def test_sigterm_saves_the_training_and_counts_as_preemption(start_sweep, reference):
    sweep = start_sweep()
    wait_until(lambda: len(states(sweep)) >= 1, "saved state")
    kill(sweep.workers(), signal.SIGTERM)
    output = sweep.finish()
    assert "its worker was preempted; restarted in 1 s (1)" in output
    assert_computed_twice(reference, sweep, stages=2, epochs=0)
    assert_undisturbed(reference, sweep.store)


def test_kill_9_of_workers_that_train_several_networks_as_one(start_sweep, reference):
    """Every member continues from its last saved epoch, with its own bits, alone or in other company."""
    sweep = start_sweep("resources.pack=4")
    wait_until(lambda: len(states_of_arms(sweep, reference)) >= 2, "saved state of a pack")
    kill(sweep.workers())
    output = sweep.finish()
    assert re.search(r"a pack of \d: its worker process died; restarted in packs of at most \d", output), output
    assert 1 <= int(incidents(output)["crashed"]) <= 2, "one for each worker: no member of a pack is to blame"
    assert_computed_twice(reference, sweep, stages=8, epochs=5)
    assert load_results(sweep.store.root.path)["pack"].max() >= 2
    assert sum(sweep.work(reference[0]).resumed.values()) >= 2, "what was saved is not trained again"
    assert_undisturbed(reference, sweep.store)


def test_sigterm_saves_every_member_of_a_pack(start_sweep, reference):
    sweep = start_sweep("resources.pack=4")
    wait_until(lambda: len(states_of_arms(sweep, reference)) >= 2, "saved state of a pack")
    kill(sweep.workers(), signal.SIGTERM)
    output = sweep.finish()
    assert "its worker was preempted; restarted in 1 s (1)" in output
    assert_computed_twice(reference, sweep, stages=8, epochs=0)
    assert_undisturbed(reference, sweep.store)


def test_kill_9_of_the_checkpoint_actor(start_sweep, reference):
    sweep = start_sweep()
    wait_until(lambda: len(artefacts(sweep)) >= 5, "five artefacts")
    kill(wait_until(lambda: sweep.workers("ray::CheckpointActor"), "checkpoint actor"))
    assert incidents(sweep.finish()) == {}, "its readers go to the store until it is back"
    assert_computed_twice(reference, sweep, stages=0)
    assert_undisturbed(reference, sweep.store)


def test_kill_9_of_workers_in_mid_publish(start_sweep, reference):
    sweep = start_sweep()
    wait_until(lambda: len(artefacts(sweep)) >= 3 and half_published(sweep), "artefact without its manifest")
    kill(sweep.workers())
    sweep.finish()
    assert_computed_twice(reference, sweep, stages=2, epochs=5)
    assert_undisturbed(reference, sweep.store)


def test_after_kill_9_of_the_driver_the_same_command_resumes(start_sweep, reference, capsys):
    sweep = start_sweep()
    wait_until(lambda: len(artefacts(sweep)) >= 7 and states(sweep), "seven artefacts and a state")
    workers = sweep.workers()
    assert status([str(sweep.store.root)]) == 0
    assert ": running, " in capsys.readouterr().out
    sweep.process.kill()
    sweep.process.communicate()
    assert status([str(sweep.store.root)]) == 0
    shown = capsys.readouterr().out
    assert ": lost, " in shown
    assert f"process {sweep.process.pid} has ended; running the same sweep file again resumes it" in shown
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "the driver's workers go down with it"
    there = {path.parent.name for path in artefacts(sweep)}
    finished = sum(there.issuperset(stage.produces) for stage in reference[0].stages)
    sweep.process = subprocess.Popen(sweep.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = sweep.finish()
    held = re.search(r"(\d+) are in the store already", output)
    assert held
    assert int(held[1]) == finished, "nothing that was finished is done again"
    assert_computed_twice(reference, sweep, stages=2, epochs=5)
    assert_undisturbed(reference, sweep.store)
    assert set(load_results(sweep.store.root)["status"]) == {"done"}


def test_a_sweep_in_a_bucket_survives_its_workers_and_the_buckets_silence(start_sweep, reference):
    """The store is on S3; its server stops answering for five seconds, then the workers are killed."""
    server = BucketServer("s3")
    try:
        sweep = start_sweep(storage=server.url("faults"))
        wait_until(lambda: len(sweep.store.held()) >= 4, "four artefacts")
        server.pause()
        time.sleep(5)
        server.resume()
        wait_until(lambda: len(sweep.store.held()) >= 7, "seven artefacts")
        kill(sweep.workers())
        output = sweep.finish()
        assert set(incidents(output)) <= {"crashed", "storage unreachable"}, output
        assert_computed_twice(reference, sweep, stages=4, epochs=30)
        assert_undisturbed(reference, sweep.store)
        assert set(load_results(sweep.store.root)["status"]) == {"done"}
    finally:
        server.resume()
        server.stop()


def test_two_sweeps_on_one_store_do_no_stage_twice(start_sweep, reference, tmp_path):
    """Both run the same plan at the same time; together they compute each stage once."""
    plan, _ = reference
    sweeps = [start_sweep(), start_sweep()]
    outputs = [sweep.finish() for sweep in sweeps]
    assert_computed_twice(reference, sweeps[0], stages=0)
    assert_undisturbed(reference, sweeps[0].store)
    computed = [int(re.search(r"(\d+) stages computed here", output)[1]) for output in outputs]
    assert min(computed) > 0, "both took part"
    assert sum(computed) == len(plan.stages)


@pytest.fixture
def cluster(monkeypatch):
    """A head that runs no stage, so that all work is on the nodes that a test adds."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # tokens have a test of their own
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def raylet_of(node):
    return next(info[0].process for kind, info in node.all_processes.items() if kind == "raylet")


def test_the_end_of_a_cluster_is_reported_and_the_same_command_resumes_elsewhere(cluster, start_sweep, reference):
    """The head is killed in mid-sweep; the next run has a Ray of its own."""
    cluster.add_node(num_cpus=1)
    sweep = start_sweep("--address", cluster.address)
    wait_until(lambda: len(artefacts(sweep)) >= 7, "seven artefacts")
    for info in cluster.head_node.all_processes["gcs_server"]:
        info.process.kill()
    output, _ = sweep.process.communicate(timeout=50)  # Ray alone would take 60 s
    assert sweep.process.returncode == 1, output
    assert "no longer responds" in output
    assert "stages are finished and saved. To resume, run the same command again:" in output
    local = [word for word in sweep.command if word not in ("--address", cluster.address)]
    cluster.shutdown()
    sweep.process = subprocess.Popen(local, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sweep.finish()
    assert_computed_twice(reference, sweep, stages=1, epochs=5)
    assert_undisturbed(reference, sweep.store)


def test_a_node_that_dies_and_one_that_joins(cluster, start_sweep, reference):
    """All work of the dead node is taken up by a node that joins in mid-sweep."""
    first = cluster.add_node(num_cpus=1)
    sweep = start_sweep("--address", cluster.address)
    wait_until(lambda: len(artefacts(sweep)) >= 3 and states(sweep), "three artefacts and a state")
    kill([psutil.Process(raylet_of(first).pid)])
    second = cluster.add_node(num_cpus=2)
    wait_until(lambda: sweep.workers(under=raylet_of(second).pid), "work on the node that joined")
    output = sweep.finish()
    assert incidents(output), "the node's end is reported"
    assert_computed_twice(reference, sweep, stages=1, epochs=5)
    assert_undisturbed(reference, sweep.store)


def members(sweep):
    return sweep.workers("ray::RayTrainWorker")


def assert_dense_as_by_one(reference, sweep):
    """To rounding, which thirty epochs at this learning rate let grow: the networks are as good."""
    plan, expected = reference
    for stage in plan.stages:
        if stage.kind == "dense":
            one, two = (store.metrics(stage.key) for store in (expected, sweep.store))
            assert two["epochs"] == one["epochs"]
            assert abs(two["test_accuracy"] - one["test_accuracy"]) < 8, stage.name
            assert [point["train_loss"] for point in two["curve"][:2]] == pytest.approx(
                [point["train_loss"] for point in one["curve"][:2]], rel=1e-3
            )


@pytest.mark.timeout(600)
def test_kill_9_of_one_of_two_workers_that_train_one_network(start_sweep, few):
    """The other ends with it, and both continue from the last saved epoch."""
    sweep = start_sweep("resources.dense.workers=2", *FEW)
    wait_until(lambda: states(sweep) and sweep.num_epochs() >= 3 and len(members(sweep)) == 2, "two workers in training")
    kill(members(sweep)[1:])
    output = sweep.finish()
    assert "its worker process died; restarted (1): worker " in output
    assert incidents(output) == {"crashed": "1"}
    assert_computed_twice(few, sweep, stages=1, epochs=5)
    assert sum(sweep.work(few[0]).resumed.values()) >= 1, "what was saved is not trained again"
    assert_dense_as_by_one(few, sweep)
    rows = load_results(sweep.store.root.path)
    assert set(rows.query("stage == 'dense'")["workers"]) == {2}
    assert set(rows.query("stage == 'sparse'")["workers"]) == {1}
    assert not (sweep.store.root / "states").files()


@pytest.mark.timeout(600)
def test_a_training_continues_with_fewer_workers_where_allowed(cluster, start_sweep, few):
    """A node with one of two workers dies, and none comes in its place."""
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    sweep = start_sweep("--address", cluster.address, "resources.dense.workers=2", "resources.dense.min_workers=1", *FEW)
    there = wait_until(lambda: sweep.workers("ray::RayTrainWorker", under=raylet_of(second).pid), "worker on the second node")
    wait_until(lambda: states(sweep) and sweep.num_epochs() >= 3, "two workers in training")
    kill([psutil.Process(raylet_of(second).pid), *there])
    output = sweep.finish()
    assert incidents(output), "the node's end is reported"
    assert_dense_as_by_one(few, sweep)
    assert load_results(sweep.store.root.path).query("stage == 'dense'")["workers"].min() == 1


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a spot machine on AWS; `notice` is what it will be told."""

    notice = None

    def do_PUT(self):
        self.answer("a token" if self.path == "/latest/api/token" else None)

    def do_GET(self):
        asked = self.path == "/latest/meta-data/spot/instance-action"
        self.answer(Metadata.notice if asked and self.headers["X-aws-ec2-metadata-token"] == "a token" else None)

    def answer(self, text):
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *words):
        pass


@pytest.fixture
def metadata():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        Metadata.notice = None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(600)
def test_a_spot_machine_with_a_notice_saves_its_training_and_another_resumes_it(cluster, start_sweep, reference, metadata):
    """The notice is two minutes; nothing of what the machine trained is trained again."""
    first = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    words = [sys.executable, "-m", "raylth.cluster.nodes.preemption_notice", cluster.address, "--address", "127.0.0.2"]
    watcher = subprocess.Popen(words, env={**os.environ, "RAYLTH_METADATA": metadata}, stdout=subprocess.PIPE, text=True)
    sweep = start_sweep("--address", cluster.address, "--without-token", "resources.state_every=0")
    wait_until(lambda: len(artefacts(sweep)) >= 3 and sweep.num_epochs() % 10 == 5, "three artefacts, and a training")
    trainings = sweep.workers(under=raylet_of(first).pid)
    kill(trainings, signal.SIGSTOP)  # a training lasts a second here, the notice is seen after two
    assert watcher.poll() is None, "while there is no notice it watches"
    Metadata.notice = '{"action": "terminate", "time": "2026-11-22T08:22:00Z"}'
    assert watcher.communicate(timeout=30)[0] == "drained: AWS will terminate this machine at 2026-11-22T08:22:00Z\n"
    time.sleep(ASK_SECONDS)
    kill(trainings, signal.SIGCONT)
    wait_until(lambda: not sweep.workers(under=raylet_of(first).pid), "end of the work on that machine")
    cluster.add_node(num_cpus=1)
    output = sweep.finish()
    assert incidents(output) == {"preempted": "1"}, output
    assert_computed_twice(reference, sweep, stages=1, epochs=0)
    assert_undisturbed(reference, sweep.store)


def test_where_there_is_no_metadata_server_nothing_is_watched():
    assert preemption_notice.watch("http://127.0.0.1:9", sleep=lambda seconds: None) is None
