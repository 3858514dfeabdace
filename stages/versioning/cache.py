"""DVC's local cache: what it has, fetching what it lacks, and folders that link into it."""

import re
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError, one_line
from stages.runtime.files import link_or_copy
from stages.runtime.progress import ProgressBar
from stages.versioning.remotes import bound_waiting

if TYPE_CHECKING:
    from dvc.fs.callbacks import Callback
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

TAGS = "--all-tags"
BAR_AFTER = 1  # seconds: what is there sooner needs no bar
OBJECT_ID = re.compile(r"[0-9a-f]{32}(\.dir)?")  # MD5 in hex; what a cache's and a remote's paths are made of


Report = Callable[[float], None]  # is told the share that has come, 0 to 1


def in_cache(cache: "HashFileDB", oid: str | None) -> bool:
    """Whether the local cache has an object; DVC checks it, and drops one that was changed."""
    from dvc_objects.errors import ObjectFormatError

    if oid is None or not OBJECT_ID.fullmatch(oid):
        return False
    try:
        cache.check(oid)
    except (FileNotFoundError, ObjectFormatError):
        return False
    return True


def fetch_folder(
    repo: "Repo", out: "Output", name: str, which: str = TAGS, report: Report = lambda share: None
) -> "Tree":
    """Have a folder's files in the cache, fetched from its remote where they are missing; returns their list.

    name: what the folder is called in messages; which: the option of `dvc fetch` that would find it too; report: called
    while files come, from other threads. Raises UserError where it is not available.
    """
    fetch_objects(repo, out, name, [out.hash_info], which)
    tree = load_tree(repo, out, name)
    fetch_objects(repo, out, name, [info for _, _, info in tree], which, out.meta.size, report)
    return tree


def load_tree(repo: "Repo", out: "Output", name: str) -> "Tree":
    """A folder's list from the cache, once it names nothing outside the folder, the cache and the remote.

    Whoever can write to the remote, or made the commit, wrote that list. Raises UserError.
    """
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    listed = f"{name}: its list of files {str(out.hash_info.value)!r}"
    try:
        tree = Tree.load(repo.cache.local, out.hash_info)
        entries = [(names, info.value) for names, _, info in tree]
    except (ObjectFormatError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{listed} is damaged: have whoever made it run `make push`") from None
    folders = {names[:depth] for names, _ in entries for depth in range(1, len(names))}
    for names, oid in entries:
        path = "/".join(names)
        if not all(map(is_plain_name, names)) or names in folders:
            raise UserError(f"{listed} names {path!r}, which is no file within a folder: nothing was written")
        check_object_id(oid, f"{name}: {path}")
    return tree


def is_plain_name(name: str) -> bool:
    """Whether a name stays where it is put, on every system."""
    return name not in ("", ".", "..") and not any(char in "/\\" or ord(char) < 32 for char in name)


def check_object_id(oid: object, name: str) -> None:
    """Raises UserError where an object's id would be another path than an object's."""
    if not (isinstance(oid, str) and OBJECT_ID.fullmatch(oid)):
        raise UserError(f"{name} has no valid object id in DVC's files: {str(oid)[:80]!r}")


def fetch_objects(
    repo: "Repo",
    out: "Output",
    name: str,
    wanted: "Collection[HashInfo]",
    which: str = TAGS,
    total: int | None = None,
    report: Report = lambda share: None,
) -> None:
    """Have some of an out's objects in the cache, fetched and verified where they are missing; raises UserError.

    total: their bytes, where they are known.
    """
    from dvc.config import NoRemoteError

    for info in wanted:
        check_object_id(info.value, name)
    cache = repo.cache.local
    if all(in_cache(cache, info.value) for info in wanted):
        return
    remote = out.remote or repo.config["core"].get("remote")
    then = f"and try again, or run `dvc fetch {which} {out.def_path}`"
    try:
        odb = repo.cloud.get_remote_odb(remote, "fetch")
        odb.verify = True
        bound_waiting(odb.fs)
        with ProgressBar(desc=f"fetch {name}", total=total, unit="B", unit_scale=True, delay=BAR_AFTER) as bar:

            def arrived(n_bytes: int) -> None:
                bar.update(max(n_bytes - bar.n, 0))
                if total:
                    report(min(n_bytes / total, 1.0))

            repo.cloud.transfer(odb, cache, wanted, cache_odb=cache, verify=True, callback=count_bytes(arrived))
        reason = "it does not answer, or lacks a part of it, or holds one that is damaged"
    except NoRemoteError:
        raise UserError(
            f"{name} is not in DVC's cache, and there is no default remote to fetch it from: "
            f"run `dvc remote add --default NAME URL` with the URL of whoever made it, {then}"
        ) from None
    except Exception as error:  # a remote's libraries raise anything
        reason = one_line(error)
    if not all(in_cache(cache, info.value) for info in wanted):
        raise UserError(
            f"{name} could not be fetched from the remote {remote} ({reason}): "
            f"check the connection, have whoever made it run `make push`, {then}"
        )


def count_bytes(arrived: Callable[[int], None]) -> "Callback":
    """What DVC tells of a transfer: ``arrived`` gets the bytes that have come of all its files, one call at a time."""
    from dvc.fs.callbacks import Callback

    came: dict[str, int] = {}
    lock = threading.Lock()

    class Transfer(Callback):
        def branched(self, path_1: str, path_2: str, **_: object) -> Callback:
            def tell(size: int | None, value: int, **_: object) -> None:
                with lock:
                    came[path_2] = value
                    arrived(sum(came.values()))

            return Callback(hooks={"arrived": tell})

    return Transfer()


def link_folder(cache: "HashFileDB", tree: "Tree", folder: Path) -> None:
    """Make a folder, whole or not at all, of hard links into the cache, or copies where links are not possible."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        part = Path(aside, folder.name)
        for names, _, info in tree:
            target = part.joinpath(*names)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(cache.oid_to_path(info.value), target)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
