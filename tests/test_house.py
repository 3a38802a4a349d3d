"""Imports point one way, names that are documented exist, and the package speaks of itself alone."""

import ast
from pathlib import Path

import pytest

import quasitile

SOURCE = Path(quasitile.__file__).parent
# A folder may use those before it, never those after it (README.md, Where things are).
ORDER = (
    "errors", "settings", "progress", "folders", "codec", "checkpoint", "runtime", "compress", "reading", "evaluate", "align",
    "adapt", "baselines", "report", "recipe", "run", "cli",
)  # fmt: skip
FREE_OF_TORCH = ("reading", "report")


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    own = part_of(path)
    if own == "__init__":
        return
    assert own in ORDER, f"{own} has no place in the order"
    for module in imported(path):
        name = module.split(".")
        if name[0] == "quasitile" and len(name) > 1:
            assert ORDER.index(name[1]) <= ORDER.index(own), f"{own} imports {module}"
        if own in FREE_OF_TORCH:
            assert name[0] not in ("torch", "transformers"), f"{own} imports {module}"


def test_the_report_uses_no_other_stage():
    for path in (SOURCE / "report").rglob("*.py"):
        used = {m.split(".")[1] for m in imported(path) if m.startswith("quasitile.")}
        assert used <= {"errors", "settings", "progress", "folders", "report"}, path


def test_only_the_checkpoint_opens_weight_files():
    for path in SOURCE.rglob("*.py"):
        if part_of(path) != "checkpoint":
            assert not any(module.startswith("safetensors") for module in imported(path)), path


def test_every_public_name_exists():
    assert all(hasattr(quasitile, name) for name in quasitile.__all__)
