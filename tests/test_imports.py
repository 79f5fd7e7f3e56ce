"""Imports run one way: each package knows those before it in the stream, and no module is in a circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Every package may import the modules at the root of uic_core that import no package; these import some themselves:
ABOVE = {
    "recipe": {"models"},
    "config": {"recipe", "data", "methods", "evaluations"},
    "protocol": {"recipe", "data", "methods", "evaluations"},
    "checkpoint": {"recipe", "models", "methods", "run"},
}
MAY_IMPORT = {
    "": set(),
    "run": set(),
    "models": set(),
    "data": {"run", "recipe"},
    "methods": {"run", "recipe", "data"},
    "evaluations": {"recipe", "models", "methods"},
    **ABOVE,
    "pretrain": {"run", "recipe", "data", "models", "methods", "checkpoint"},
    "evaluate": {"run", "recipe", "data", "models", "evaluations", "checkpoint"},
    "openmmlab": {"run", "recipe", "data", "models", "evaluations", "checkpoint"},
    "report": {"run", "recipe", "data", "evaluations", "config"},
    "overview": {
        "run", "recipe", "data", "models", "methods", "evaluations", "pretrain", "evaluate", "openmmlab", "report",
        "config", "checkpoint",
    },
}  # fmt: skip


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted((ROOT / "uic_core").rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of uic_core that a module imports when it runs: what is only for the type checker does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys() - {"uic_core"}


def package(module: str) -> str:
    """The package of a module below uic_core; '' at its root, or the module's own name if it is one of ABOVE."""
    parts = module.split(".")
    if parts[-1] in ABOVE and len(parts) == 2:
        return parts[-1]
    is_package = MODULES[module].name == "__init__.py"
    return parts[1] if len(parts) > 2 or (is_package and len(parts) == 2) else ""


def test_every_package_has_its_place() -> None:
    assert {package(module) for module in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_package_imports_only_those_before_it(name: str) -> None:
    against = {
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if package(module) == name
        for other in imported(path)
        if package(other) not in {"", name} | MAY_IMPORT[name]
    }
    assert not against


def test_no_module_is_in_a_circle() -> None:
    # A package's __init__ names what is in it; only what a module imports by name counts.
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    for module, others in graph.items():
        graph[module] = {
            other for other in others if not (MODULES[other].name == "__init__.py" and module.startswith(f"{other}."))
        }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
