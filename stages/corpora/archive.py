"""A Common Voice release as it lies on disk, a .tar.gz or a folder: its tables, and the clips that are asked for.

Both kinds offer ``tables`` and ``fetch``. A release is ``cv-corpus-<version>/<locale>/{*.tsv, clips/*}``.
"""

import gzip
import tarfile
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar, cast

from stages.corpora.local import Rejection, copy_clips, copy_stream
from stages.runtime.errors import UserError
from stages.runtime.files import BLOCK, file_digest
from stages.runtime.progress import ProgressBar

TABLES = ("train", "dev", "test", "validated", "other", "invalidated")
EXPECTED = "expected a Common Voice release: cv-corpus-<version>/<locale>/ with train.tsv, dev.tsv, test.tsv and clips/"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
GZIP = b"\x1f\x8b"  # the first bytes
OTHERS = {b"PK": "a zip file", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file", b"<": "a web page"}

MAX_CLIP_BYTES = 64_000_000  # of an archive's clip: a minute at the highest rates that there are

Content = TypeVar("Content")
ReadTable = Callable[[str, IO[bytes]], Content]  # a table's name and its file -> what is wanted of it


class Member(NamedTuple):
    """A member of a tar. content: None where it is no plain file; size: bytes that it would have."""

    path: PurePosixPath
    size: int
    content: IO[bytes] | None


def verify_checksum(path: Path, sha256: str) -> None:
    """Raises UserError where a file is not the one that was named."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, and sha256 is the checksum of a file: set it to null")
    size = path.stat().st_size
    with ProgressBar(total=size, unit="B", unit_scale=True, desc="verify") as bar:
        found = file_digest(path, advance=bar.update)
    if found != sha256:
        raise UserError(
            f"{path} ({size} bytes) has the sha256 {found}, expected {sha256}:"
            " download it again, or change sha256 if this is the archive you mean"
        )


def find_locale(path: Path, roots: Iterable[PurePosixPath], locale: str | None) -> PurePosixPath:
    """Of the folders with tables the only one, or that of the locale; raises UserError where there is no such one."""
    roots = sorted(roots)
    fitting = [root for root in roots if locale in (None, root.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(root.name or "one without a name" for root in fitting or roots)
    if fitting:
        raise UserError(f"{path} contains several locales ({names}): set locale to one of them")
    raise UserError(
        f"{path} contains the locale {names}, and locale is {locale}: name another archive, or set it to null"
    )


def missing_table(path: Path, name: str, found: Iterable[str]) -> UserError:
    tables = ", ".join(f"{table}.tsv" for table in sorted(found))
    return UserError(f"{path} does not contain {name}.tsv; it contains {tables}")


def no_tables(path: Path, found: str) -> UserError:
    return UserError(f"{path} contains no tables (found: {found or 'nothing'}); {EXPECTED}")


class UnpackedRelease:
    """A release as a folder: that of one locale, or one or two levels above."""

    def __init__(self, path: Path, locale: str | None):
        self.path = path
        tables = [file for level in ("", "*/", "*/*/") for name in TABLES for file in path.glob(f"{level}{name}.tsv")]
        if not tables:
            raise no_tables(path, ", ".join(sorted(item.name for item in path.iterdir())[:5]))
        roots = {PurePosixPath(table.parent.resolve()) for table in tables}
        self.root = Path(find_locale(path, roots, locale))

    def tables(self, names: Iterable[str], read: ReadTable[Content]) -> dict[str, Content]:
        """What ``read`` makes of each of the named tables; raises UserError where one is missing."""
        found = [table for table in TABLES if (self.root / f"{table}.tsv").is_file()]
        contents = {}
        for name in names:
            if name not in found:
                raise missing_table(self.path, name, found)
            with (self.root / f"{name}.tsv").open("rb") as file:
                contents[name] = read(name, file)
        return contents

    def fetch(self, wanted: dict[str, Path]) -> dict[str, Rejection]:
        """Copy clips to where they are wanted; returns why the others cannot be had."""
        return copy_clips(self.root / "clips", wanted)


class PackedRelease:
    """A release as a .tar.gz, which is read from its start each time: ``tables`` as far as needed, ``fetch`` whole."""

    def __init__(self, path: Path, locale: str | None):
        self.path, self.locale, self.root = path, locale, PurePosixPath()
        with path.open("rb") as file:
            head = file.read(16)
        if not head.startswith(GZIP):
            kind = next((kind for start, kind in OTHERS.items() if head.lstrip().startswith(start)), f"{head!r}")
            found = f"starts like {kind}" if head else "is empty"
            raise UserError(f"{path} {found}, and is not a .tar.gz; {EXPECTED}; in a .tar.gz or unpacked in a folder")

    @contextmanager
    def members(self, description: str) -> Iterator[Iterator[Member]]:
        """The archive's members in order, each to be read before the next; raises UserError where it is damaged."""
        size = self.path.stat().st_size
        try:
            with (
                self.path.open("rb") as file,
                ProgressBar.wrapattr(file, "read", total=size, desc=description) as counted,
                gzip.open(cast(IO[bytes], counted)) as stream,
            ):
                yield tar_members(stream)
        except DAMAGED as error:
            raise UserError(
                f"{self.path} ({size} bytes) is not a complete .tar.gz: {error}. {EXPECTED}; download it again"
            ) from None

    def tables(self, names: Iterable[str], read: ReadTable[Content]) -> dict[str, Content]:
        """What ``read`` makes of each of the named tables; raises UserError where they are missing, or of another
        locale."""
        wanted = set(names)
        found: dict[PurePosixPath, dict[str, Content]] = defaultdict(dict)
        present: dict[PurePosixPath, set[str]] = defaultdict(set)
        others: list[str] = []
        with self.members("tables") as members:
            for path, _, content in members:
                if path.suffix == ".tsv" and path.stem in TABLES and content is not None:
                    present[path.parent].add(path.stem)
                    if path.stem in wanted and self.locale in (None, path.parent.name):
                        found[path.parent][path.stem] = read(path.stem, content)
                        if wanted <= found[path.parent].keys():
                            break
                elif len(others) < 3:
                    others.append(str(path))
        if not present:
            raise no_tables(self.path, ", ".join([*others, "…"]) if others else "")
        self.root = find_locale(self.path, present, self.locale)
        for name in sorted(wanted - found[self.root].keys()):
            raise missing_table(self.path, name, present[self.root])
        return found[self.root]

    def fetch(self, wanted: dict[str, Path]) -> dict[str, Rejection]:
        """Unpack clips to where they are wanted; returns why the others cannot be had."""
        rejected = {name: Rejection("missing", "not in the archive") for name in wanted}
        # A table written on one system and an archive on another may spell å in two ways.
        names = {unicodedata.normalize("NFC", str(self.root / "clips" / name)): name for name in wanted}
        with self.members("unpack") as members:
            for path, size, content in members:
                name = names.get(unicodedata.normalize("NFC", str(path)))
                if name is None:
                    continue
                if content is None:
                    rejected[name] = Rejection("outside the archive", "a link or a folder")
                elif size > MAX_CLIP_BYTES:
                    rejected[name] = Rejection("too large", f"{size:,} bytes")
                else:
                    copy_stream(content, wanted[name])
                    rejected.pop(name, None)
        return rejected


def tar_members(stream: gzip.GzipFile) -> Iterator[Member]:
    """The members of a tar, with their content where they are files; after the last one the stream is read to its end.

    There its checksum shows whether something was cut off.
    """
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:
        while member := tar.next():
            content = tar.extractfile(member) if member.isreg() else None
            yield Member(PurePosixPath(member.name), member.size, content)
            # tarfile keeps them all: gigabytes for the largest locales.
            tar.members.clear()  # type: ignore[attr-defined]  # its types leave the attribute out
    while stream.read(BLOCK):
        pass
