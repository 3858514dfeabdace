"""Push and pull, object by object: what is needed, what is stored, and what became of each."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.files import file_digest
from stages.runtime.progress import ProgressBar
from stages.versioning.cache import in_cache
from tools.drive.inventory import OBJECT_KINDS, CacheObject, cached_size, out_objects, remote_outs, top_object
from tools.drive.retry import Fault, RemoteError
from tools.drive.stores import Listing, RemoteObject, Store, is_stored, oldest_valid

if TYPE_CHECKING:
    from dvc.repo import Repo

ROUNDS = 3  # after each the remote is listed again, and what is not there as it should be goes again
HOW_TO_FREE = (
    "empty its trash (what is in it counts), or remove what no commit needs any more: "
    "`dvc gc --cloud --all-commits`, then empty the trash"
)


@dataclass
class TransferReport:
    """What became of each object."""

    direction: str  # sent or fetched
    done: list[CacheObject] = field(default_factory=list)
    skipped: list[CacheObject] = field(default_factory=list)
    failed: dict[CacheObject, str] = field(default_factory=dict)  # with the reason
    removed: int = 0  # duplicates

    def table(self) -> str:
        """Objects by kind, the failures one a line."""
        columns = {self.direction: self.done, "already there": self.skipped, "failed": list(self.failed)}
        lines = [f"{'':<10}" + "".join(f"{name:>22}" for name in columns)]
        for kind in OBJECT_KINDS:
            if any(item.kind == kind for objects in columns.values() for item in objects):
                lines.append(
                    f"{kind:<10}" + "".join(f"{format_kind(objects, kind):>22}" for objects in columns.values())
                )
        if self.removed:
            lines.append(f"duplicates removed: {self.removed}")
        lines += [f"failed: {item.path}: {reason}" for item, reason in self.failed.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class PushPlan:
    """What a push would do."""

    listing: Listing
    stored: list[CacheObject]
    to_send: list[CacheObject]
    missing: list[CacheObject]  # neither in the cache nor on the remote

    @property
    def bytes_to_send(self) -> int:
        return sum(item.size or 0 for item in self.to_send)


# Push


def plan_push(repo: "Repo", store: Store) -> PushPlan:
    """Compare the workspace's objects with the remote's."""
    listing = store.listing()
    needed = {item.oid: item for out in remote_outs(repo, store.remote.name) for item in out_objects(repo, out)}
    stored = [item for oid, item in needed.items() if is_stored(listing, oid)]
    absent = [item for oid, item in needed.items() if not is_stored(listing, oid)]
    cached = {item for item in absent if in_cache(repo.cache.local, item.oid)}
    to_send, missing = [item for item in absent if item in cached], [item for item in absent if item not in cached]
    return PushPlan(listing, stored, to_send, missing)


def plan_table(plan: PushPlan, store: Store) -> str:
    """What a push would send, what is stored and what is free."""
    lines = [store.url, f"{'':<14}{'to send':>22}{'already there':>22}"]
    for kind in OBJECT_KINDS:
        lines.append(f"{kind:<14}{format_kind(plan.to_send, kind):>22}{format_kind(plan.stored, kind):>22}")
    needed = {item.oid for item in plan.stored}
    rest = [item.size for oid, objects in plan.listing.items() for item in objects if oid not in needed]
    lines.append(f"{'not needed':<14}{'':>22}{format_total(len(rest), sum(rest)):>22}")
    lines.append(f"{'checkpoints':<14}{'':>22}{format_bytes(store.folder_size('checkpoints')):>22}")
    if quota := store.quota():
        free, total, trash = (format_bytes(size) for size in (quota.free, quota.total, quota.trash))
        lines.append(f"{free} of {total} is free; {trash} in the trash counts as used")
    if plan.missing:
        lines.append(
            f"neither in the cache nor on the remote: {len(plan.missing)} objects, the first is {plan.missing[0].path}"
        )
    return "\n".join(lines)


def check_quota(plan: PushPlan, store: Store) -> None:
    """Raise UserError where the push needs more than is free."""
    quota = store.quota() if plan.to_send else None
    if quota and plan.bytes_to_send > quota.free:
        free, total, trash = (format_bytes(size) for size in (quota.free, quota.total, quota.trash))
        raise UserError(
            f"the push needs {format_bytes(plan.bytes_to_send)}, but only {free} of {total} is free (the trash holds "
            f"{trash}); nothing was sent. Free {format_bytes(plan.bytes_to_send - quota.free)} more: {HOW_TO_FREE}"
        )


def push_objects(repo: "Repo", store: Store) -> TransferReport:
    """Send what the remote lacks; raises UserError before anything is sent where it does not fit."""
    plan = plan_push(repo, store)
    check_quota(plan, store)
    report = TransferReport("sent", skipped=plan.stored)
    report.failed = dict.fromkeys(plan.missing, "neither in the cache nor on the remote: run `make repro`")
    with bytes_bar(plan.bytes_to_send, "push") as progress:
        sender = Sender(repo, store, report, progress)
        listing = sender.send_batch([item for item in plan.to_send if not item.entries], plan.listing)
        folders = [item for item in plan.to_send if item.entries]
        complete = [item for item in folders if all(is_stored(listing, oid) for oid in item.entries)]
        listing = sender.send_batch(complete, listing)
    for item in set(plan.to_send) - set(report.done) - report.failed.keys():
        report.failed[item] = "some of its files are not on the remote"
    remove_duplicates(store, listing, report)
    return report


class Sender:
    """Uploads objects, in rounds, until the remote lists each with the right checksum."""

    def __init__(self, repo: "Repo", store: Store, report: TransferReport, progress: ProgressBar):
        self.cache, self.store, self.report, self.progress = repo.cache.local, store, report, progress
        self.stopped_by: Fault | None = None  # what made it useless to go on

    def send_batch(self, objects: list[CacheObject], listing: Listing) -> Listing:
        """Send objects that may go in any order; returns the remote's listing after them."""
        reasons: dict[CacheObject, str | None] = {}
        for _ in range(ROUNDS):
            left = [item for item in objects if not is_stored(listing, item.oid)]
            if not left or self.stopped_by:
                break
            reasons |= {item: self.upload(item) for item in left}
            if not (self.stopped_by and self.stopped_by.transient):  # an outage: it would not be listed either
                listing = self.list_again(listing)
        for item in objects:
            if is_stored(listing, item.oid):
                self.report.done.append(item)
            else:
                reason = reasons.get(item) or (self.stopped_by and self.stopped_by.message)
                self.report.failed[item] = reason or "the remote lists it with a wrong checksum"
        return listing

    def upload(self, item: CacheObject) -> str | None:
        """Upload one; returns the reason where that failed."""
        if self.stopped_by:
            return self.stopped_by.message
        path = Path(self.cache.oid_to_path(item.oid))
        if file_digest(path, "md5") != item.oid.removesuffix(".dir"):
            return f"damaged in the cache: delete {path}, and pull it or run `make repro`"
        try:
            self.store.put(path, item.oid, self.progress.update)
        except RemoteError as error:
            self.stopped_by = error.fault if error.fault.affects_all else None
            return str(error)
        return None

    def list_again(self, listing: Listing) -> Listing:
        """The remote's listing as it is now; the one given where that cannot be had."""
        try:
            return self.store.listing()
        except RemoteError as error:
            self.stopped_by = error.fault
            return listing


