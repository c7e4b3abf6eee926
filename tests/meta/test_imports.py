"""Imports run one way; the arrows are those of the design."""

import ast
from pathlib import Path

import pytest

import refquant

ROOT = Path(refquant.__file__).parent

# Each layer may import itself and what stands before it.
LAYERS = [
    {"errors"},
    {"arrays"},
    {"floats", "packing"},
    {"formats"},
    {"quantize", "kernels", "conformance", "checkpoints"},
    {"models"},
    {"calibration"},
    {"conversion"},
    {"evaluation"},
    {"audit"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imported_modules(source: str) -> set[str]:
    """The names inside refquant that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("refquant.")}


def backward_imports(module: str, source: str) -> set[str]:
    """What the module imports from a layer above its own, or from a neighbour in its own layer."""
    own = RANK[module]
    return {
        name
        for name in imported_modules(source)
        if name in RANK and name != module and (RANK[name] > own or (RANK[name] == own and module != "floats"))
    }


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.name != "__init__.py" or len(relative.parts) > 1:
            yield pytest.param(relative.parts[0].removesuffix(".py"), path.read_text(), id=str(relative))


@pytest.mark.parametrize(("module", "source"), list(modules()))
def test_no_import_runs_backward(module, source):
    assert module in RANK, f"{module} has no place among the layers"
    assert not backward_imports(module, source)


def test_an_arrow_that_runs_back_is_found():
    assert backward_imports("formats", "from refquant.models import load_model") == {"models"}
    assert backward_imports("formats", "def f():\n    import refquant.cli.app") == {"cli"}
    assert backward_imports("checkpoints", "from refquant import conformance") == {"conformance"}
    assert backward_imports("models", "from refquant.formats.base import Format\nimport numpy") == set()
