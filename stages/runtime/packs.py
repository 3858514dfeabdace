"""Results kept for later runs, found by a digest of what they were made of: many in a file, a pack.

A pack is records, each a digest and its result, then their INDEX, then FOOTER. It is written aside, renamed and never
changed, so it is read without a lock. What is missing, cut or damaged is as if it had not been kept: packs may be
deleted at any time, by another process too.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from stages.runtime.files import written_aside

MAGIC = b"results1"
FOOTER = struct.Struct("<II8s")  # the number of records, the index's CRC-32, MAGIC
INDEX = np.dtype([("key", "<u8"), ("start", "<u8"), ("size", "<u4"), ("check", "<u4")])  # key: the digest's beginning


@dataclass(frozen=True)
class Packs:
    """The packs of a folder; with those of the folders beside it they take at most max_bytes.

    Small when handed to another process, which reads the index itself when it is first asked.
    """

    folder: Path
    max_bytes: int
    run: str = field(default_factory=lambda: uuid4().hex)  # a process reads the index once for each

    def find(self, digest: bytes) -> bytes | None:
        """The result that was kept under a digest, where it was there when this process was first asked."""
        index = read_indexes(self)
        key = np.uint64(key_of(digest))
        for at in range(*(int(np.searchsorted(index.keys, key, side)) for side in ("left", "right"))):
            path, row = index.paths[index.packs[at]], index.rows[at]
            with contextlib.suppress(OSError):
                with path.open("rb") as file:
                    file.seek(int(row["start"]))
                    record: bytes = file.read(int(row["size"]))
                if zlib.crc32(record) == row["check"] and record.startswith(digest):
                    mark_used(path)
                    return record[len(digest) :]
        return None

    def keep(self, results: Iterable[tuple[bytes, bytes]]) -> None:
        """Add a pack of digests with their results, and delete packs where there are too many.

        Raises OSError where it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows, start = [], 0
        with written_aside(self.folder / f"{uuid4().hex}.pack") as part, part.open("wb") as file:
            for digest, result in results:
                record = digest + result
                file.write(record)
                rows.append((key_of(digest), start, len(record), zlib.crc32(record)))
                start += len(record)
            index = np.array(rows, INDEX).tobytes()
            file.write(index + FOOTER.pack(len(rows), zlib.crc32(index), MAGIC))
        self.prune()

    def prune(self) -> None:
        """Delete what was used longest ago, beginnings of packs that were never finished included."""
        found = []
        for path in self.folder.parent.glob("*/*.pack*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):  # another user's, perhaps
                path.unlink(missing_ok=True)
                total -= size


def key_of(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def mark_used(path: Path) -> None:
    """Have it outlive packs that nobody asks for; another user's stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(path)


class Index(NamedTuple):
    """The results of several packs, by key: 36 bytes each. packs: of each row the number of its path."""

    paths: list[Path]
    keys: np.ndarray
    rows: np.ndarray
    packs: np.ndarray


@lru_cache(maxsize=1)
def read_indexes(packs: Packs) -> Index:
    """The index of all that the packs have."""
    found = {path: rows for path in sorted(packs.folder.glob("*.pack")) if (rows := read_index(path)) is not None}
    rows = np.concatenate([np.empty(0, INDEX), *found.values()])
    numbers = np.repeat(np.arange(len(found), dtype="u4"), [len(rows) for rows in found.values()])
    order = np.argsort(rows["key"], kind="stable")
    return Index(list(found), rows["key"][order], rows[order], numbers[order])


def read_index(path: Path) -> np.ndarray | None:
    """A pack's index; None where it cannot be read, or is none."""
    try:
        with path.open("rb") as file:
            file.seek(-FOOTER.size, os.SEEK_END)
            count, check, magic = FOOTER.unpack(file.read())
            file.seek(-FOOTER.size - count * INDEX.itemsize, os.SEEK_END)
            index = file.read(count * INDEX.itemsize)
    except OSError:  # also a place before the file's beginning
        return None
    return np.frombuffer(index, INDEX) if magic == MAGIC and zlib.crc32(index) == check else None
