# SPDX-License-Identifier: Apache-2.0
"""Files of the package: recipes by path or short name, and small models by `oumi://` name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oumi.core.errors import ConfigError, did_you_mean

_SCHEME = "oumi://"
_PACKAGE = Path(__file__).resolve().parents[1]

SHORT_NAMES: Mapping[str, Mapping[str, str]] = {
    "training": {
        "quickstart": "quickstart/train.yaml",
        "quickstart-pretrain": "quickstart/pretrain/train.yaml",
        "quickstart-dpo": "quickstart/dpo/train.yaml",
        "quickstart-kto": "quickstart/kto/train.yaml",
        "quickstart-orpo": "quickstart/orpo/train.yaml",
        "quickstart-cpo": "quickstart/cpo/train.yaml",
        "quickstart-simpo": "quickstart/simpo/train.yaml",
        "quickstart-lora": "quickstart/lora/train.yaml",
        "quickstart-qlora": "quickstart/qlora/train.yaml",
        "smollm-135m": "smollm/sft/135m/train.yaml",
        "smollm-135m-quickstart": "smollm/sft/135m/quickstart_train.yaml",
        "smollm-135m-dpo": "smollm/dpo/135m/train.yaml",
        "smollm-135m-trl-dpo": "smollm/dpo/135m/trl_train.yaml",
        "smollm-135m-trl-kto": "smollm/kto/135m/trl_train.yaml",
        "llama3.2-1b": "llama3_2/sft/1b_full/train.yaml",
        "llama3.2-1b-lora": "llama3_2/sft/1b_lora/train.yaml",
        "llama3.2-1b-qlora": "llama3_2/sft/1b_qlora/train.yaml",
        "llama3.2-3b": "llama3_2/sft/3b_full/train.yaml",
        "llama3.2-3b-lora": "llama3_2/sft/3b_lora/train.yaml",
    },
    "job": {
        "quickstart": "quickstart/local_job.yaml",
        "smollm-135m": "smollm/sft/135m/gcp_job.yaml",
        "smollm-135m-quickstart": "smollm/sft/135m/quickstart_gcp_job.yaml",
        "smollm-135m-slurm": "smollm/sft/135m/slurm_job.yaml",
        "llama3.2-1b": "llama3_2/sft/1b_full/gcp_job.yaml",
        "llama3.2-1b-lora": "llama3_2/sft/1b_lora/gcp_job.yaml",
        "llama3.2-3b": "llama3_2/sft/3b_full/gcp_job.yaml",
        "llama3.2-3b-lora": "llama3_2/sft/3b_lora/gcp_job.yaml",
    },
}
"""Kind of config -> short name -> file below `configs/recipes`; a test compares it with the files."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config of the package."""

    name: str
    """Short name, or the path without one."""
    kind: str
    """`training` or `job`."""
    path: Path


def configs_dir() -> Path:
    """Returns the directory `configs` of this version: inside the wheel, or beside `src` in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def resolve_config(name: str, kind: str = "training") -> Path:
    """Returns the file of a config, without network access.

    Args:
        name: A path, a short name such as `smollm-135m`, or `oumi://configs/...`. A relative path
            `configs/...` that does not exist is looked up in the package.
        kind: `training` or `job`: the table of short names to use.

    Raises:
        ConfigError: There is no such config; names the nearest one.
    """
    if is_packaged(name):
        return _packaged_file(name[len(_SCHEME) :], name)
    # Without the scheme: a file of the user, a short name, a path in the package.
    short = SHORT_NAMES.get(kind, {}).get(name.lower())
    path = Path(name)
    if path.is_file():  # before the short names, so that a new one never replaces a user's file
        return path
    if short is not None:
        return configs_dir() / "recipes" / short
    # Commands of the README work in any directory, not only in a checkout.
    if path.parts[:1] == ("configs",) and not path.is_dir():
        return _packaged_file(name, name)
    raise ConfigError(_message_without_file(path, name, kind))


def list_recipes() -> list[Recipe]:
    """Returns every recipe of the package, sorted by path."""
    root = configs_dir() / "recipes"
    short = {(kind, file): name for kind, names in SHORT_NAMES.items() for name, file in names.items()}
    recipes = []
    for path in sorted(root.rglob("*.yaml")):
        kind = "job" if path.stem.endswith("job") else "training"
        file = path.relative_to(root).as_posix()
        recipes.append(Recipe(short.get((kind, file), f"configs/recipes/{file}"), kind, path))
    return recipes


def is_packaged(name: str) -> bool:
    """Returns True if `name` is one of the package: `oumi://...`."""
    return name.lower().startswith(_SCHEME)


def resolve_asset(name: str) -> Path | str:
    """Returns the directory of a model of the package (`oumi://tiny`), and any other name unchanged."""
    if not is_packaged(name):
        return name
    asset, root = name[len(_SCHEME) :], _PACKAGE / "embedded"
    assets = sorted(path.parent.name for path in root.glob("*/config.json"))
    if asset not in assets:
        names = [_SCHEME + asset_name for asset_name in assets]
        hint = did_you_mean(name, names) or f"; available: {', '.join(names) or 'none'}"
        raise ConfigError(f"no model '{name}' in this package{hint}")
    return root / asset


def _packaged_file(relative: str, name: str) -> Path:
    """Returns a file below `configs`; `relative` starts with `configs/`."""
    root = configs_dir()
    path = (root.parent / relative).resolve()
    if path.is_file() and path.is_relative_to(root.resolve()):  # `..` leads to no other file
        return path
    files = [f"configs/{file.relative_to(root).as_posix()}" for file in root.rglob("*.yaml")]
    hint = did_you_mean(relative, files) or f"; the recipes of this version are below {root}"
    raise ConfigError(f"{name}: no such file, neither here nor in this version's recipes{hint}")


def _message_without_file(path: Path, name: str, kind: str) -> str:
    """Returns the message for a name that is neither a file nor a recipe."""
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.y*ml"))
        return f"{name} is a directory" + (f"; it contains {', '.join(files)}" if files else ", not a config file")
    # Short names have neither a suffix nor a slash, so this is meant to be a path.
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        names = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        missing = "" if path.parent.is_dir() else f" (there is no directory {path.parent})"
        return f"{name}: no such file{missing}{did_you_mean(path.name, names)}"
    names = sorted(SHORT_NAMES.get(kind, {}))
    hint = did_you_mean(name, names) or f"; known: {', '.join(names)}"
    return f"'{name}' is neither a file nor the short name of a {kind} recipe{hint}"