def remove_duplicates(store: Store, listing: Listing, report: TransferReport) -> None:
    """Of duplicates keep the oldest valid one, as every clone does, so that none removes what another keeps.

    An object with a wrong checksum goes too, but only where a valid one stays.
    """
    for objects in listing.values():
        oldest = oldest_valid(objects)
        for item in objects if oldest and len(objects) > 1 else []:
            if item != oldest:
                with suppress(RemoteError):  # it does no harm, and the next push tries again
                    store.remove(item)
                    report.removed += 1


# Pull


def pull_objects(repo: "Repo", store: Store) -> TransferReport:
    """Fetch what the cache lacks, and put it into the workspace."""
    report = TransferReport("fetched")
    with tempfile.TemporaryDirectory(dir=repo.tmp_dir) as folder:
        fetcher = Fetcher(repo, store, report, Path(folder))
        outs = remote_outs(repo, store.remote.name)
        fetcher.fetch_batch(top_object(repo, out) for out in outs)
        listed = [out for out in outs if in_cache(repo.cache.local, out.hash_info.value)]
        contents = {out: out_objects(repo, out) for out in listed}
        fetcher.fetch_batch(item for objects in contents.values() for item in objects if item.oid not in fetcher.seen)
    failed = {item.oid for item in report.failed}
    complete = [out.fs_path for out, objects in contents.items() if not failed & {item.oid for item in objects}]
    if complete:
        repo.checkout(targets=complete)  # no others, for DVC would reach for the remote in its own way
    return report


