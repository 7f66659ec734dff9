import pytest

from raylth.common.seeding import derive_seed


def test_streams_are_named_stable_and_apart():
    assert derive_seed(0, "init") == 2410301491197795094
    seeds = {derive_seed(b, *role) for b in (0, 1) for role in ((), ("a",), ("b",), ("a", 1), ("a", "1"), ("a1",))}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(TypeError, match="text and integers"):
        derive_seed(0, 1.5)
