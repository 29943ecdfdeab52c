# SPDX-License-Identifier: Apache-2.0
"""The shape of the house in figures, from its source as text: `python -m tests.figures [--against OTHER/src/oumi]`.

Nothing of the source is imported, so any checkout can be measured, and two put side by side. Only `--trace` runs it,
for one step, see `row_trace.py`.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import keyword
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median

from tests.row_trace import trace_row

Figures = dict[str, float]
"""Figures by their names, in the order of the table."""

SOURCE = Path(__file__).resolve().parents[1] / "src" / "oumi"
MAX_HOPS, MAX_STORY_LINES = 7, 500
NUM_SHOWN_NAMES = 10
VAGUE_WORDS = {
    "one", "ones", "found", "made", "told", "tells", "asked", "given", "wanted", "taken", "known", "said", "whole",
    "seen", "what",
}  # fmt: skip
TRAINER_NAMES = {
    "OUMI", "TRL_SFT", "TRL_DPO", "TRL_KTO", "TRL_ORPO", "TRL_CPO", "TRL_GRPO", "TRL_GKD", "TRL_GOLD", "HF",
    "VERL_GRPO",
}  # fmt: skip
STORY_LINE = re.compile(r"^\| \d \| `([\w/.]+)` \| .* \| \d+ \|$", re.MULTILINE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_DIRECTIVE = re.compile(r"^# ?(SPDX-License-Identifier: .*|noqa\b[^#]*|type: ignore\b[^#]*|fmt: ?\w+|pragma: [^#]*)")
_NAMESPACES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Module:
    """A file of the source, parsed."""

    path: PurePosixPath
    """Relative to the source."""
    name: str
    """As an import names it."""
    tree: ast.Module
    tokens: Sequence[tokenize.TokenInfo]
    num_lines: int

    @property
    def room(self) -> str:
        """The folder of the file, relative to the source."""
        return str(self.path.parent)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Yields the functions, methods and nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def load_modules(source: Path) -> list[Module]:
    """Returns every Python file below a folder that is a package, by path."""
    modules = []
    for file in sorted(source.rglob("*.py")):
        path, text = PurePosixPath(file.relative_to(source).as_posix()), file.read_text(encoding="utf-8")
        parts = [source.name, *path.with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        modules.append(Module(path, name, ast.parse(text), tokens, len(text.splitlines())))
    return modules


def measure(source: Path, traces: bool = False) -> dict[str, Figures]:
    """Returns all figures of a source, by section.

    Args:
        source: Folder of the package, `src/oumi` of a checkout.
        traces: Also run the checkout for one step and follow a row.
    """
    modules = load_modules(source)
    sections = {
        "files": count_files(modules),
        "functions": count_functions(modules),
        "comments": count_comments(modules),
        "vague names": count_vague_names(modules),
        "from `oumi train` to `optimizer.step()`": count_story(source),
        "trainers named in decisions": count_trainer_names(modules),
        "layers": count_layers(modules),
    }
    if traces:
        sections["way of a row from file to batch"] = trace_row(source.resolve().parents[1])
    return sections


def count_files(modules: Sequence[Module]) -> Figures:
    """Returns how many files, lines and rooms there are; empty files have no part in the distribution of lines."""
    return {
        "files": len(modules),
        "lines": sum(module.num_lines for module in modules),
        **_distribution("lines of a file", [module.num_lines for module in modules if module.num_lines]),
        "rooms (folders with Python files)": len({module.room for module in modules}),
    }


def count_functions(modules: Sequence[Module]) -> Figures:
    """Returns how many functions there are, how long they are, and how many have a single use.

    A use is a name or an attribute that is read; an import is none. Of a name that several functions have, it is not
    known which is meant, so those count as used more than once.
    """
    functions = [function for module in modules for function in module.functions()]
    definitions = Counter(function.name for function in functions)
    uses = Counter(name for module in modules for name in _names_read(module.tree))
    used_once = [name for name, count in definitions.items() if count == 1 and uses[name] == 1]
    num_lines = sum(module.num_lines for module in modules)
    return {
        "functions": len(functions),
        "functions per 1,000 lines": _ratio(1000 * len(functions), num_lines),
        **_distribution("lines of a function", [(node.end_lineno or 0) - node.lineno + 1 for node in functions]),
        "used once, % of functions": _ratio(100 * len(used_once), len(functions)),
        "used once and private, % of functions": _ratio(
            100 * sum(name.startswith("_") for name in used_once), len(functions)
        ),
    }


def count_comments(modules: Sequence[Module]) -> Figures:
    """Returns the share of lines that have a comment, and of lines of docstrings, those under a field included.

    A licence line and a directive (`noqa`, `type: ignore`, `fmt`) count only where a reason follows it.
    """
    num_lines = sum(module.num_lines for module in modules)
    comments = docstrings = 0
    for module in modules:
        comments += len({token.start[0] for token in module.tokens if _is_comment(token)})
        docstrings += sum((node.end_lineno or 0) - node.lineno + 1 for node in _docstrings(module.tree))
    return {
        "lines with a comment": comments,
        "lines with a comment, % of lines": _ratio(100 * comments, num_lines),
        "lines of docstrings, % of lines": _ratio(100 * docstrings, num_lines),
    }


def count_vague_names(modules: Sequence[Module]) -> Figures:
    """Returns how many identifiers per 1,000 have a vague word in them, and the most frequent of those.

    Each place where an identifier stands counts, but for those inside f-strings. `one_row` and `OneRow` have one.
    """
    names = [
        token.string
        for module in modules
        for token in module.tokens
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    ]
    vague = Counter(name for name in names if VAGUE_WORDS & words_of(name))
    return {
        "identifiers": len(names),
        "vague, per 1,000 identifiers": _ratio(1000 * vague.total(), len(names)),
        **{f"  {name}": count for name, count in vague.most_common(NUM_SHOWN_NAMES)},
    }


def words_of(name: str) -> set[str]:
    """Returns the words of an identifier in snake_case or CamelCase."""
    return {word.lower() for word in _WORD.findall(name)}


def count_story(source: Path) -> Figures:
    """Returns the hops and lines from the command to the step, by the table in CONTRIBUTING.md; none without it."""
    page = source.resolve().parents[1] / "CONTRIBUTING.md"
    files = STORY_LINE.findall(page.read_text(encoding="utf-8")) if page.exists() else []
    if not files:
        return {}
    return {
        f"hops ({MAX_HOPS} allowed)": len(files),
        f"lines ({MAX_STORY_LINES} allowed)": sum(
            len((source / file).read_text(encoding="utf-8").splitlines()) for file in files
        ),
    }


def count_trainer_names(modules: Sequence[Module]) -> Figures:
    """Returns how often a decision names a trainer, in all and by file.

    Counted are members of `TrainerType`, and names of trainers as text in comparisons, `in` tests, keys of a dict,
    members of a set or a tuple, and cases of a match. The definition of the enum does not count; the same word for
    something else does, such as the package "oumi" in a list of packages.
    """
    counts = {str(module.path): len(_trainer_names(module.tree)) for module in modules}
    by_file = Counter({path: count for path, count in counts.items() if count})
    return {
        "times": by_file.total(),
        "files": len(by_file),
        **{f"  {path}": count for path, count in by_file.most_common()},
    }


def count_layers(modules: Sequence[Module]) -> Figures:
    """Returns the imports from room to room, and how much of the house is in a circle of them.

    For circles, a module beside rooms is a room of its own: `core/train.py` is above `core/data`, `core/errors.py`
    below it. What is between two circles counts as in one.
    """
    names = {module.name for module in modules}
    rooms = {module.name: module.room for module in modules}
    folders = {str(parent) for module in modules for parent in module.path.parent.parents}
    units = {name: name if room in folders else room for name, room in rooms.items()}
    edges = {(module.name, target) for module in modules for target in imports_of(module, names)}
    return {
        "imports from room to room": len({(rooms[a], rooms[b]) for a, b in edges if rooms[a] != rooms[b]}),
        "modules in a circle": len(in_circles(edges)),
        "rooms in a circle": len(in_circles({(units[a], units[b]) for a, b in edges if units[a] != units[b]})),
    }


def imports_of(module: Module, names: set[str]) -> set[str]:
    """Returns which of the modules `names` a module imports, inside functions too, but not for types alone."""
    package = module.name.partition(".")[0]
    for_types = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    targets: set[str] = set()
    for node in ast.walk(module.tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            members = {f"{base}.{alias.name}" for alias in node.names}
            targets |= members & names or {base}
    return targets & names - {package, module.name}


def in_circles(edges: set[tuple[str, str]]) -> set[str]:
    """Returns the nodes on a circle of directed edges, or between two circles."""
    while True:
        inner = {a for a, _ in edges} & {b for _, b in edges}
        kept = {(a, b) for a, b in edges if a in inner and b in inner}
        if kept == edges:
            return inner
        edges = kept


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = module.path.name == "__init__.py"
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def _trainer_names(tree: ast.Module) -> set[int]:
    """Returns the nodes, by their ids, that name a trainer in a decision."""
    definitions = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "TrainerType"]
    excluded = {id(inner) for node in definitions for inner in ast.walk(node)}
    nodes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "TrainerType":
            nodes.add(id(node))
        nodes |= {id(inner) for inner in _decided(node) if _is_trainer_name(inner)}
    return nodes - excluded


def _decided(node: ast.AST) -> Iterator[ast.expr | None]:
    """Yields the values that a node compares, has as its keys, or has as its members."""
    match node:
        case ast.Compare(left=left, comparators=comparators):
            yield from (left, *comparators)
            for value in comparators:
                yield from value.elts if isinstance(value, ast.List) else ()
        case ast.Dict(keys=keys):
            yield from keys
        case ast.Set(elts=members) | ast.Tuple(elts=members):
            yield from members
        case ast.MatchValue(value=value):
            yield value


def _is_trainer_name(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.upper() in TRAINER_NAMES


def _names_read(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def _is_comment(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.COMMENT and bool(_DIRECTIVE.sub("", token.string).strip("# "))


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    for namespace in ast.walk(tree):
        if isinstance(namespace, _NAMESPACES):
            for node in namespace.body:
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    yield from [node] if isinstance(node.value.value, str) else []


def _distribution(name: str, values: Sequence[int]) -> Figures:
    """Returns the median, the 90th percentile (by nearest rank) and the maximum of values, zeros if there are none."""
    ordered = sorted(values) or [0]
    return {
        f"{name}, median": median(ordered),
        f"{name}, p90": ordered[math.ceil(0.9 * len(ordered)) - 1],
        f"{name}, max": ordered[-1],
    }


def _ratio(numerator: float, denominator: float) -> float:
    return round(numerator / denominator, 2) if denominator else 0.0


def table(columns: Sequence[dict[str, Figures]]) -> str:
    """Returns the figures of one source or more as text, a column each."""
    sections = dict.fromkeys(section for column in columns for section in column)
    lines = []
    for section in sections:
        lines.append(f"\n{section}")
        parts = [column.get(section, {}) for column in columns]
        for name in dict.fromkeys(name for part in parts for name in part):
            cells = [f"{part[name]:,.10g}" if name in part else "-" for part in parts]
            lines.append(f"  {name:<56}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines).lstrip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description="Measure the shape of the source.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the package, this checkout's by default")
    parser.add_argument("--against", type=Path, help="a second source, shown in a second column")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with an object for each source")
    parser.add_argument("--trace", action="store_true", help="also run one step and follow a row from file to batch")
    arguments = parser.parse_args()
    sources = [source for source in (arguments.source, arguments.against) if source is not None]
    columns = [measure(source, arguments.trace) for source in sources]
    print(json.dumps(columns, indent=1) if arguments.json else table(columns))


if __name__ == "__main__":
    main()
