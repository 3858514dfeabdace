"""Push and pull, object by object: what is needed, what is there, and what became of each."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.progress import ProgressBar
from stages.versioning.cache import in_cache
from tools.drive.google import Failed, Trouble
from tools.drive.inventory import KINDS, Thing, contents, keeper, list_of, outs, size_of, there
from tools.drive.stores import Copy, Listing, Store

if TYPE_CHECKING:
    from dvc.repo import Repo

ROUNDS = 3  # after each the remote is listed anew, and what is not there as it should be goes again
PRUNE = (
    "empty its trash (what is in it counts), or remove what no commit needs any more: "
    "`dvc gc --cloud --all-commits`, then empty the trash"
)


@dataclass
class Report:
    """What became of each thing."""

    direction: str  # sent or fetched
    done: list[Thing] = field(default_factory=list)
    skipped: list[Thing] = field(default_factory=list)
    failed: dict[Thing, str] = field(default_factory=dict)  # with the reason
    removed: int = 0  # double objects

    def table(self) -> str:
        """Objects by kind, the failures one a line."""
        columns = {self.direction: self.done, "already there": self.skipped, "failed": list(self.failed)}
        lines = [f"{'':<10}" + "".join(f"{name:>22}" for name in columns)]
        for kind in KINDS:
            if any(thing.kind == kind for things in columns.values() for thing in things):
                lines.append(f"{kind:<10}" + "".join(f"{amount(things, kind):>22}" for things in columns.values()))
        if self.removed:
            lines.append(f"removed {self.removed} double objects")
        lines += [f"failed: {thing.path}: {reason}" for thing, reason in self.failed.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Plan:
    """What a push would do."""

    listing: Listing
    there: list[Thing]
    to_send: list[Thing]
    lost: list[Thing]  # neither here nor there

    @property
    def needed(self) -> int:
        return sum(thing.size for thing in self.to_send)


def push(repo: "Repo", store: Store) -> Report:
    """Send what the remote lacks; raises UserError before anything is sent where it does not fit."""
    plan = plan_push(repo, store)
    check_room(plan, store)
    report = Report("sent", skipped=plan.there)
    report.failed = dict.fromkeys(plan.lost, "neither in the cache nor on the remote: run `make repro`")
    with bar(plan.needed, "push") as progress:
        send = Sending(repo, store, report, progress)
        listing = send.wave([thing for thing in plan.to_send if not thing.parts], plan.listing)
        complete = [thing for thing in plan.to_send if thing.parts and all(there(listing, oid) for oid in thing.parts)]
        listing = send.wave(complete, listing)
    for thing in set(plan.to_send) - set(report.done) - report.failed.keys():
        report.failed[thing] = "some of its files are not on the remote"
    sweep(store, listing, report)
    return report


def plan_push(repo: "Repo", store: Store) -> Plan:
    """Compare the workspace's objects with the remote's."""
    cache, listing = repo.cache.local, store.listing()
    needed = [thing for out in outs(repo, store) for thing in contents(repo, out)]
    needed = list({thing.oid: thing for thing in needed}.values())
    on_remote = [thing for thing in needed if there(listing, thing.oid)]
    absent = [thing for thing in needed if not there(listing, thing.oid)]
    here = {thing for thing in absent if in_cache(cache, thing.oid)}
    to_send = [thing for thing in absent if thing in here]
    return Plan(listing, on_remote, to_send, [thing for thing in absent if thing not in here])


def check_room(plan: Plan, store: Store) -> None:
    """Raise UserError where the push needs more than is free."""
    room = store.room() if plan.to_send else None
    if room and plan.needed > room.free:
        raise UserError(
            f"the push needs {nice(plan.needed)}, and {nice(room.free)} of {nice(room.total)} are free "
            f"({nice(room.trash)} lie in the trash); nothing was sent. Free {nice(plan.needed - room.free)}: {PRUNE}"
        )


class Sending:
    """Uploads things in rounds until the remote lists each with the right checksum."""

    def __init__(self, repo: "Repo", store: Store, report: Report, progress: ProgressBar):
        self.cache, self.store, self.report, self.progress = repo.cache.local, store, report, progress
        self.stopped: Trouble | None = None  # what made going on useless

    def wave(self, things: list[Thing], listing: Listing) -> Listing:
        """Send things that may go in any order; returns the remote's listing after them."""
        reasons = {}
        for _ in range(ROUNDS):
            left = [thing for thing in things if not there(listing, thing.oid)]
            if not left or self.stopped:
                break
            reasons |= {thing: self.put(thing) for thing in left}
            if not (self.stopped and self.stopped.passes):  # an outage: it would not be listed either
                listing = self.list_again(listing)
        for thing in things:
            if there(listing, thing.oid):
                self.report.done.append(thing)
            else:
                reason = reasons.get(thing) or (self.stopped and self.stopped.text)
                self.report.failed[thing] = reason or "the remote lists another checksum than it should"
        return listing

    def put(self, thing: Thing) -> str | None:
        """Upload one; returns the reason where that failed."""
        if self.stopped:
            return self.stopped.text
        path = Path(self.cache.oid_to_path(thing.oid))
        if md5_of(path) != thing.oid.removesuffix(".dir"):
            return f"damaged in the cache: delete {path}, and pull it or run `make repro`"
        try:
            self.store.put(path, thing.oid, self.progress.update)
        except Failed as failed:
            self.stopped = failed.trouble if failed.trouble.stops else None
            return str(failed)
        return None

    def list_again(self, listing: Listing) -> Listing:
        try:
            return self.store.listing()
        except Failed as failed:
            self.stopped = failed.trouble
            return listing


