"""Small files, complete or absent."""

import json
from collections.abc import Iterable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under a temporary name and rename it; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, values: dict) -> None:
    """Write metrics in the order they were given."""
    write_text(path, json_text(values))


def json_text(values: dict) -> str:
    """What ``write_json`` writes."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write an unquoted TSV; values hold neither tabs nor line ends."""
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in [list(header), *rows]))
