"""A Common Voice release as it lies on disk, a .tar.gz or a folder: its tables, and the clips that are asked for.

Both kinds offer ``tables`` and ``fetch``. A release is ``cv-corpus-<version>/<locale>/{*.tsv, clips/*}``.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from stages.corpora.selection import Problem
from stages.runtime.errors import UserError
from stages.runtime.progress import ProgressBar

TABLES = ("train", "dev", "test", "validated", "other", "invalidated")
EXPECTED = "expected a Common Voice release: cv-corpus-<version>/<locale>/ with train.tsv, dev.tsv, test.tsv and clips/"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
BLOCK = 2**20  # bytes read at once
KINDS = {b"\x1f\x8b": "gzip", b"PK": "a zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"<": "a web page"}


def data_folder() -> Path:
    """Where a user's data lies: $VISKA_DATA, or viska in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("VISKA_DATA") or cache / "viska").expanduser()


def locate(name: str, advice: str) -> Path:
    """The file or folder of this name among the user's data; raises UserError, with the advice, where it is not."""
    path = data_folder() / Path(name).expanduser()
    if path.exists():
        return path
    folder = path.parent
    names = sorted(item.name for item in folder.iterdir() if item.name[0] != ".") if folder.is_dir() else None
    there = "no such folder" if names is None else ", ".join(names[:8]) + ", …" * (len(names) > 8) or "nothing"
    raise UserError(
        f"{path} is missing (found in {folder}: {there}). {advice}, or set VISKA_DATA to the folder where it lies"
    )


def verify(path: Path, sha256: str) -> None:
    """Raises UserError where a file is not the one that was named."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, and sha256 is that of a file: set it to null")
    digest = hashlib.sha256()
    with opened(path, "verify") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) has the sha256 {digest.hexdigest()}, expected {sha256}:"
            " download it again, or change sha256 if this is the archive you mean"
        )


@contextmanager
def opened(path: Path, doing: str) -> Iterator[BinaryIO]:
    """A file to be read once, with a bar over its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file, ProgressBar.wrapattr(file, "read", total=size, desc=doing) as counted:
        yield counted


