"""A cluster whose machines run something else is refused before anything starts."""

import pytest

from raylth.cluster.address import ClusterError
from raylth.cluster.versions import compare, versions


def test_the_first_difference_is_named_with_both_versions():
    here = versions()
    assert set(here) == {"Python", "raylth", "torch", "ray", "numpy"}
    compare(here, {"10.0.0.1": here, "10.0.0.2": dict(here)})
    new, old = {**here, "torch": "2.15.0"}, {**here, "torch": "2.11.0"}
    with pytest.raises(ClusterError) as caught:
        compare(new, {"10.0.0.1": new, "10.0.0.2": old})
    assert str(caught.value) == "torch is 2.15.0 here and 2.11.0 on 10.0.0.2: install the same on both"
    with pytest.raises(ClusterError, match=r"raylth is .* here and not installed on 10\.0\.0\.2"):
        compare(here, {"10.0.0.2": {**here, "raylth": "not installed"}})