class Fetcher:
    """Downloads objects into the cache, each checked by its own bytes."""

    def __init__(self, repo: "Repo", store: Store, report: TransferReport, folder: Path):
        self.cache, self.store, self.report = repo.cache.local, store, report
        self.listing, self.folder = store.listing(), folder  # the folder is for unfinished files
        self.seen: set[str] = set()
        self.stopped_by: Fault | None = None

    def fetch_batch(self, objects: Iterable[CacheObject]) -> None:
        """Fetch what the cache lacks."""
        wanted = {item.oid: item for item in objects}
        self.seen |= wanted.keys()
        cached = {oid for oid in wanted if in_cache(self.cache, oid)}
        self.report.skipped += [item for oid, item in wanted.items() if oid in cached]
        absent = [item for oid, item in wanted.items() if oid not in cached]
        sources = [self.source(item) for item in absent]
        with bytes_bar(sum(source.size for source in sources if source), "pull") as progress:
            for item in absent:
                if reason := self.download(item, progress):
                    self.report.failed[item] = reason
                else:
                    self.report.done.append(replace(item, size=cached_size(self.cache, item.oid)))

    def source(self, item: CacheObject) -> RemoteObject | None:
        return oldest_valid(self.listing.get(item.oid, []))

    def download(self, item: CacheObject, progress: ProgressBar) -> str | None:
        """Download one into the cache; returns the reason where that failed."""
        reason = None
        for _ in range(ROUNDS):
            if self.stopped_by:
                return self.stopped_by.message
            source = self.source(item)
            if not source:
                return "not on the remote: whoever has it must push it"
            try:
                reason = self.download_from(source, progress)
                if not reason:
                    return None
            except RemoteError as error:
                reason, self.stopped_by = str(error), error.fault if error.fault.affects_all else None
                if not error.fault.not_found:
                    return reason
                with suppress(RemoteError):  # another clone removed a duplicate
                    self.listing = self.store.listing()
        return reason

    def download_from(self, source: RemoteObject, progress: ProgressBar) -> str | None:
        """Download an object into the cache; returns what is wrong with what arrived."""
        from dvc_objects.fs import localfs

        path = self.folder / source.oid
        self.store.get(source, path, progress.update)
        found = file_digest(path, "md5")
        if found != source.oid.removesuffix(".dir"):
            return f"damaged on the way: what arrived has the checksum {found}"
        self.cache.add(os.fspath(path), localfs, source.oid, hardlink=True)
        path.unlink()
        return None


# What both print


def bytes_bar(total: int, name: str) -> ProgressBar:
    return ProgressBar(total=total, desc=name, unit="B", unit_scale=True, disable=not total)


def format_kind(objects: list[CacheObject], kind: str) -> str:
    """How many objects there are of a kind, and their size."""
    of_kind = [item for item in objects if item.kind == kind]
    return format_total(len(of_kind), sum(item.size or 0 for item in of_kind)) if of_kind else "–"


def format_total(number: int, size: int) -> str:
    return f"{number} ({format_bytes(size)})"


def format_bytes(size: float) -> str:
    """Bytes as people read them: ``1.5 kB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
