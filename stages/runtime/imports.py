"""Which modules of the project importing one imports, told from the source: nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the project


def imported_names(source: str) -> set[str]:
    """The dotted names that a source imports, inside functions too; of ``from a import b`` both ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reached_modules(module: str, leave_out: frozenset[str] = frozenset(), root: Path = ROOT) -> dict[str, Path]:
    """The project's modules below root that importing one imports, itself included: their files by dotted name, sorted.

    leave_out: modules that are neither listed nor followed. A package without code of its own is not listed.
    """
    seen: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = source_path(name, root)
        if name in seen or name in leave_out or not path:
            continue
        seen[name] = path
        waiting += imported_names(path.read_text(encoding="utf-8"))
        waiting.append(name.rpartition(".")[0])  # its package runs first
    return dict(sorted(seen.items()))


def source_path(name: str, root: Path) -> Path | None:
    """The file of a module, or of a package that has code of its own; None where there is neither."""
    place = root.joinpath(*name.split("."))
    found = (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())
    return next((path for path in found if path.name != "__init__.py" or path.stat().st_size), None)


def modules_of(folder: str, root: Path = ROOT) -> Iterator[str]:
    """The dotted name of every module in a folder of the project, sorted."""
    for path in sorted((root / folder).rglob("*.py")):
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(root).with_suffix("").parts)
