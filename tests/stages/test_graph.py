from raylth.stages import Graph, Stage


def stage(key, *parents, kind="dense", checkpoints=None):
    return Stage(kind, key, {}, {str(i): p for i, p in enumerate(parents)}, {}, checkpoints=checkpoints or {})


CHAIN = [stage("a", checkpoints={"0": "a0"}), stage("b"), stage("c", "a0"), stage("d", "b", "c"), stage("e", "b")]


def take(graph):
    keys = []
    while (ready := graph.next_ready()) is not None:
        keys.append(ready.key)
    return keys


def test_a_stage_is_ready_when_its_own_parents_are_done():
    graph = Graph(CHAIN)
    assert take(graph) == ["a", "b"]
    graph.finish("a")
    assert take(graph) == ["c"], "c must not wait for b"
    graph.finish("b")
    assert take(graph) == ["e"]
    graph.finish("c")
    assert take(graph) == ["d"]
    assert not graph.finished
    for key in "de":
        graph.finish(key)
    assert graph.finished


def test_a_failure_blocks_its_descendants_and_nothing_else():
    graph = Graph(CHAIN)
    take(graph)
    graph.fail("a", "boom")
    graph.finish("b")
    assert take(graph) == ["e"]
    graph.finish("e")
    assert graph.finished
    assert graph.states == {"a": "failed", "b": "done", "c": "blocked", "d": "blocked", "e": "done"}
    assert graph.blockers == {"c": "a", "d": "a"}
    assert graph.errors == {"a": "boom"}


def test_what_exists_is_done_and_a_missing_checkpoint_is_not():
    assert Graph(CHAIN, done={"a", "a0", "b"}).cached == {"a", "b"}
    graph = Graph(CHAIN, done={"a", "b"})  # a's checkpoint is gone
    assert take(graph) == ["a", "e"]


def test_a_lost_artefact_is_recomputed_before_its_children_start():
    graph = Graph(CHAIN, done={"a", "a0", "b", "e"})
    assert take(graph) == ["c"]
    graph.retry("c")
    assert graph.lose("a0").key == "a"
    assert take(graph) == ["a"]
    graph.finish("a")
    assert take(graph) == ["c"]


def test_counts():
    graph = Graph(CHAIN, done={"b"})
    graph.next_ready()
    assert dict(graph.count()["dense"]) == {"running": 1, "done": 1, "waiting": 3}


def test_a_stage_whose_parent_is_lost_and_then_fails_is_blocked_whatever_it_was_doing():
    """b and c run on a; b finds a broken, a is made again and fails, and only then c's worker ends."""
    stages = [Stage("dense", "a", {}, {}, {}), *(Stage("sparse", key, {}, {"weights": "a"}, {}) for key in "bcd")]
    graph = Graph(stages, done=["a"])
    for key in "bcd":
        assert graph.next_ready().key == key
    graph.lose("a")
    graph.retry("b")
    graph.hold("d")
    assert graph.next_ready().key == "a"
    graph.fail("a", "no")
    graph.hold("c")
    assert graph.states == {"a": "failed", "b": "blocked", "c": "blocked", "d": "blocked"}
    graph.retry("d")
    assert graph.states["d"] == "blocked", "what is blocked is not revived"
    assert graph.finished
    assert graph.next_ready() is None
