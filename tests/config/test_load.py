"""Each kind of bad input: one line with file, place, key path and what would be right; exit status 2; no traceback."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from raylth.cli import sweep
from raylth.common.omit import LATER, _without
from raylth.config.load import BadSweep, read_sweep, read_sweep_and_places
from raylth.config.sweep import SweepConfig
from raylth.core import precision
from raylth.driver.prepare import in_hours
from raylth.driver.run_record import Run
from raylth.store import Store

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "sweeps" / "quickstart.yaml"
VIT = ROOT / "sweeps" / "vit_digits.yaml"

BAD_OVERRIDES = [
    ("sparse.sparsitys=[0.5]", "sparse.sparsitys: unknown key, did you mean 'sparsities'?"),
    ("nam=x", "nam: unknown key, did you mean 'name'?"),
    ("dense.epochs=abc", "dense.epochs: should be a whole number, found 'abc'"),
    ("dense.epochs=2.5", "dense.epochs: should be a whole number, found 2.5"),
    ("dense.epochs=", "dense.epochs: should be a whole number, found nothing"),
    ("dense.lr=fast", "dense.lr: should be a number, found 'fast'"),
    ("connect.temperature=2", "connect.temperature: should be true or false, found 2"),
    ("analyses.lines=[{temprature: true}]", "analyses.lines.0.temprature: unknown key, did you mean 'temperature'?"),
    ("dense=3", "dense: expected settings below this key, found 3"),
    ("dense=", "dense: expected settings below this key, found nothing"),
    ("name=2024", "name: should be text (in quotes, if need be), found 2024"),
    (
        "name=My Sweep",
        "name: should be lowercase letters, digits, - and _, starting with a letter or a digit, found 'My Sweep'",
    ),
    ("storage=''", "storage: should not be empty, found ''"),
    (f"name={'n' * 300}", "name: should have at most 100 characters, found 'nnn"),
    ("data.download=3", "data.download: should be true or false, found 3"),
    ("data.augment=no", "data.augment: false is unknown (known: auto, none, flip_crop, resized_crop)"),
    ("model.widths=1", "model.widths: should be a list such as [a, b], found 1"),
    ("sparse.sparsities=[]", "sparse.sparsities: must have at least one entry, found []"),
    ("match.epochs=[]", "match.epochs: must have at least one entry, found []"),
    ("match.stream_site={1: -2}", "match.stream_site.1: should be text (in quotes, if need be), found 1"),
    ("sparse={1: 2}", "sparse.1: unknown key (known: batch_size, drop_last, optimizer"),
    ("match.stream_site={" + "a" * 60 + ": []}", ": should be a whole number, found []"),
    ("match.method=[" + "a" * 70 + "]", f"match.method.0: unknown matcher '{'a' * 60}'... (known: activation"),
    ("sparse.sparsities=[0.5, 1.2]", "sparse.sparsities.1: should be less than 1, found 1.2"),
    ("sparse.sparsities=[0.0]", "sparse.sparsities.0: should be greater than 0, found 0.0"),
    ("sparse.rewinds=[50]", "sparse.rewinds: 50 is not below dense.epochs = 40"),
    ("sparse.rewinds=[-1]", "sparse.rewinds.0: should be greater than or equal to 0"),
    ("match.epochs=[41]", "match.epochs: 41 is beyond dense.epochs = 40"),
    ("match.samples=5000", "match.samples: 5000 asked for, the training split has 4000"),
    ("sparse.arms=[lth, permutd]", "sparse.arms.1: unknown arm 'permutd', did you mean 'permuted'? (known: lth, naive"),
    ("sparse.arms=[lth, lth]", "sparse.arms: 'lth' is listed twice"),
    ("model.name=resnet21", "model.name: unknown model 'resnet21', did you mean 'resnet20'? (known: mlp, resnet20"),
    ("model.name=vgg11", "model.name: vgg11 needs images of at least (C, 32, 32), not (40,)"),
    ("model.options={depth: 3}", "model.options: mlp has no option 'depth' (it has asymmetric, fixed, kappa)"),
    ("dense.optimizer={name: adam}", "dense.optimizer.name: 'adam' is unknown, did you mean 'adamw'? (known: sgd, adamw)"),
    ("dense.optimizer={betas: [0.9, 0.99]}", "dense: optimizer.betas and optimizer.eps are adamw's: sgd has momentum"),
    ("dense={optimizer: {name: adamw}, momentum: 0.5}", "dense: momentum is sgd's: adamw has optimizer.betas"),
    ("dense.optimizer={name: adamw, betas: [0.9, 1]}", "dense.optimizer.betas.1: should be less than 1, found 1"),
    ("model.widths=[0.3]", "model.widths: width 0.3 gives 38.4 channels where 128 are scaled"),
    ("data.name=cifar", "data.name: unknown data set 'cifar', did you mean 'cifar10'?"),
    ("data.name=cifar10", "data.root: cifar10 is read from files: set data.root to their folder"),
    ("data.augment=flip_crop", "data.augment: flip_crop needs images"),
    ("data.num_train=9999", "data.num_train: mnist1d has 4000 such samples, not 9999"),
    (
        "resources.sparse.gpus=0.3",
        "resources.sparse.gpus: 0.3 is not 0 or 1/n; the nearest legal shares are 1/3 or 1/4",
    ),
    ("resources.match.gpus=2", "resources.match.gpus: 2 is not between 0 and 1"),
    ("resources.sparse.gpus=2.5", "resources.sparse.gpus: 2.5 is neither a share of one GPU nor a number of whole ones"),
    ("resources.sparse.gpus=1/0", "resources.sparse.gpus: '1/0' is not 0, a fraction such as 1/3, or auto"),
    ("seeds.replicates=0", "seeds.replicates: should be greater than 0"),
    ("dense.lr=.nan", "dense.lr: should be a finite number"),
    ("dense.lr", "'dense.lr' is not of the form key.path=value"),
    ("dense.lr=[", "the value is not YAML"),
    (
        "connect.pionts=3",
        "connect.pionts: unknown key, did you mean 'points'? (known: points, corrections, samples, temperature, unmatched)",
    ),
]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dpth: 3",
            "model.options: vit has no option 'dpth', did you mean 'depth'? (it has depth, heads, patch, dim, mlp_ratio)",
        ),
        ("patch: 3", "model.options: patches of 3 pixels do not fill images of 8 x 8"),
        ("dim: 30", "model.options: 4 heads do not share 30 channels evenly (dim 30 at width 1)"),
        ("depth: 0", "model.options: depth must be a whole number from 1 to 1,000, not 0"),
        ("depth: 1000000000", "model.options: depth must be a whole number from 1 to 1,000, not 1000000000"),
        ("depth: true", "model.options: depth must be a whole number from 1 to 1,000, not True"),
        ("mlp_ratio: 0.01", "model.options: mlp_ratio 0.01 of 32 channels is 0.32: it must be a whole number"),
        ("heads: [1]", "model.options.heads"),
    ],
)
def test_a_bad_option_of_a_network_is_named(override, message):
    name, _, value = override.partition(": ")
    with pytest.raises(BadSweep) as caught:
        read_sweep(VIT, [f"model.options.{name}={value}"])
    assert message in str(caught.value)


def at(settings, path):
    """Return the settings below a key path: of a list, those of each."""
    found = [settings]
    for name in path.split(".") if path else []:
        below = [each[name] for each in found if name in each]  # a section of which all was omitted is not there
        found = [one for each in below for one in (each if isinstance(each, list) else [each])]
    return found


def test_settings_that_were_added_later_are_omitted_at_their_defaults():
    """So that runs made before keep their names."""
    config = read_sweep(QUICKSTART)
    science, dumped = config.science(), config.model_dump(mode="json")
    for path, defaults in LATER.items():
        assert at(dumped, path)
        for names in at(science, path):
            assert not set(defaults) & set(names), path
        for found in at(dumped, path):
            kept = {field: _without(f"{path}.{field}".removeprefix("."), found[field]) for field in defaults}
            assert kept == defaults, path
    lines = read_sweep(QUICKSTART, ["analyses.lines=[{temperature: true}]", "connect.temperature=true"]).science()
    assert lines["analyses"]["lines"][0]["temperature"]
    assert lines["connect"]["temperature"]
    changed = read_sweep(QUICKSTART, ["dense.optimizer={name: adamw}"])
    assert changed.science()["dense"]["optimizer"]["name"] == "adamw"


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES, ids=[override for override, _ in BAD_OVERRIDES])
def test_a_bad_value_gives_one_line_that_says_what_would_be_legal(override, message, capsys, monkeypatch):
    monkeypatch.setattr("raylth.cli.start.run_sweep", lambda *a, **k: pytest.fail("something was started"))
    assert sweep.main([str(QUICKSTART), override]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(("command line: ", f"{QUICKSTART}:"))
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name.x=3", "name.x: name is 'quickstart', which has no keys"),
        ("sparse.sparsities.0=0.5", "sparse.sparsities.0: sparse.sparsities is [0.8, 0.9], which has no keys"),
        ("imp.lr.x=3", "imp.lr.x: imp.lr is 0.01, which has no keys"),
        ("storage.x=3", "storage: should be text (in quotes, if need be), found {'x': 3}"),
        ("dense={lr: 1, epochs: 2, lr: 3}", "dense.lr: is set twice in 'dense={lr: 1, epochs: 2, lr: 3}'"),
    ],
)
def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(override, message):
    with pytest.raises(BadSweep) as caught:
        read_sweep(QUICKSTART, [override])
    assert str(caught.value) == f"command line: {message}"


def test_a_key_that_is_there_twice_is_named_with_both_lines(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text(
        "name: twice\ndense:\n  epochs: 5\n  lr: 0.1\n  epochs: 6\ndata: {name: digits}\n"
        "model: {name: mlp}\nsparse: [{a: 1, b: 2,\n  a: 3}]\nname: again\nmatch: &m {}\nimp: *m\n"
    )
    with pytest.raises(BadSweep) as caught:
        read_sweep(file)
    assert str(caught.value).splitlines() == [
        f"{file}:5: dense.epochs: is set twice, in line 3 and in line 5",
        f"{file}:9: sparse.0.a: is set twice, in line 8 and in line 9",
        f"{file}:10: name: is set twice, in line 1 and in line 10",
    ]


@pytest.mark.parametrize(
    ("data", "model", "dense", "message"),
    [
        (
            "mnist1d",
            "mlp",
            {"first_resolution": 20},
            "dense.first_resolution: 20 is for images in files, of at least as many",
        ),
        (
            "imagenet",
            "resnet50",
            {"first_resolution": 256},
            "dense.first_resolution: 256 is for images in files, of at least",
        ),
        (
            "imagenet",
            "mlp",
            {"first_resolution": 160},
            "dense.first_resolution: mlp has different layers at 160 pixels than at 224",
        ),
        (
            "imagenet",
            "resnet50",
            {"first_resolution": 160, "resolution_ramp": [0.5, 0.5]},
            r"dense.resolution_ramp: \[0.5, 0.5\] are not two increasing fractions",
        ),
        ("imagenet", "resnet50", {"first_resolution": 160}, None),
    ],
)
def test_progressive_resizing_is_for_networks_and_images_of_any_size(data, model, dense, message):
    plain = {"name": "a", "data": {"name": data, "root": "x"}, "model": {"name": model}, "dense": dense}
    with pytest.raises(ValidationError, match=message) if message else contextlib.nullcontext():
        SweepConfig.model_validate(plain)


def number_settings():
    """Every setting that holds numbers, as an override that sets it, or an entry of it, to a bool."""
    schema = SweepConfig.model_json_schema()

    def walk(model, path):
        for name, entry in model["properties"].items():
            text = json.dumps(entry)
            below = re.search(r"#/\$defs/(\w+)", text)
            if below and '"array"' in text:
                inside = [override.split("=", 1) for override in walk(schema["$defs"][below[1]], [])]
                yield from (f"{'.'.join([*path, name])}=[{{{key}: {value}}}]" for key, value in inside)
            elif below and '"additionalProperties"' in text:
                inside = [override.split("=", 1) for override in walk(schema["$defs"][below[1]], [])]
                yield from (f"{'.'.join([*path, name])}={{x: {{{key}: {value}}}}}" for key, value in inside)
            elif below:
                yield from walk(schema["$defs"][below[1]], [*path, name])
            elif ('"integer"' in text or '"number"' in text) and '"boolean"' not in text:
                value = "{x: yes}" if '"additionalProperties"' in text else "[yes]" if '"array"' in text else "yes"
                yield f"{'.'.join([*path, name])}={value}"

    return list(walk(schema, []))


def test_true_is_no_number_anywhere():
    overrides = number_settings()
    assert {
        "seeds.base=yes",
        "sparse.rewinds=[yes]",
        "match.stream_site={x: yes}",
        "connect.points=yes",
        "analyses.lines=[{sparsity: yes}]",
    } <= set(overrides)
    assert len(overrides) > 50
    for override in overrides:
        with pytest.raises(
            BadSweep, match=r"(?m): should be a number, found true \(as YAML reads yes, no, on and off, too\)$"
        ):
            read_sweep(QUICKSTART, [override])


def test_a_misspelt_key_in_a_list_is_named_like_any_other():
    with pytest.raises(BadSweep, match=r"analyses.lines.0.betwen: unknown key, did you mean 'between'\?"):
        read_sweep(QUICKSTART, ["analyses.lines=[{betwen: [A, B]}]"])


def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\ndata: {name: mnist1d}\nmodel:\n  name: mlp\n  widhts: [1]\nsparse:\n  arms: [lth, nave]\n")
    with pytest.raises(BadSweep) as caught:
        read_sweep(file)
    first, second = sorted(str(caught.value).splitlines())
    assert first == f"{file}:5: model.widhts: unknown key, did you mean 'widths'? (known: name, widths, options, init)"
    assert second.startswith(f"{file}:7: sparse.arms.1: unknown arm 'nave', did you mean 'naive'?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2", ":2: not YAML"),
        ("- 1\n- 2", "expected settings such as 'name: my-sweep', found list"),
        ("", "expected settings such as 'name: my-sweep', found nothing"),
        ("name: !!python/object/apply:os.system [echo]", ":1: not YAML"),
        ("name: x", "model: is required"),
    ],
)
def test_what_is_not_a_sweep_file(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(BadSweep) as caught:
        read_sweep(file)
    assert message in str(caught.value)


def test_a_missing_file(tmp_path, capsys):
    assert sweep.main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


LATE = """\
name: late
storage: store
data: {name: digits}
model: {name: mlp}
dense: {epochs: 5}
sparse:
  arms: [permuted]
  sparsities: [0.5]
