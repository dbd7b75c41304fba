"""First-party imports, read from the source: who imports whom, and all that a module needs."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "stages")
STAGES = ("download", "tokenize", "train", "evaluate", "sample", "report")


def modules() -> list[Path]:
    """All modules of the product, relative to the root."""
    found = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 50, "the walk over the source found too little"
    return found


@cache
def imported_by(module: Path) -> frozenset[Path]:
    """The first-party modules that `module` imports anywhere in its text, functions included."""
    found: set[Path] = set()
    for name in _names(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if name.partition(".")[0] in PACKAGES:
            path = Path(*name.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py")):
                if (ROOT / candidate).is_file():
                    found.add(candidate)
                    break
            else:
                raise AssertionError(f"{module} imports {name}, which is no module here")
    return frozenset(path for path in found if path.name != "__init__.py")


def third_party_of(module: Path) -> set[str]:
    """The top-level names of everything else that `module` imports."""
    names = _names(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    return {name.partition(".")[0] for name in names} - set(PACKAGES)


def needed_by(module: Path, leave_out: frozenset[Path] = frozenset()) -> set[Path]:
    """`module` and all that it imports, directly or not, without `leave_out` and what only those import."""
    seen: set[Path] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in seen and current not in leave_out:
            seen.add(current)
            waiting += imported_by(current)
    return seen


def _names(tree: ast.AST) -> Iterator[str]:
    """Every imported module, and for `from a import b` also a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
