"""The user's data folder: where archives and recordings lie, and how their files are copied from it."""

import gzip
import os
import shutil
import unicodedata
from pathlib import Path
from typing import IO, NamedTuple

from stages.runtime.errors import UserError
from stages.runtime.files import written_aside
from stages.runtime.progress import ProgressBar


class Rejection(NamedTuple):
    """Why a clip cannot be used: the reason and detail of its Drop."""

    reason: str
    detail: str


def data_folder() -> Path:
    """Where a user's data lies: $VISKA_DATA, or viska in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("VISKA_DATA") or cache / "viska").expanduser()


def locate(name: str, advice: str) -> Path:
    """The file or folder of this name among the user's data; raises UserError, with the advice, where it is missing."""
    path = data_folder() / Path(name).expanduser()
    if path.exists():
        return path
    folder = path.parent
    names = sorted(item.name for item in folder.iterdir() if item.name[0] != ".") if folder.is_dir() else None
    found = "no such folder" if names is None else ", ".join(names[:8]) + ", …" * (len(names) > 8) or "nothing"
    raise UserError(
        f"{path} is missing (found in {folder}: {found}). {advice}, or set VISKA_DATA to the folder that contains it"
    )


def copy_stream(source: IO[bytes], target: Path) -> None:
    """Write what is left of a stream to a file, whole or not at all; raises UserError where it cannot be written."""
    try:
        with written_aside(target) as part, part.open("wb") as file:
            shutil.copyfileobj(source, file)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None


def copy_clips(folder: Path, wanted: dict[str, Path]) -> dict[str, Rejection]:
    """Copy files below a folder to where they are wanted; returns why the others cannot be had."""
    rejected: dict[str, Rejection] = {}
    real = folder.resolve()
    for name, target in ProgressBar(wanted.items(), unit="clip", desc="copy"):
        # A table written on one system and files on another may spell å in two ways.
        spellings = [folder / name, *(folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
        source = next((path for path in spellings if is_file(path)), None)
        if source is None:
            rejected[name] = Rejection("missing", "no such file")
        elif not source.resolve().is_relative_to(real):
            rejected[name] = Rejection("outside the archive", f"{name} is a link that leads out of it")
        else:
            with source.open("rb") as file:
                copy_stream(file, target)
    return rejected


def is_file(path: Path) -> bool:
    """Whether a file is there, also where a name is too long to ask."""
    try:
        return path.is_file()
    except OSError:
        return False