def find_root(path: Path, roots: Iterable[PurePosixPath], locale: str | None) -> PurePosixPath:
    """The one folder with tables, or that of the locale; raises UserError where it is none, or not one."""
    roots = sorted(roots)
    fitting = [root for root in roots if locale in (None, root.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(root.name or "one without a name" for root in fitting or roots)
    if fitting:
        raise UserError(f"{path} holds several locales ({names}): set locale to one of them")
    raise UserError(f"{path} holds the locale {names}, and locale is {locale}: name another archive, or set it to null")


def missing_table(path: Path, name: str, found: Iterable[str]) -> UserError:
    return UserError(f"{path} holds no {name}.tsv; it holds {', '.join(f'{table}.tsv' for table in sorted(found))}")


def walk(stream: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, and at the last one all that follows: the stream's checksum shows what was cut off."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:
        while member := tar.next():
            yield tar, member
            tar.members.clear()  # tarfile keeps them all: gigabytes for the largest locales
    while stream.read(BLOCK):
        pass


def copy(source: BinaryIO, target: Path) -> None:
    """Write a file under a temporary name first; raises UserError where there is no room, or no leave."""
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(source, file)
        part.replace(target)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None


def is_file(path: Path) -> bool:
    """Whether a file is there, also where a name is too long to ask."""
    try:
        return path.is_file()
    except OSError:
        return False


def copy_clips(folder: Path, wanted: dict[str, Path]) -> dict[str, Problem]:
    """Copy files below a folder to where they are wanted; returns the problems of the others."""
    problems: dict[str, Problem] = {}
    real = folder.resolve()
    for name, target in ProgressBar(wanted.items(), unit="clip", desc="copy"):
        # A table written on one system and files on another may spell å in two ways.
        spellings = [folder / name, *(folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
        source = next((path for path in spellings if is_file(path)), None)
        if source is None:
            problems[name] = "missing", "no such file"
        elif not source.resolve().is_relative_to(real):
            problems[name] = "outside the archive", f"{name} is a link that leads out"
        else:
            with source.open("rb") as file:
                copy(file, target)
    return problems


class Unpacked:
    """A release as a folder: that of one locale, or one or two levels above."""

    def __init__(self, path: Path, locale: str | None):
        self.path = path
        tables = [file for level in ("", "*/", "*/*/") for name in TABLES for file in path.glob(f"{level}{name}.tsv")]
        if not tables:
            names = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
            raise UserError(f"{path} holds no tables (found: {names}); {EXPECTED}")
        roots = {PurePosixPath(table.parent.resolve()) for table in tables}
        self.root = Path(find_root(path, roots, locale))

    def tables(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of the named tables; raises UserError where one is missing."""
        found = [table for table in TABLES if (self.root / f"{table}.tsv").is_file()]
        for name in names:
            if name not in found:
                raise missing_table(self.path, name, found)
        return {name: (self.root / f"{name}.tsv").read_bytes() for name in names}

    def fetch(self, wanted: dict[str, Path]) -> dict[str, Problem]:
        """Copy clips to where they are wanted; returns the problems of the others."""
        return copy_clips(self.root / "clips", wanted)


class Packed:
    """A release as a .tar.gz, which is read from its start each time: ``tables`` as far as needed, ``fetch`` whole."""

    def __init__(self, path: Path, locale: str | None):
        self.path, self.locale, self.root = path, locale, PurePosixPath()
        with path.open("rb") as file:
            head = file.read(16)
        kind = next((kind for start, kind in KINDS.items() if head.lstrip().startswith(start)), f"{head!r}")
        if kind != "gzip":
            found = f"starts as {kind}" if head else "is empty"
            raise UserError(f"{path} {found}, and is no .tar.gz; {EXPECTED}; in a .tar.gz or unpacked in a folder")

    @contextmanager
    def members(self, doing: str) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
        """The archive's members in order, each to be read before the next; raises UserError where it is damaged."""
        try:
            with opened(self.path, doing) as file, gzip.GzipFile(fileobj=file) as stream:
                yield walk(stream)
        except DAMAGED as error:
            size = self.path.stat().st_size
            raise UserError(
                f"{self.path} ({size} bytes) is no whole .tar.gz: {error}. {EXPECTED}; download it again"
            ) from None

    def tables(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of the named tables; raises UserError where they are not there, or not of the locale."""
        names, found, others = set(names), {}, []
        with self.members("tables") as members:
            for tar, member in members:
                path = PurePosixPath(member.name)
                if path.suffix == ".tsv" and path.stem in TABLES and member.isreg():
                    found.setdefault(path.parent, {})[path.stem] = tar.extractfile(member).read()
                    if self.locale in (None, path.parent.name) and names <= found[path.parent].keys():
                        break
                elif len(others) < 3:
                    others.append(member.name)
        if not found:
            raise UserError(f"{self.path} holds no tables (found: {', '.join(others) or 'nothing'}, …); {EXPECTED}")
        self.root = find_root(self.path, found, self.locale)
        for name in sorted(names - found[self.root].keys()):
            raise missing_table(self.path, name, found[self.root])
        return {name: found[self.root][name] for name in names}

    def fetch(self, wanted: dict[str, Path]) -> dict[str, Problem]:
        """Unpack clips to where they are wanted; returns the problems of the others."""
        clips = self.root / "clips"
        problems: dict[str, Problem] = dict.fromkeys(wanted, ("missing", "not in the archive"))
        places = {clips / name: name for name in wanted}
        with self.members("unpack") as members:
            for tar, member in members:
                name = places.get(PurePosixPath(member.name))
                if name is None:
                    continue
                if member.isreg():
                    copy(tar.extractfile(member), wanted[name])
                    problems.pop(name, None)
                else:
                    problems[name] = "outside the archive", "a link or a folder"
        return problems