def sweep(store: Store, listing: Listing, report: Report) -> None:
    """Of double objects keep the oldest right one, as every clone does, so that none removes what another keeps.

    An object with a wrong checksum is nobody's to keep; it goes too, but only where a right one stays.
    """
    for copies in listing.values():
        keep = keeper(copies)
        for copy in copies if keep and len(copies) > 1 else []:
            if copy != keep:
                with suppress(Failed):  # it does no harm, and the next push tries again
                    store.remove(copy)
                    report.removed += 1


def pull(repo: "Repo", store: Store) -> Report:
    """Fetch what the cache lacks, and put it into the workspace."""
    report = Report("fetched")
    with tempfile.TemporaryDirectory(dir=repo.tmp_dir) as folder:
        fetch = Fetching(repo, store, report, Path(folder))
        found = outs(repo, store)
        fetch.wave(list_of(repo, out) for out in found)
        known = [out for out in found if in_cache(repo.cache.local, out.hash_info.value)]
        inside = {out: contents(repo, out) for out in known}
        fetch.wave(thing for things in inside.values() for thing in things if thing.oid not in fetch.seen)
    missing = {thing.oid for thing in report.failed}
    complete = [out.fs_path for out in known if not missing & {thing.oid for thing in inside[out]}]
    if complete:
        repo.checkout(targets=complete)  # no others, for DVC would reach for the remote in its own way
    return report


class Fetching:
    """Downloads things into the cache, each checked by its own bytes."""

    def __init__(self, repo: "Repo", store: Store, report: Report, folder: Path):
        self.cache, self.store, self.report = repo.cache.local, store, report
        self.listing, self.folder = store.listing(), folder  # the folder is for files on their way
        self.seen: set[str] = set()
        self.stopped: Trouble | None = None

    def wave(self, things: Iterable[Thing]) -> None:
        """Fetch what is not here."""
        things = {thing.oid: thing for thing in things}
        self.seen |= things.keys()
        here = {oid for oid in things if in_cache(self.cache, oid)}
        self.report.skipped += [things[oid] for oid in things if oid in here]
        absent = [things[oid] for oid in things if oid not in here]
        with bar(sum(copy.size for thing in absent if (copy := self.keeper(thing))), "pull") as progress:
            for thing in absent:
                if reason := self.get(thing, progress):
                    self.report.failed[thing] = reason
                else:
                    self.report.done.append(replace(thing, size=size_of(self.cache, thing.oid)))

    def keeper(self, thing: Thing) -> Copy | None:
        return keeper(self.listing.get(thing.oid, []))

    def get(self, thing: Thing, progress: ProgressBar) -> str | None:
        """Fetch one into the cache; returns the reason where that failed."""
        reason = None
        for _ in range(ROUNDS):
            if self.stopped:
                return self.stopped.text
            copy = self.keeper(thing)
            if not copy:
                return "not on the remote: whoever has it must push it"
            try:
                reason = self.get_copy(copy, progress)
                if not reason:
                    return None
            except Failed as failed:
                reason, self.stopped = str(failed), failed.trouble if failed.trouble.stops else None
                if not failed.trouble.gone:
                    return reason
                with suppress(Failed):  # another clone removed a double object
                    self.listing = self.store.listing()
        return reason

    def get_copy(self, copy: Copy, progress: ProgressBar) -> str | None:
        from dvc_objects.fs import localfs

        path = self.folder / copy.oid
        self.store.get(copy, path, progress.update)
        found = md5_of(path)
        if found != copy.oid.removesuffix(".dir"):
            return f"what arrived has the checksum {found}, not its own"
        self.cache.add(os.fspath(path), localfs, copy.oid, hardlink=True)
        path.unlink()
        return None


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def overview(repo: "Repo", store: Store) -> tuple[str, Plan]:
    """What a push would send and what is there, as a table."""
    plan = plan_push(repo, store)
    lines = [store.where, f"{'':<14}{'to send':>22}{'already there':>22}"]
    for name in KINDS:
        lines.append(f"{name:<14}{amount(plan.to_send, name):>22}{amount(plan.there, name):>22}")
    used = {thing.oid for thing in plan.there}
    rest = [copy.size for oid, copies in plan.listing.items() for copy in copies if oid not in used]
    lines.append(f"{'not used here':<14}{'':>22}{count(len(rest), sum(rest)):>22}")
    lines.append(f"{'checkpoints':<14}{'':>22}{nice(store.beside('checkpoints')):>22}")
    if room := store.room():
        lines.append(f"{nice(room.free)} of {nice(room.total)} are free; {nice(room.trash)} lie in the trash and count")
    if plan.lost:
        lines.append(f"{len(plan.lost)} objects are neither in the cache nor on the remote, {plan.lost[0].path} first")
    return "\n".join(lines), plan


def amount(things: list[Thing], kind: str) -> str:
    mine = [thing for thing in things if thing.kind == kind]
    return count(len(mine), sum(thing.size or 0 for thing in mine)) if mine else "–"


def count(number: int, size: int) -> str:
    return f"{number} ({nice(size)})"


def nice(size: int) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def bar(total: int, name: str) -> ProgressBar:
    return ProgressBar(total=total, desc=name, unit="B", unit_scale=True, disable=not total)
