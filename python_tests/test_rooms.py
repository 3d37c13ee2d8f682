"""The order of imports: a room imports from rooms to its left alone, and no files import each other
in a circle.

CONTRIBUTING.md shows the order and says what each room is for.
"""

import ast
from pathlib import Path

import spanbert_ext

PACKAGE = Path(spanbert_ext.__file__).parent
ORDER = (
    ("errors", "settings", "files", "device", "threads", "text", "records"),
    ("ops",),
    ("masking", "model"),
    ("weights",),
    ("data",),
    ("training",),
    ("tasks", "filling"),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# The package itself, which imports rooms on first use alone, and what is no room.
FREE = ("", "__main__", "_lazy", "_moved")


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return names


def imports(path: Path, known: set[str], later: bool) -> set[str]:
    """Modules of the package that a file imports: at once, or (`later`) inside functions too."""
    found, todo = set(), list(ast.parse(path.read_text("utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not later:
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        below = {t.removeprefix("spanbert_ext.") for t in targets if t.startswith("spanbert_ext.")}
        found |= below & known
    return found


def test_every_file_has_a_room():
    rooms = {name.split(".")[0] for name in modules()}
    assert rooms == {*RANK, *FREE}


def test_imports_lead_to_the_left():
    names = modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in names.items()
        if name not in FREE
        for other in imports(path, set(names) - set(FREE), later=True)
        if RANK[other.split(".")[0]] > RANK[name.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other():
    names = modules()
    graph = {name: imports(path, set(names), later=False) - {name} for name, path in names.items()}
    while graph:
        leaves = {name for name, others in graph.items() if not others & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}
