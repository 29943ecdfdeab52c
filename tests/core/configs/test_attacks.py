# SPDX-License-Identifier: Apache-2.0
"""Config files made to exhaust a machine or to run code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fork_server import run_python

MODEL = "model: {model_name: oumi://tiny}\n"
KWARGS = "training:\n trainer_kwargs:\n"
NINE_ALIASES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)]
DOUBLING = [
    f"  a{i}: '${{training.trainer_kwargs.a{i + 1}}}${{training.trainer_kwargs.a{i + 1}}}'\n" for i in range(40)
]
CHAIN = [f"  a{i}: '${{training.trainer_kwargs.a{i + 1}}}'\n" for i in range(500)]
ATTACKS = {
    "aliases of aliases": ("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(NINE_ALIASES), "aliases are expanded"),
    "an alias inside its own anchor": ("model: &a [*a]\n", "inside or before its anchor"),
    "10,000 brackets": ("model: " + "[" * 10_000 + "]" * 10_000, "nested deeper than 100 levels"),
    "10,000 lists in lists": ("- " * 10_000 + "a\n", "nested deeper than 100 levels"),
    "2,000 indented sections": ("".join(" " * i + "a:\n" for i in range(2000)), "nested deeper than 100 levels"),
    "a Python object": (MODEL + "training: !!python/object:os.system {}\n", "'!!python/object:os.system' is refused"),
    "a Python call": (
        "model: !!python/object/apply:os.mkdir [hacked]\n",
        "'!!python/object/apply:os.mkdir' is refused",
    ),
    "a duplicate key": (MODEL + MODEL, "model: duplicate key, first at attack.yaml:1:1"),
    "20,000 unknown keys": (MODEL + "".join(f"k{i}: 1\n" for i in range(20_000)), "only the first 100 are shown"),
    "an integer of 5,000 digits": (MODEL + f"training: {{seed: {'9' * 5000}}}\n", "must be a finite number"),
    "references that double": (MODEL + KWARGS + "".join(DOUBLING) + "  a40: x\n", "longer than 100,000 characters"),
    "references in a long chain": (MODEL + KWARGS + "".join(CHAIN) + "  a500: x\n", "more than 50 references"),
    "a section that refers to itself": (MODEL + KWARGS + "  a: ${training}\n", "names a section or a list"),
    "a byte of zero": (MODEL + "training: {output_dir: a\0b}\n", "not valid YAML"),
    "control characters": (MODEL + "training: {output_dir: \x1b[2J}\n", "not valid YAML"),
    "a file of 6 MB": ("#" * 6_000_000, "larger than 5 MB"),
}
"""What is tried -> the file, and words of the refusal."""

LOAD = """
import json, time
from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.system.host import peak_memory_bytes
before = peak_memory_bytes()
started = time.process_time()
try:
    TrainingConfig.from_yaml("attack.yaml")
    told = "no problem"
except ConfigError as error:
    told = str(error)
seconds = time.process_time() - started
grown = (peak_memory_bytes() - before) / 1e6
print(json.dumps([told, seconds, grown]))
"""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_a_second_and_100_megabytes(name: str, tmp_path: Path) -> None:
    text, words = ATTACKS[name]
    (tmp_path / "attack.yaml").write_text(text)
    done = run_python("-c", LOAD, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    messages, seconds, grown_mb = json.loads(done.stdout)
    assert words in messages
    assert seconds < 2  # one on an idle machine
    assert grown_mb < 100
    assert [path.name for path in tmp_path.iterdir()] == ["attack.yaml"]
