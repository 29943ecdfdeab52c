# SPDX-License-Identifier: Apache-2.0
"""Law 10: layers, cycles, sizes, and no torch where none is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "oumi"
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 6

# A module imports only from lower floors, or from its own room.
FLOORS = {
    "oumi.core.errors": 0, "oumi.core.log": 0, "oumi.core.types": 0, "oumi.embedded": 0, "oumi.core.system": 0.1,
    "oumi.core.registry": 0.2, "oumi.core.hub": 0.2, "oumi.core.recipes": 0.2,
    "oumi.core.configs": 1, "oumi.core.plan": 2, "oumi.core.distributed": 3, "oumi.core.batch": 3,
    "oumi.core.run": 4,
    "oumi.core.data": 5, "oumi.core.models": 5, "oumi.core.methods": 5, "oumi.core.optim": 5, "oumi.core.checkpoint": 5,
    "oumi.core.models.processors": 6,  # a former import path
    "oumi.core.engine": 6, "oumi.core.callbacks": 6, "oumi.core.monitoring": 6, "oumi.core.datasets": 6,
    "oumi.models": 6, "oumi.datasets": 7, "oumi.core.trainers": 7, "oumi.core.inspect": 8, "oumi.core.run_directory": 8,
    "oumi.core.model_card": 8,
    "oumi.core.results": 8.5, "oumi.core.launcher": 8.5, "oumi.launcher": 9,
    "oumi.core.train": 9, "oumi.performance": 9, "oumi.builders": 9,
    "oumi.train": 10, "oumi.cli": 10, "oumi.__main__": 11, "oumi": 12,
}  # fmt: skip
# The rooms of the data, in the order in which a row passes them; a data set also makes tokens of its elements.
DATA_ROOMS = ("ledger", "sources", "records", "tokenize", "store", "pipeline", "datasets", "checks")
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_name(module: str) -> str:
    return max((name for name in FLOORS if module == name or module.startswith(name + ".")), key=len)


def imports(path: Path) -> set[str]:
    """Returns the modules of ours that a file imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "oumi":
            modules |= {_target(node.module, name.name) for name in node.names}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names if name.name.split(".")[0] == "oumi"}
    return modules


def _target(module: str, name: str) -> str:
    inner = SOURCE.parent / Path(*module.split("."), name)
    return f"{module}.{name}" if inner.with_suffix(".py").exists() or inner.is_dir() else module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    own = floor_name(module_of(path))
    for imported in imports(path) - {"oumi"}:
        theirs = floor_name(imported)
        assert theirs == own or FLOORS[theirs] < FLOORS[own], f"{module_of(path)} imports {imported}"


@pytest.mark.parametrize("path", sorted((SOURCE / "core" / "data").rglob("*.py")), ids=lambda path: path.stem)
def test_the_rooms_of_the_data_are_passed_in_one_direction(path: Path) -> None:
    own = data_room(module_of(path))
    for imported in imports(path):
        if imported.startswith("oumi.core.data."):
            assert data_room(imported) <= own, f"{module_of(path)} imports {imported}"


def data_room(module: str) -> int:
    """Returns the place of a module's room among those of the data; what joins the rooms comes last."""
    name = [*module.split("."), ""][3]
    return DATA_ROOMS.index(name) if name in DATA_ROOMS else len(DATA_ROOMS)


def test_no_module_imports_itself_through_others() -> None:
    edges = {module_of(path): imports(path) - {"oumi"} for path in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for inner in edges.get(module, set()):
                visit(inner, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert not text or text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
            parameters = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
            # Options of a command are its documented surface, and a GPU's kernel takes its numbers one by one.
            is_free = "cli" in path.parts or any(
                ast.unparse(argument) == "triton.jit" for argument in node.decorator_list
            )
            assert is_free or len(parameters) <= MAX_PARAMETERS, f"{node.name} has {len(parameters)} parameters"


@pytest.mark.parametrize(
    "command",
    [
        "import oumi, oumi.core.configs",
        "import oumi.cli.main",
        "import oumi.core.plan.plan, oumi.core.plan.refusals, oumi.core.inspect",
        "import oumi.core.datasets",
        "import oumi.launcher, oumi.core.launcher.local",
    ],
)
def test_no_torch_is_loaded_before_it_is_needed(command: str) -> None:
    check = f"{command}; import sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]


def test_the_core_has_at_most_12_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 12


def test_the_way_to_the_optimizer_is_short_and_reported_rightly() -> None:
    table = re.findall(
        r"^\| \d \| `([\w/.]+)` \| .* \| (\d+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    counted = [(name, str(len((SOURCE / name).read_text().splitlines()))) for name, _ in table]
    assert table == counted
    assert len(table) <= 7
    assert sum(int(lines) for _, lines in table) < 500
