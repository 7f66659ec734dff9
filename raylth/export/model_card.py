"""The model card (README.md) and config.json of an exported network: what it is, how good, and where it came from."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from raylth.arms import arm_of
from raylth.config.sweep import NOT_SCIENCE
from raylth.core.matching.matcher import matcher_summary
from raylth.core.pruning.finder import ITERATIVE, finder_summary
from raylth.export.load_script import snippet
from raylth.export.stored_network import Network, Origin
from raylth.stages.settings import DenseSettings, MaskSettings, SparseSettings, TrainingSettings

__all__ = ["card", "config"]

INTRODUCTION = """\
Trained by [raylth](https://arxiv.org/abs/2505.05143)'s study of sparse training: a mask {found}, on weights of A or of
another initialisation B, with or without the permutation of units that lines A up with B (Adnan et al., *Sparse Training from
Random Initialization: Aligning Lottery Ticket Masks using Weight Symmetry*, ICML 2025)."""

STAGES = {
    "dense": "network {network}, trained densely",
    "dynamic": "network {network}, trained while `{mask_finder}` changed its mask",
    "imp": "network {network}, pruned by round {imp_round} of iterative magnitude pruning and fine-tuned",
    "mask": "a pruned network that was supplied to the sweep as a file",
}
FILES = {
    "safetensors": {
        "model.safetensors": "the weights and batch norm's statistics, by the names of the network; pruned weights are 0",
        "mask.safetensors": "1 alive, 0 pruned (uint8), for each prunable weight",
        "model.pt2": "the same network with its architecture, for `torch.export.load`",
    },
    "torch-prune": {
        "model.pt": "a state dict as `torch.nn.utils.prune` has it: `_orig` and `_mask` for each pruned weight",
    },
    "onnx": {
        "model.onnx": "input `input`, output `logits`, float32, any batch; batch norms are folded into convolutions",
    },
}
FILES["hf"] = FILES["safetensors"]
DATA_SETTINGS = ("layout", "resolution", "augment", "num_train", "num_test", "holdout")
COMMON = {"config.json": "what this card says, for programs", "load.py": "loads the network; no raylth is needed"}


def card(network: Network, kind: str) -> str:
    """Return the text of README.md; the format `hf` begins with what the Hugging Face hub reads."""
    parts = [
        f"# {_title(network)}",
        f"{_what(network)[0].upper()}{_what(network)[1:]}. {_introduction(network)}",
        *_section("What it is", _table(_cell(network))),
        *_section("How good it is", _table(_numbers(network))),
        *_section("Where it comes from", _provenance(network)),
        *_section("Data", _data(network)),
        *_section("Use it", f"`load.py`, which lies beside this file:\n\n```python\n{snippet(network, kind)}```"),
        *_section("Files", _files(network, kind)),
        *_section("Versions", _table(_versions(network))),
        *_section("The sweep's settings", f"```yaml\n{_yaml(_science(network.manifest['config']))}```"),
    ]
    return (_front_matter(network) if kind == "hf" else "") + "\n\n".join(parts) + "\n"


def config(network: Network, kind: str) -> str:
    """Return the text of config.json."""
    row, scale = network.row, network.scale
    asked = ("stage", "network", "arm", "sparsity", "rewind_epoch", "match_method", "match_epoch", "replicate")
    body = {
        "model": row["model"],
        "width": row["width"],
        "num_classes": network.model.num_classes,
        "in_shape": list(network.in_shape),
        "input": "(x - mean) / std per channel, float32" if scale.mean else "the samples, float32",
        "normalisation": {"units": scale.units, "mean": list(scale.mean), "std": list(scale.std)},
        "key": network.key,
        **{name: row[name] for name in asked},
        "mask_sparsity": row["mask_sparsity"],
        "test_accuracy": row["test_accuracy"],
        "dataset": row["dataset"],
        "data_sha256": row["data_sha256"],
        "format": kind,
        "compact": network.small is not None,
    }
    return json.dumps(body, indent=2) + "\n"


def _title(network: Network) -> str:
    row = network.row
    name = row["arm"] or row["stage"]
    sparsity = f", {100 * row['mask_sparsity']:.4g} % sparse" if network.mask is not None else ""
    return f"{row['model']} (width {row['width']:g}) on {row['dataset']}: {name}{sparsity}"


def _what(network: Network) -> str:
    row = network.row
    return arm_of(row["arm"]).summary if row["arm"] else STAGES[row["stage"]].format(**row)


def _introduction(network: Network) -> str:
    """Say what the study is, and how its sweep came by A's masks."""
    settings = network.manifest["config"]
    if (settings.get("sparse") or {}).get("mask_from"):
        return INTRODUCTION.format(found="that was given to the sweep as a file")
    name = (settings.get("mask") or {}).get("finder", ITERATIVE)  # which runs of older versions do not name
    summary = finder_summary(name)
    return INTRODUCTION.format(found=f"found on network A by `{name}`{f', {summary}' if summary else ''}")


def _cell(network: Network) -> dict[str, Any]:
    row = network.row
    return {
        "key": f"`{network.key}`",
        "sweep, run": f"{row['sweep']}, `{row['run']}`",
        "architecture": f"`raylth.core.models.build_model({_arguments(network)})`",
        "stage": row["stage"],
        "arm": row["arm"],
        "sparsity asked for": row["sparsity"],
        "rewind epoch k": row["rewind_epoch"],
        "learning rate schedule": row["schedule"],
        "replicate": row["replicate"],
        "member of an ensemble": row["member"],
        "seeds of A, B": f"{row['seed_a']}, {row['seed_b']}",
        **_own_seeds(network),
    }


def _arguments(network: Network) -> str:
    model = network.model
    settings = f"width={model.width:g}, num_classes={model.num_classes}, in_shape={network.in_shape}"
    init = ', init="torch"' if model.init == "torch" else ""
    options = f", options={dict(model.options)}" if model.options else ""
    return f'"{model.name}", {settings}{init}{options}'


def _own_seeds(network: Network) -> dict[str, Any]:
    if isinstance(network.origin, str):
        return {}
    settings = network.origin.stage.settings
    return {
        "seed of the initialisation": settings.init_seed if isinstance(settings, DenseSettings) else None,
        "seed of order and augmentation": settings.seed if isinstance(settings, TrainingSettings) else None,
        "seed of the mask's shuffle or permutation": (
            settings.mask_transform.seed if isinstance(settings, SparseSettings) else None
        ),
    }


def _numbers(network: Network) -> dict[str, Any]:
    row, count = network.row, sum(tensor.numel() for tensor in network.whole().parameters())
    alive = round(count * (1 - row["model_sparsity"]))
    split = _split(network)
    return {
        f"{split} accuracy": _number(row["test_accuracy"], " %"),
        f"{split} accuracy, top 5": _number(row["test_top5"], " %"),
        f"{split} loss": _number(row["test_loss"], " nats"),
        "training loss, last epoch": _number(row["train_loss"], " nats"),
        "sparsity of the prunable weights": _number(row["mask_sparsity"]),
        "sparsity of the whole network": _number(row["model_sparsity"]),
        "parameters, not pruned": f"{count:,}, {alive:,}",
        "parameters of this smaller network": _size(network),
        "epochs of this training": row["epochs"],
        "trained on": f"{row['device']}, {row['seconds']:.4g} s" if row["seconds"] else None,
    }


def _size(network: Network) -> str | None:
    """Say how large a network is that was made smaller."""
    if network.small is None:
        return None
    count = sum(tensor.numel() for tensor in network.small.parameters())
    return f"{count:,}: units that no weight reads or writes are left out, and the function is the same"


def _split(network: Network) -> str:
    """Name the samples that the network was evaluated on; a holdout is of the training split."""
    return "holdout" if network.manifest["config"]["data"].get("holdout") else "test"


def _number(value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:.6g}{unit}"


def _provenance(network: Network) -> str:
    """Say which networks this one was made from, and by which permutation its mask was moved."""
    origin = network.origin
    lines = [_moved(network)]
    if isinstance(origin, str):
        return f"{lines[0]}\n\nThe keys of its parents are not known: {origin}."
    entries = {role: _named(origin, key) for role, key in origin.stage.parents.items()}
    if origin.match is not None:
        lines.append(_table(_permutation(origin)))
        ends = {"a": "A, as it was matched", "b": "B, as it was matched"}
        entries |= {ends.get(role, role): _named(origin, key) for role, key in origin.match.parents.items()}
    if entries:
        lines.append("Parents, by their keys in the store:\n\n" + _table(entries))
    settings = origin.stage.settings
    if isinstance(settings, TrainingSettings):
        lines.append(f"Training:\n\n```yaml\n{_yaml({**settings.recipe.settings(), 'augment': settings.augment})}```")
    if isinstance(settings, MaskSettings):
        lines.append(f"The file's SHA-256: `{settings.sha256}`")
    return "\n\n".join(lines)


def _moved(network: Network) -> str:
    """Say in a sentence how the network came by its mask."""
    row, origin = network.row, network.origin
    if row["match_method"] or (isinstance(origin, Origin) and origin.match is not None):
        found = f"{row['match_method']} matching found between A and B at epoch {row['match_epoch']} of B"
        return f"{arm_of(row['arm']).summary}; the permutation pi is the one that {found}."
    if row["arm"]:
        return "No permutation was matched for it."
    return "No permutation is part of it."


def _permutation(origin: Origin) -> dict[str, Any]:
    """Describe a match: its settings and what it measured."""
    match = origin.match
    assert match is not None
    settings = {name: value for name, value in match.settings.plain().items() if name not in ("model", "data")}
    settings["how it matches"] = matcher_summary(settings["method"]) or None
    entries = {"key of the permutation": f"`{match.key}`", "epoch of B": match.labels["match_epoch"], **settings}
    if origin.matched is not None:
        objective, fixed = (list((origin.matched[name] or {}).values()) for name in ("objective", "fixed_share"))
        entries |= {
            "groups of units": len(fixed),
            "objective (correlation, by weights cosine), mean": _mean(objective),
            "share of units that stay in place, mean": _mean(fixed),
        }
    return entries


def _mean(values: list[float]) -> str | None:
    return f"{sum(values) / len(values):.4f}" if values else None


def _named(origin: Origin, key: str) -> str:
    return f"`{key}`: {origin.names.get(key, 'not of this plan')}"


def _data(network: Network) -> str:
    data, row, scale = network.manifest["config"]["data"], network.row, network.scale
    settings = {} if isinstance(network.origin, str) else network.origin.stage.settings.data.plain()
    size = ", ".join(f"{name} {value}" for name, value in {**data, **settings}.items() if value and name in DATA_SETTINGS)
    table = _table({"name": row["dataset"], "settings": size, "SHA-256 as raylth reads it": f"`{row['data_sha256']}`"})
    if not scale.mean:
        return f"{table}\n\nThe network takes {scale.units}."
    where = " By 255 these are mean and deviation of pixels in 0..1." if "255" in scale.units else ""
    mean, std = list(scale.mean), list(scale.std)
    return (
        f"{table}\n\nThe network takes (x - mean) / std per channel, as float32, where x are {scale.units}, mean = {mean} "
        f"and std = {std}. `normalise` in load.py does so; the network does not do it itself.{where}"
    )


def _files(network: Network, kind: str) -> str:
    has_mask = network.mask is not None and network.small is None
    found = {name: what for name, what in FILES[kind].items() if has_mask or not name.startswith("mask")}
    return _table({f"`{name}`": what for name, what in {**found, **COMMON}.items()})


def _versions(network: Network) -> dict[str, Any]:
    manifest = network.manifest
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version)
    machine = manifest["hardware"]["machine"]
    return {"python": manifest["python"], "packages": packages, "raylth's commit": manifest["git_commit"], "machine": machine}


