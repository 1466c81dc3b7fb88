"""Which room of the package imports which: the code's arrows are those of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mhclite"
PICTURE = ROOT / "docs" / "architecture.md"
HEADING = "## Which room may import which"


def allowed() -> dict[str, set[str]]:
    """Room -> rooms that it may import, from low to high: the code block under `HEADING`."""
    text = PICTURE.read_text()
    block = re.search(rf"^{HEADING}$.*?^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block, f"{PICTURE} has no code block ```text under the heading {HEADING!r}"
    rooms: dict[str, set[str]] = {}
    for line in block[1].splitlines():
        room, colon, others = line.partition(":")
        assert colon, f"{PICTURE}: {line!r} is not `room: rooms it may import`"
        rooms[room.strip()] = set(others.split())
    return rooms


class Imports(ast.NodeVisitor):
    """Modules of this package that a module imports; `at_load` leaves out those in functions."""

    def __init__(self, at_load: bool) -> None:
        self.at_load = at_load
        self.found: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
        assert node.module is not None
        self.found.add(node.module)
        self.found |= {f"{node.module}.{alias.name}" for alias in node.names}

    def visit_If(self, node: ast.If) -> None:
        """What only a type checker reads is no arrow."""
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
        for statement in node.orelse:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not self.at_load:
            self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        if not self.at_load:
            self.generic_visit(node)


@cache
def modules() -> dict[str, Path]:
    """Name of each module -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str, at_load: bool = False) -> frozenset[str]:
    """All names that a module imports, of any package."""
    visitor = Imports(at_load)
    visitor.visit(ast.parse(modules()[module].read_text()))
    return frozenset(visitor.found)


def of_this_package(module: str) -> set[str]:
    """Modules of this package that a module imports, anywhere in it."""
    return (imports(module) & modules().keys()) - {module, PACKAGE.name}


def room_of(module: str) -> str:
    """Top-level package or module; `__main__` and the package itself belong to the command line."""
    parts = module.split(".")
    return "cli" if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def arrows() -> Iterator[tuple[str, str, str, str]]:
    """(room, imported room, module, imported module)."""
    for module in modules():
        for other in of_this_package(module):
            if room_of(module) != room_of(other):
                yield room_of(module), room_of(other), module, other


def test_rooms_import_what_the_picture_allows_and_no_more() -> None:
    rooms, used = allowed(), {(room, target) for room, target, _, _ in arrows()}
    assert {room_of(module) for module in modules()} == rooms.keys(), (
        f"name them under {HEADING!r} of {PICTURE}, or remove them there"
    )
    refused = sorted(
        f"{module} imports {other}: {room} -> {target}"
        for room, target, module, other in arrows()
        if target not in rooms[room]
    )
    assert not refused, (
        f"not allowed by {PICTURE.name}, section {HEADING!r}. Move the code to the room that it "
        "belongs to, or hand it what it needs; only if the arrow is right, add it to the line of "
        "the room there:\n" + "\n".join(refused)
    )
    drawn = {(room, target) for room, targets in rooms.items() for target in targets}
    assert drawn <= used, f"no longer needed, remove from {PICTURE}: {sorted(drawn - used)}"
    order = list(rooms)  # so there is no circle of rooms
    upward = [f"{r} -> {t}" for r, t in drawn if order.index(t) >= order.index(r)]
    assert not upward, f"{PICTURE}: a room imports only rooms of the lines above: {upward}"


def test_modules_import_one_another_in_no_circle() -> None:
    try:
        TopologicalSorter({module: of_this_package(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


# What a room does without, also through what it imports, until a function is called.
WITHOUT = {
    "runs": {"torch", "pydantic", "mhclite.study", "mhclite.data", "mhclite.training"},
    "config": {"torch", "pydantic", "yaml"},
    "study": {"torch", "mhclite.training", "mhclite.tracking"},
}


def loaded(module: str) -> set[str]:
    """Everything that importing a module loads, as far as the source says it."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        package, dot, _ = name.rpartition(".")
        pending += [package] if dot else []  # its __init__ is loaded first
        pending += imports(name, at_load=True) if name in modules() else []
    return found


@pytest.mark.parametrize("room", WITHOUT)
def test_rooms_load_nothing_heavy(room: str) -> None:
    for module in (name for name in modules() if room_of(name) == room):
        heavy = {
            name
            for name in loaded(module)
            if any(name == banned or name.startswith(f"{banned}.") for banned in WITHOUT[room])
        }
        assert not heavy, f"importing {module} loads {sorted(heavy)}: import it where it is used"


def test_names_are_given_once() -> None:
    """Of modules and of public classes, so that a search for one finds it."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    classes = [
        node.name
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    names = Counter([path.stem for path in paths]) + Counter(classes)
    # The model's module, and what others call a sub-layer: the latter's name is a promise.
    assert {name for name, count in names.items() if count > 1} == {"SubLayer"}
