"""Folders whose files are read in parts: on a disk, or in object storage by URL."""

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from stages.runtime.errors import UserError, one_line

REQUESTS = 16  # at once: what one answer waits for, others do not
PATIENCE = 60  # seconds from which on a request that failed is not made again; s3fs makes each several times itself
FIRST_WAIT = 0.5  # seconds; each wait is twice the one before
LASTING = (FileNotFoundError, PermissionError, NotImplementedError, ValueError)  # no answer changes by waiting
END_SHARE, LEAST_END = 256, 4096  # a zip's directory takes less of it than a 256th, where clips last two seconds

Item = TypeVar("Item")
Output = TypeVar("Output")


class LocalFolder:
    """A folder on a disk; missing, damaged: what mends it. No file stays open: a process may not have so many."""

    missing, damaged = "run the featurize stage, or `dvc pull`", "delete the file and run `dvc checkout`"
    map = map

    def __init__(self, path: Path):
        self.path = path
        self.paths: dict[str, Path] = {}  # of the files that were listed: joining them anew takes as long as to open

    def names(self, suffix: str) -> list[str]:
        """The files that end so, sorted."""
        self.paths = {path.name: path for path in sorted(self.path.glob(f"*{suffix}"))}
        return list(self.paths)

    def place(self, name: str) -> str:
        """A file as people see it."""
        return str(self.path / name)

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def read(self, name: str, start: int, size: int) -> bytes:
        """So many bytes of a file that was listed, by one read."""
        with self.paths[name].open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)


class RemoteFolder:
    """The same in object storage, by a URL that fsspec knows: s3://bucket/folder.

    What may pass, such as a connection that breaks, is tried again. Raises UserError where it lasts.
    """

    missing = damaged = "copy it there again"

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.sizes: dict[str, int] = {}

    def names(self, suffix: str) -> list[str]:
        found = self.ask(lambda fs, path: fs.ls(path, detail=True))
        self.sizes = {item["name"].rpartition("/")[2]: item["size"] for item in found if item["type"] == "file"}
        return sorted(name for name in self.sizes if name.endswith(suffix))

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def open(self, name: str) -> "RangeFile":
        return RangeFile(partial(self.read, name), self.sizes[name])

    def read(self, name: str, start: int, size: int) -> bytes:
        data: bytes = self.ask(lambda fs, path: fs.cat_file(f"{path}/{name}", start=start, end=start + size))
        return data

    def map(self, function: Callable[[Item], Output], items: Iterable[Item]) -> Iterator[Output]:
        """``map`` by several threads, few results ahead of whoever takes them."""
        waiting = deque[Future[Output]]()
        with ThreadPoolExecutor(REQUESTS) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > 2 * REQUESTS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def ask(self, request: Callable[[Any, str], Any]) -> Any:
        """The answer to a request, which is given a file system and the folder's path there."""
        end, wait = time.monotonic() + PATIENCE, FIRST_WAIT
        while True:
            try:
                return request(*file_system(self.url, os.getpid()))
            except ImportError as error:
                extra = f"pip install 'dvc[{self.url.partition('://')[0]}]'"
                raise UserError(f"{self.url} cannot be read: {one_line(error)}: {extra}") from None
            except Exception as error:  # each kind of storage has errors of its own
                lasting = isinstance(error, LASTING) or "Credential" in type(error).__name__
                if lasting or time.monotonic() + wait > end:
                    raise UserError(f"{self.url} cannot be read: {explain(error)}") from None
                time.sleep(wait)
                wait *= 2


@lru_cache
def file_system(url: str, process: int) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there; one for each process, for none outlives a fork."""
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(url, use_listings_cache=False)
    return found


Folder = LocalFolder | RemoteFolder


def open_folder(place: str | Path) -> Folder:
    """A folder by its path or its URL; nothing is asked of it yet."""
    return RemoteFolder(str(place)) if is_remote(place) else LocalFolder(Path(place))


def is_remote(place: str | Path) -> bool:
    """Whether it is a URL, and no path."""
    return "://" in str(place)


def explain(error: Exception) -> str:
    """An error of a file system's, with what to look at where it is known."""
    hint = ""
    if isinstance(error, FileNotFoundError):
        hint = ": see that bucket and folder are named rightly"
    elif isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        hint = ": see that keys are set (AWS_ACCESS_KEY_ID, AWS_PROFILE, …) which may list and read it"
    return (one_line(error) or type(error).__name__) + hint


class RangeFile(io.RawIOBase, BinaryIO):
    """A file as zipfile reads it: the end, with a zip's directory, by one request, all else by one a read."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int):
        self.read_range, self.size, self.at = read_range, size, 0
        self.end_start = max(size - max(size // END_SHARE, LEAST_END), 0)

    @cached_property
    def end(self) -> bytes:
        return self.read_range(self.end_start, self.size - self.end_start)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + (0, self.at, self.size)[whence]
        if place < 0:
            raise OSError(f"there is no byte {place}")
        self.at = place
        return place

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        start, stop = self.at, self.size if size < 0 else min(self.at + size, self.size)
        self.at = max(start, stop)
        if start >= self.end_start:
            return self.end[start - self.end_start : max(stop - self.end_start, 0)]
        return self.read_range(start, stop - start)
