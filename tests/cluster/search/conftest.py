"""One Ray for all tests of a module: to start one takes seconds, and so does each of its workers."""

import contextlib

import pytest

from raylth.cluster.address import Joining
from raylth.cluster.launch import joined
from tests.conftest import ONE_CPU


@pytest.fixture(scope="module")
def ray():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_CPU.items():
            patch.setenv(name, value)
        with joined(Joining("local")) as module:
            yield module


@pytest.fixture
def one_ray(ray, monkeypatch):
    """Whatever is run in this process finds the module's Ray, where it would start its own."""
    monkeypatch.setattr("raylth.cluster.launch.joined", lambda joining: contextlib.nullcontext(ray))
