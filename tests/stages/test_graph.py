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


def test_a_lost_artefact_is_made_again_before_its_children_go_on():
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
