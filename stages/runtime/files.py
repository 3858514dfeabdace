"""Files that are complete or absent, and what identifies their bytes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

BLOCK = 2**20  # bytes read at once


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary name beside path to write to; it becomes path where the block ends well, else it is deleted."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under a temporary name and rename it; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write metrics in the order they were given."""
    write_text(path, json_text(values))


def json_text(values: Mapping[str, object]) -> str:
    """What ``write_json`` writes."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write an unquoted TSV, row by row as they come; values hold neither tabs nor line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in chain([header], rows))


def repository() -> Path:
    """The one that stays: an experiment runs in a folder of its own, which is deleted when it fails."""
    return Path(os.environ.get("DVC_ROOT", "."))


def file_digest(path: Path, algorithm: str = "sha256", advance: Callable[[int], object] = lambda size: None) -> str:
    """A file's digest in hex; advance is told the bytes of each block that was read."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def files_digest(files: Mapping[str, Path]) -> str:
    """SHA-256 over files and the names they go by: 64 hex digits."""
    lines = [f"{name} {file_digest(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link, which costs nothing, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
