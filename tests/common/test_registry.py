"""Names of a registry: which are listed, found and suggested."""

import pytest

from raylth.common.registry import Registry, UnknownName


def test_a_registry_lists_what_it_knows():
    registry: Registry[int] = Registry("thing")
    registry.register("alpha")(1)
    assert registry["alpha"] == 1
    assert list(registry) == ["alpha"]
    with pytest.raises(UnknownName, match=r"unknown thing 'alpah', did you mean 'alpha'\? \(known: alpha\)"):
        registry["alpah"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("alpha")(2)


def test_what_was_looked_up_is_not_listed():
    registry: Registry[object] = Registry("thing", resolve=lambda name: 7 if name == "library:seven" else None)
    registry.register("alpha")(1)
    assert registry["library:seven"] == registry["library:seven"] == 7
    assert registry["math:pi"] == pytest.approx(3.14159, abs=1e-4)
    assert list(registry) == ["alpha"], "lists and schemas are the same whatever a process did before"


def test_the_name_of_an_installed_package_is_listed_without_its_import(tmp_path, monkeypatch):
    package = tmp_path / "own-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[own.things]\nbeta = nowhere_to_be_imported:beta\ntau = math:tau\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("thing", group="own.things")
    registry.register("alpha")(1)
    assert list(registry) == ["alpha", "beta", "tau"]
    assert registry["tau"] == pytest.approx(6.28318, abs=1e-4)
    with pytest.raises(UnknownName, match=r"thing 'beta' cannot be imported: ModuleNotFoundError"):
        registry["beta"]