"""
CIFAR = [("{name: digits}", "{name: cifar10, root: nowhere}"), ("mlp", "resnet20")]
LATE_MISTAKES = [
    (
        [("[0.5]", "[0.5]\n  mask_from: junk.safetensors")],
        9,
        "sparse.mask_from: {folder}/junk.safetensors: not a safetensors",
    ),
    ([("[0.5]", "[0.5]\n  mask_from: none.pt")], 9, "sparse.mask_from: {folder}/none.pt: cannot be read: No such file"),
    (
        [("[0.5]", "[0.5, 0.999999]")],
        8,
        "sparse.sparsities: 0.999999 cannot be reached: a round of 0.2 prunes none of 2 weights",
    ),
    ([("dense", "match: {stream_site: {fc9: -2}}\ndense")], 5, "match.stream_site: there is no group 'fc9'"),
    (CIFAR, 3, "data.root: nowhere/cifar-10-batches-py: expected cifar10's files in torchvision's layout (data_batch_1 is"),
    (
        [*CIFAR, ("root: nowhere", "root: nowhere, layout: parquet")],
        3,
        "data.root: nowhere: expected cifar10's Parquet files",
    ),
    ([("store", "junk.safetensors/store")], 2, "storage: junk.safetensors/store cannot be written: Not a directory"),
]


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(("changes", "line", "message"), LATE_MISTAKES, ids=[message for *_, message in LATE_MISTAKES])
def test_mistakes_outside_the_settings_are_reported_with_their_line(
    changes, line, message, options, tmp_path, capsys, monkeypatch
):
    if message.startswith(("storage", "data.root")):
        options = []  # a plan writes nothing, and needs no files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.safetensors").write_text("hello")
    text = LATE
    for old, new in changes:
        text = text.replace(old, new)
    Path("late.yaml").write_text(text)
    assert sweep.main(["late.yaml", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"late.yaml:{line}: {message.format(folder=tmp_path)}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"late.yaml", "junk.safetensors"}


def test_places_know_the_file_the_command_line_and_what_is_no_setting():
    config, places = read_sweep_and_places(QUICKSTART, ["connect.points=5", "sparse={arms: [lth]}"])
    assert config == read_sweep(QUICKSTART, ["connect.points=5", "sparse={arms: [lth]}"])
    line = QUICKSTART.read_text().splitlines().index("seeds: {base: 0, replicates: 5}") + 1
    assert places.locate("seeds.base: no") == f"{QUICKSTART}:{line}: seeds.base: no"
    assert places.locate("connect.points: no") == "command line: connect.points: no"
    assert places.locate("sparse.sparsities.0: no") == "command line: sparse.sparsities.0: no"
    assert places.locate("log.evaluate_every: no") == f"{QUICKSTART}: log.evaluate_every: no"
    for other in ("/data/x: no", "sparse.sparsitys: no", "cannot reach Ray: no", "name"):
        assert places.locate(other) == other


def test_missing_data_is_named_before_anything_starts(tmp_path, capsys):
    arguments = ["model.name=resnet20", "data.name=cifar10", f"data.root={tmp_path}", f"storage={tmp_path}/store"]
    assert sweep.main([str(QUICKSTART), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"command line: data.root: {tmp_path / 'cifar-10-batches-py'}: expected")
    assert "data.download=true" in error
    assert error.count("\n") == 1


def test_a_store_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert sweep.main([str(QUICKSTART), f"storage={tmp_path}/file"]) == 2
    assert f"storage: {tmp_path}/file cannot be written: Not a directory" in capsys.readouterr().err


def test_overrides_replace_settings():
    config = read_sweep(QUICKSTART, ["sparse.rewinds=[1]", "resources.sparse.gpus=1/3", "seeds.base=7"])
    assert config.sparse.rewinds == [1]
    assert config.resources.sparse.gpus == pytest.approx(1 / 3)
    assert config.seeds.base == 7
    assert config.sparse.sparsities == [0.8, 0.9]


def test_the_schema_file_is_what_the_command_prints(capsys):
    assert sweep.main(["--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((ROOT / "sweeps" / "schema.json").read_text()) == printed
    for name, definition in printed["$defs"].items():
        for field, entry in definition["properties"].items():
            assert "description" in entry or "$ref" in entry, f"{name}.{field} does not say its meaning"


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.name)
def test_every_sweep_file_is_valid_and_points_to_the_schema(file):
    text = file.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    for heading in ("# Table", "# Command", "# Cost", "# Expected"):
        assert heading in text
    read_sweep(file)


@pytest.mark.parametrize(
    ("file", "options", "reason"),
    [
        ("imagenet.yaml", ["model.name=torchvision:resnet18"], "train.beton: no such file; `python -m raylth.data imagenet"),
        (
            "slice_table05_cifar10.yaml",
            ["data.layout=torchvision", "data.download=false"],
            "expected cifar10's files in torchvision's layout",
        ),
        (
            "slice_table05_cifar10.yaml",
            ["data.layout=parquet", "data.download=false"],
            "expected cifar10's Parquet files named train-*.parquet",
        ),
    ],
)
def test_a_plan_is_made_before_its_files_are_there(tmp_path, capsys, file, options, reason):
    """Costs are wanted before somebody converts ImageNet for hours; a run is refused as before."""
    words = [str(ROOT / "sweeps" / file), *options, f"data.root={tmp_path}/none", f"storage={tmp_path}/store"]
    assert sweep.main([*words, "--dry-run"]) == 0
    shown, warned = capsys.readouterr()
    assert "trainings: about" in shown
    (line,) = warned.splitlines()
    assert reason in line
    assert line.endswith("(needed for training; the plan is made without it)")
    assert line.startswith("data.root: ")
    assert line.count("data.root: ") == 1
    assert not list(tmp_path.iterdir())


def test_hours_are_in_words_at_every_size():
    assert in_hours(3.456, 0) == "about 3.46 GPU-hours"
    assert in_hours(1e-9, 12345.6) == "less than 0.01 GPU-hours and about 12,346 core-hours"
    assert in_hours(0, 8.01e-05) == "less than 0.01 core-hours"
    assert in_hours(0, 0) == "no time"


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path, capsys):
    assert sweep.main([str(QUICKSTART), "--dry-run", f"storage={tmp_path}/store"]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["sparse", "162", "0", "162", "162", "5,760", "27.6", "MB"] in rows
    assert ["dense", "10", "0", "10", "10", "400", "6.46", "MB"] in rows
    assert ["imp", "60", "0", "60", "60", "600", "10", "MB"] in rows
    assert not (tmp_path / "store").exists()


def test_the_console_script_offers_the_same(tmp_path):
    run = subprocess.run([sys.executable, "-c", "from raylth.cli.main import main; raise SystemExit(main())", "sweeep"],
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("raylth: unknown command 'sweeep', did you mean 'sweep'?\n")
    assert "  sweep " in run.stderr, "all are listed"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_file_reads_alike_on_every_machine(has_bf16, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: has_bf16)
    assert read_sweep(QUICKSTART, ["imp.precision=auto", "resources.imp.gpus=1"]).imp.precision == "auto"
    assert Run.open(read_sweep(QUICKSTART), Store("nowhere")).name == "quickstart-e11a976b"


@pytest.mark.parametrize("section", ["model", "data"])
@pytest.mark.parametrize(
    ("first", "second"), [("name", "import"), ("import", "name"), ("name", "name"), ("import", "import")]
)
def test_an_override_replaces_its_setting_under_whichever_of_two_words(section, first, second, tmp_path):
    names = {"data": "mnist1d", "model": "mlp"}
    text = "\n".join(f"{key}: {{{first if key == section else 'name'}: {names[key]}}}" for key in names)
    file = tmp_path / "words.yaml"
    file.write_text(f"name: words\n{text}\n".replace(names[section], "zzz"))
    config, places = read_sweep_and_places(file, [f"{section}.{second}={names[section]}"])
    assert getattr(config, section).name == names[section]
    assert places.find((section, second)) == "command line"
    config = read_sweep(file, [f"{section}.{second}=nope:x", f"{section}.{first}={names[section]}"])
    assert getattr(config, section).name == names[section], "the last one counts"
    with pytest.raises(BadSweep, match=rf"^command line: {section}\.{second}: unknown .* 'nope'"):
        read_sweep(file, [f"{section}.{second}=nope"])


def test_two_words_for_one_setting_in_a_file_are_named(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("name: words\ndata: {name: mnist1d}\nmodel:\n  name: mlp\n  import: torchvision:resnet18\n")
    with pytest.raises(BadSweep) as caught:
        read_sweep(file)
    said = "model.import: is an alias of model.name, which is also set: remove one of them"
    assert str(caught.value) == f"{file}:5: {said}"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.name=resnet18", "torchvision:resnet18"),
        ("model.name=ResNet18", "torchvision:resnet18"),
        ("model.name=Resnet20", "resnet20"),
        ("model.name=mobilenetv2", "torchvision:mobilenet_v2"),
        ("model.name=torchvision.resnet18", "torchvision:resnet18"),
        ("model.name=torchvision:resnet81", "torchvision:resnet18"),
        ("model.name=TorchVision:ResNet34", "torchvision:resnet34"),
        ("model.import=torchvison:vgg16", "torchvision:vgg16"),
        ("data.name=CIFAR10", "cifar10"),
        ("data.name=CIFAR-100", "cifar100"),
        ("data.name=Imagenet", "imagenet"),
        ("sparse.arms=[LTH]", "lth"),
        ("match.method=Activation", "activation"),
        ("Dense.epochs=3", "dense"),
        ("dense.LR=3", "lr"),
    ],
)
def test_suggestions_ignore_case_and_know_the_libraries_prefixes(override, meant):
    with pytest.raises(BadSweep) as caught:
        read_sweep(QUICKSTART, [override])
    assert f", did you mean {meant!r}?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["model.name=qqqqqqqq", "model.name=my_networks:make", "data.name=qqqqq"])
def test_what_nothing_is_close_to_has_no_suggestion(override):
    with pytest.raises(BadSweep) as caught:
        read_sweep(QUICKSTART, [override])
    assert "did you mean" not in str(caught.value)
