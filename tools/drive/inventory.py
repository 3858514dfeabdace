"""The objects that the workspace needs, by DVC's index."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.versioning.cache import check_object_id, in_cache, load_tree

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

FOLDER_KINDS = {"data/features/": "features", "models/": "models"}  # the kind by where an out lies
OBJECT_KINDS = [*FOLDER_KINDS.values(), "other"]


@dataclass(frozen=True)
class CacheObject:
    """An object that the workspace needs. entries: of a folder's list, the objects that must be stored before it."""

    oid: str  # as DVC's cache names it: MD5 in hex, with .dir for a folder's list
    path: str  # in the workspace, for people
    kind: str
    size: int | None = None  # bytes, None where it is not in the cache
    entries: tuple[str, ...] = ()


def remote_outs(repo: "Repo", remote: str) -> list["Output"]:
    """The outs that belong on the remote of this name: cached, computed, not kept off it by ``push: false``."""
    found = []
    for out in repo.index.outs:
        if not (out.use_cache and out.can_push and out.hash_info) or out.stage.is_repo_import:
            continue
        if out.hash_info.name != "md5":
            raise UserError(f"{out} is in the format of DVC 2: run `dvc cache migrate`")
        if out.remote in (None, remote):
            found.append(out)
    return found


def out_objects(repo: "Repo", out: "Output") -> list[CacheObject]:
    """An out's objects: the file, or the folder's files and after them its list (it alone, if it is not cached)."""
    cache, top = repo.cache.local, top_object(repo, out)
    if not out.is_dir_checksum or not in_cache(cache, top.oid):
        return [top]
    entries = [
        CacheObject(info.value, "/".join((top.path, *key)), top.kind, cached_size(cache, info.value))
        for key, _, info in load_tree(repo, out, top.path)
    ]
    return [*entries, CacheObject(top.oid, top.path, top.kind, top.size, tuple(entry.oid for entry in entries))]


def top_object(repo: "Repo", out: "Output") -> CacheObject:
    """An out's first object: the file itself, or the folder's list, without its entries."""
    oid, path = out.hash_info.value, Path(os.path.relpath(out.fs_path, repo.root_dir)).as_posix()
    check_object_id(oid, path)
    kind = next((kind for folder, kind in FOLDER_KINDS.items() if f"{path}/".startswith(folder)), "other")
    return CacheObject(oid, path, kind, cached_size(repo.cache.local, oid))


def cached_size(cache: "HashFileDB", oid: str) -> int | None:
    """Bytes of an object in the cache; None where it is not there."""
    try:
        return Path(cache.oid_to_path(oid)).stat().st_size
    except FileNotFoundError:
        return None
