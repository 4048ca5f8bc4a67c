"""What may import what: `import packedbag` is light, modules keep to their ranks, optional libraries to their files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "packedbag"
HEAVY = ("torch", "cupy", "matplotlib")

#: A module imports strictly lower ranks, or its own folder. A new folder or top-level module needs a row here.
RANKS = {
    "core": 0,
    "backends": 1,
    "table": 2,
    "ops": 2,
    "io": 3,
    "nn": 3,
    "optim": 3,
    "serving": 3,
    "adapters": 4,
    "distributed": 4,
    "report": 5,
    "recsys": 6,
    "cli": 7,
    "__main__": 8,
}
#: These two only re-export; they have no rank, and nothing but the package's users imports from them.
FACADES = ("packedbag", "packedbag.functional")


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of the module at ``path``, where ``root`` is the folder packedbag."""
    parts = ("packedbag", *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_import_call(node: ast.AST) -> bool:
    """Say whether ``node`` is ``import_module(...)`` or ``__import__(...)``, however spelled."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def is_dotted_name(value: object) -> bool:
    """Say whether ``value`` is a string that names something in packedbag."""
    return isinstance(value, str) and value.startswith("packedbag.") and value.replace(".", "_").isidentifier()


def imported(source: str, name: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that module ``name`` imports, at any depth of nesting.

    ``from package import thing`` yields ``package.thing``: the thing may be a module. Relative imports are
    resolved. In a file that imports by name, every string that is a dotted packedbag name counts as one.
    """
    tree = ast.parse(source)
    folder = name if is_package else name.rpartition(".")[0]
    by_name = any(is_import_call(node) for node in ast.walk(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = folder.split(".")[: len(folder.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif is_import_call(node) and isinstance(node, ast.Call) and node.args:
            if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                target = node.args[0].value
                level = len(target) - len(target.lstrip("."))
                yield node.lineno, target if not level else f"{folder}.{target.lstrip('.')}"
        elif by_name and isinstance(node, ast.Constant) and is_dotted_name(node.value):
            yield node.lineno, str(node.value)


def unit_of(dotted: str) -> str:
    """Return the folder or top-level module that ``packedbag.<unit>...`` lies in; "" for packedbag itself."""
    return [*dotted.split("."), ""][1]


def rank_violations(source: str, name: str, *, is_package: bool = False) -> list[str]:
    """Return a line for each import in module ``name`` that its rank forbids."""
    own = unit_of(name)
    if own not in RANKS:
        return [f"{name}: {own!r} has no rank; give it a row in RANKS and in the design"]
    found = []
    for line, target in imported(source, name, is_package=is_package):
        if target.split(".")[0] != "packedbag":
            continue
        unit = unit_of(target)
        if unit == own or target == "packedbag.__version__":
            continue
        if unit not in RANKS:
            found.append(f"{name}:{line} imports {target}; import from the module that defines it, not from a facade")
        elif RANKS[unit] >= RANKS[own]:
            found.append(f"{name}:{line} (rank {RANKS[own]}) imports {target} (rank {RANKS[unit]})")
    return found


def package_modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_import_in_the_package_keeps_to_the_ranks() -> None:
    violations = []
    for path in package_modules():
        name = module_name(path, PACKAGE)
        if name not in FACADES:
            violations += rank_violations(path.read_text(), name, is_package=path.name == "__init__.py")
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ("from packedbag.ops.functional import embedding_bag", "packedbag.ops.functional.embedding_bag (rank 2)"),
        ("import packedbag.nn", "packedbag.nn (rank 3)"),
        ("from packedbag import optim", "packedbag.optim (rank 3)"),
        ("from ..table import PackedTable", "packedbag.table.PackedTable (rank 2)"),
        ("from .. import table", "packedbag.table (rank 2)"),
        ("def f():\n    from packedbag.cli import app", "packedbag.cli.app (rank 7)"),
        ("if TYPE_CHECKING:\n    import packedbag.report.memory", "packedbag.report.memory (rank 5)"),
        ("importlib.import_module('packedbag.recsys.model')", "packedbag.recsys.model (rank 6)"),
        ("import_module('packedbag.io')", "packedbag.io (rank 3)"),
        ("__import__('packedbag.serving')", "packedbag.serving (rank 3)"),
        ("HOMES = ('packedbag.nn.bag',)\nimportlib.import_module(HOMES[0])", "packedbag.nn.bag (rank 3)"),
        ("from packedbag import PackedTable", "not from a facade"),
        ("import packedbag", "not from a facade"),
    ],
)
def test_a_planted_import_of_a_higher_rank_is_found(planted: str, seen: str) -> None:
    violations = rank_violations(planted, "packedbag.backends.planted")
    assert len(violations) >= 1
    assert seen in violations[0]


@pytest.mark.parametrize(
    "allowed",
    [
        "from packedbag.core.errors import ArgumentError",
        "from packedbag.backends.registry import select",
        "from . import registry",
        "from .registry import select",
        "from packedbag import __version__",
        "import torch\nimport numpy as np",
        'NOTE = "packedbag.nn is above this module"',
    ],
)
def test_an_import_of_a_lower_rank_or_the_own_folder_passes(allowed: str) -> None:
    assert rank_violations(allowed, "packedbag.backends.planted") == []


def test_a_folder_without_a_rank_is_reported() -> None:
    assert "no rank" in rank_violations("", "packedbag.novelty.thing")[0]


def test_a_relative_import_in_a_package_counts_from_the_package() -> None:
    targets = [target for _, target in imported("from . import b", "packedbag.core", is_package=True)]
    assert targets == ["packedbag.core.b"]


@pytest.mark.parametrize("facade", ["__init__.py", "functional.py"])
def test_a_facade_defines_nothing_but_the_names_it_passes_on(facade: str) -> None:
    tree = ast.parse((PACKAGE / facade).read_text())
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert classes == []
    assert set(functions) <= {"__getattr__", "__dir__"}


def heavy_after(statement: str) -> list[str]:
    """Run ``statement`` in a fresh interpreter and return which of HEAVY it imported."""
    probe = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import packedbag",
        "import packedbag.core.layout, packedbag.core.bags, packedbag.core.modes, packedbag.core.philox",
        "import packedbag; dir(packedbag); packedbag.__version__",
        "import packedbag; packedbag.backends.available",
    ],
)
def test_importing_packedbag_imports_neither_torch_nor_cupy_nor_matplotlib(statement: str) -> None:
    assert heavy_after(statement) == []


def test_a_table_reduces_bags_without_torch() -> None:
    use = (
        "import numpy, packedbag\n"
        "table = packedbag.PackedTable(numpy.array([[7], [1]], numpy.uint32), 4)\n"
        "assert table.bag(numpy.array([[0, 1]])).tolist() == [[2.0, 0.0, 0.0, -2.0]]"
    )
    assert heavy_after(use) == []


def test_the_probe_for_light_imports_can_fail() -> None:
    assert heavy_after("import packedbag.functional") == ["torch"]
    assert heavy_after("import packedbag, torch") == ["torch"]


def outer_imports(source: str) -> set[str]:
    """Return the top-level names of the libraries that a module imports when it is itself imported."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        pending += ast.iter_child_nodes(node)
    return found - set(sys.stdlib_module_names) - {"packedbag", ""}


def allowed_outer_imports(path: Path) -> set[str]:
    """Return which libraries the module at ``path`` may import without being used."""
    unit = path.relative_to(PACKAGE).parts[0]
    if unit in ("__init__.py", "core", "table.py"):
        return {"numpy"}
    if unit == "backends":
        return {"numpy", "torch"} if path.name.startswith(("eager", "cupy")) else {"numpy"}
    if path.relative_to(PACKAGE).parts[:2] == ("adapters", "torchrec") or path == PACKAGE / "recsys/sharded_model.py":
        return {"numpy", "torch", "torchrec"}  # whoever imports these has asked for TorchRec
    if unit == "cli":
        return {"numpy", "torch", "typer", "rich", "click"}
    return {"numpy", "torch"}


def test_optional_libraries_are_imported_on_use_only() -> None:
    found = {
        str(path.relative_to(PACKAGE)): sorted(outer_imports(path.read_text()) - allowed_outer_imports(path))
        for path in package_modules()
    }
    assert {name: libraries for name, libraries in found.items() if libraries} == {}


def test_the_search_for_outer_imports_can_find_one() -> None:
    source = "import os\ntry:\n    import cupy\nexcept ImportError:\n    pass\ndef f():\n    import matplotlib\n"
    assert outer_imports(source) == {"cupy"}
