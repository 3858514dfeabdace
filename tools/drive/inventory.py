"""The objects that the workspace needs, by DVC's index, and whether they are in the cache or on the remote."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.versioning.cache import in_cache
from tools.drive.stores import Copy, Listing, Store

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

PLACES = {"data/features/": "features", "models/": "models"}  # the kind by where an out lies
KINDS = [*PLACES.values(), "other"]


@dataclass(frozen=True)
class Thing:
    """An object that the workspace needs. ``parts``: of a folder's list, the objects that must be there before it."""

    oid: str
    path: str  # in the workspace, for people
    kind: str
    size: int | None = None  # bytes, where it is known here
    parts: tuple[str, ...] = ()


def outs(repo: "Repo", store: Store) -> list["Output"]:
    """The outs that belong on the remote: cached, computed, not kept off it by ``push: false``."""
    found = []
    for out in repo.index.outs:
        if not (out.use_cache and out.can_push and out.hash_info) or out.stage.is_repo_import:
            continue
        if out.hash_info.name != "md5":
            raise UserError(f"{out} is kept in the format of DVC 2: run `dvc cache migrate`")
        if out.remote in (None, store.remote.name):
            found.append(out)
    return found


def contents(repo: "Repo", out: "Output") -> list[Thing]:
    """An out's objects: the file, or the folder's files and after them its list (it alone, where it is not here)."""
    from dvc_data.hashfile.tree import Tree

    cache, path, kind = repo.cache.local, place_of(repo, out), kind_of(repo, out)
    oid, parts = out.hash_info.value, []
    if out.is_dir_checksum and in_cache(cache, oid):
        for key, _, info in Tree.load(cache, out.hash_info):
            parts.append(Thing(info.value, "/".join((path, *key)), kind, size_of(cache, info.value)))
    return [*parts, Thing(oid, path, kind, size_of(cache, oid), tuple(thing.oid for thing in parts))]


def list_of(repo: "Repo", out: "Output") -> Thing:
    """An out's first object: the file itself, or the folder's list."""
    oid = out.hash_info.value
    return Thing(oid, place_of(repo, out), kind_of(repo, out), size_of(repo.cache.local, oid))


def place_of(repo: "Repo", out: "Output") -> str:
    return Path(os.path.relpath(out.fs_path, repo.root_dir)).as_posix()


def kind_of(repo: "Repo", out: "Output") -> str:
    where = place_of(repo, out) + "/"
    return next((name for folder, name in PLACES.items() if where.startswith(folder)), "other")


def size_of(cache, oid: str) -> int | None:
    try:
        return Path(cache.oid_to_path(oid)).stat().st_size
    except FileNotFoundError:
        return None


def there(listing: Listing, oid: str) -> bool:
    return keeper(listing.get(oid, [])) is not None


def keeper(copies: list[Copy]) -> Copy | None:
    """The oldest copy with the right checksum, ties by id."""
    return next((copy for copy in sorted(copies) if copy.right), None)