def _front_matter(network: Network) -> str:
    """Return what the Hugging Face hub reads of a card: https://huggingface.co/docs/hub/model-cards."""
    row, is_image, split = network.row, len(network.in_shape) == 3, _split(network)
    task = "image-classification" if is_image else "other"
    accuracy = {"type": "accuracy", "value": round(row["test_accuracy"] / 100, 6), "name": f"{split} accuracy"}
    result = {
        "task": {"type": task, "name": "classification"},
        "dataset": {"type": row["dataset"], "name": row["dataset"], "split": split},
        "metrics": [accuracy],
    }
    matter = {
        "library_name": "pytorch",
        "license": "other",
        "license_name": "unknown",
        **({"pipeline_tag": task} if is_image else {}),
        "tags": ["raylth", "sparse", "pruning", "lottery-ticket", row["model"], *filter(None, [row["arm"]])],
        "metrics": ["accuracy"],
        "model-index": [{"name": _title(network), "results": [result]}],
    }
    return f"---\n{_yaml(matter)}---\n\n"


def _science(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where a sweep ran and what it cost: storage, resources, prices, logs, the folder of the data."""
    found = {}
    for name, value in config.items():
        hidden = NOT_SCIENCE.get(name, set())
        if isinstance(hidden, set):
            found[name] = {key: each for key, each in value.items() if key not in hidden} if hidden else value
    return found


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text]


def _table(entries: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in entries.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=120)
