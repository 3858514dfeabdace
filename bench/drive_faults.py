"""``python -m bench.drive_faults --faults 1000 --seed 1``: faults at random places of push and pull, requests counted.

A stand-in for Drive on the loopback injects faults into requests at random. In each cycle the remote and the clone's
cache lose half of their objects, one clone pushes and another pulls, each again until it ends with 0, and every byte is
compared. Pauses and the timeout are shortened, so that the bench takes minutes; ``--timeout 40 --backoff 1`` are a
user's. In every twentieth cycle the commands are processes of their own.
"""

import os
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import click
import httplib2

from stages.runtime.errors import UserError
from tests.support.clones import Clone, dvc_targets, sample_files
from tests.support.drive import FAULTS, Drive, serve_drive
from tools.drive.__main__ import main as tool

MAX_RUNS = 12  # of one command in a cycle; more would mean that it never ends well
SHAPES = {
    "features of 20,000 clips in 20 zips": sample_files(20, 0, 0),
    "the same, two models, six tables": sample_files(20, 2, 6),
    "400 clips, a file each": sample_files(400, 0, 0),
}


@dataclass
class FaultInjector:
    """Injects a fault into a share of the operations, every kind as often as the others."""

    seed: int
    share: float
    left: int
    bag: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.random = random.Random(self.seed)

    def __call__(self, operation: str) -> str | None:
        if not self.left or self.random.random() > self.share:
            return None
        if len(self.bag) < len(FAULTS):
            self.bag += self.random.sample(list(FAULTS), len(FAULTS))
        for fault in self.bag:
            if operation in FAULTS[fault]:
                self.bag.remove(fault)
                self.left -= 1
                return fault
        return None


@dataclass
class Results:
    """What the cycles came to."""

    cycles: int = 0
    runs: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)  # of the runs that ended with 1
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0  # seconds of one command

    def lines(self, drive: Drive) -> list[str]:
        injected = Counter(drive.injected)
        lines = [f"{name:<22}{injected[name]:>6}" for name in FAULTS]
        lines += ["", f"{injected.total()} faults in {self.cycles} cycles of push and pull"]
        lines += [f"ended with {status}: {count} runs of {name}" for (name, status), count in sorted(self.runs.items())]
        lines += [f"  {count} x {reason}" for reason, count in self.reasons.most_common()]
        lines += [f"the longest command took {self.longest:.1f} s", f"wrong: {len(self.wrong)}", *self.wrong]
        return lines


@click.command()
@click.option("--faults", default=1000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--share", default=0.08, show_default=True, help="Of the requests that get a fault.")
@click.option("--timeout", default=0.3, show_default=True, help="Seconds; silence lasts that long.")
@click.option("--backoff", default=0.002, show_default=True, help="Seconds.")
def main(faults: int, seed: int, share: float, timeout: float, backoff: float) -> None:
    """Count requests, then inject faults."""
    with tempfile.TemporaryDirectory() as folder:
        click.echo(f"{'requests':<38}{'push':>8}{'pull':>8}")
        for name, files in SHAPES.items():
            counted = count_requests(Path(folder) / str(len(files)), files)
            click.echo(f"{name:<38}{counted['push']:>8}{counted['pull']:>8}")
        with serve_drive(Path(folder) / "authority") as drive:
            drive.script, results = FaultInjector(seed, share, faults), Results()
            bounds = {"DRIVE_TIMEOUT": str(timeout), "DRIVE_BACKOFF": str(backoff)}
            run_cycles(drive, Path(folder), results, bounds, sample_files(6, 1, 2, size=200))
            click.echo("\n" + "\n".join(results.lines(drive)))
        if results.wrong or drive.errors:
            raise click.ClickException("\n".join(["something was lost, wrong or unknown", *drive.errors[:5]]))


def count_requests(folder: Path, files: dict[str, bytes]) -> dict[str, int]:
    """Requests that a push and a pull of these files take."""
    with serve_drive(folder / "authority") as drive:
        anna, bob = make_clones(drive, folder, files)
        counted = {}
        for clone, command in ((anna, "push"), (bob, "pull")):
            drive.operations.clear()
            assert run_here(clone, command)[0] == 0
            counted[command] = len(drive.operations)
    return counted


def make_clones(drive: Drive, folder: Path, files: dict[str, bytes]) -> tuple[Clone, Clone]:
    """A repository that has the files, and a clone that has none."""
    anna, bob = Clone(drive, folder / "anna"), Clone(drive, folder / "bob")
    anna.write(files)
    anna.run("git", "init", "-q", "-b", "main")
    anna.run("dvc", "init", "-q")
    anna.run("dvc", "add", "-q", *dvc_targets(files))
    anna.connect().commit()
    anna.run("git", "clone", "-q", ".", str(bob.folder))
    return anna, bob.connect()


def enter(clone: Clone) -> None:
    """Make this process one on the clone's machine."""
    os.environ.update(clone.env)
    httplib2.CA_CERTS = clone.env["HTTPLIB2_CA_CERTS"]
    os.chdir(clone.folder)


def run_here(clone: Clone, command: str) -> tuple[int, str]:
    """Run the tool in this process; returns its status and what it printed."""
    enter(clone)
    printed = StringIO()
    with redirect_stdout(printed):
        try:
            status = tool([command], standalone_mode=False)
        except UserError as error:
            return 1, f"failed: {error}"
    return status, printed.getvalue()


def run_cycles(drive: Drive, folder: Path, results: Results, bounds: dict[str, str], files: dict[str, bytes]) -> None:
    """Cycle until all faults were injected."""
    anna, bob = make_clones(drive, folder, files)
    anna.env |= bounds
    bob.env |= bounds
    chance = random.Random(drive.script.seed)
    while drive.script.left:
        results.cycles += 1
        apart = results.cycles % 20 == 0
        lose_objects(drive, bob, chance)
        run_until_success(anna, "push", results, apart)
        if duplicates := drive.duplicates():
            results.wrong.append(f"cycle {results.cycles}: duplicates {duplicates}")
        run_until_success(bob, "pull", results, apart)
        compare_bytes(anna, bob, files, results)


def lose_objects(drive: Drive, clone: Clone, chance: random.Random) -> None:
    """The remote loses half of its objects and now and then a folder, the clone half of its own and its workspace."""
    for item in drive.files(trashed=True) + [item for item in drive.files() if chance.random() < 0.5]:
        drive.items.pop(item.id)
    empty = [item for item in drive.items.values() if len(item.title) == 2 and not drive.children(item.id)]
    for item in empty if chance.random() < 0.3 else []:
        drive.items.pop(item.id)
    for path in (clone.folder / ".dvc/cache/files/md5").glob("*/*"):
        if chance.random() < 0.5:
            path.unlink()
    for name in ("data/features", "models"):
        shutil.rmtree(clone.folder / name, ignore_errors=True)
    clone.run("git", "checkout", "-q", ".")


def run_until_success(clone: Clone, command: str, results: Results, apart: bool) -> None:
    """Run a command until it ends with 0; one that fails must say why."""
    for _ in range(MAX_RUNS):
        start = time.monotonic()
        status, printed = run_apart(clone, command) if apart else run_here(clone, command)
        results.longest = max(results.longest, time.monotonic() - start)
        results.runs[command, status] += 1
        if status == 0:
            return
        reasons = {reason.partition(": ")[2] or reason for reason in failure_reasons(printed)}
        results.reasons.update(reasons)
        if not reasons:
            results.wrong.append(f"cycle {results.cycles}: {command} failed and did not say why: {printed[-300:]}")
    results.wrong.append(f"cycle {results.cycles}: {command} did not end well")


def failure_reasons(printed: str) -> list[str]:
    """The reasons in what a command printed."""
    return re.findall(r"(?:^failed|^Error): (.*)", printed, re.MULTILINE)


def run_apart(clone: Clone, command: str) -> tuple[int, str]:
    process = clone.start("python", "-m", "tools.drive", command)
    printed, _ = process.communicate()
    return process.returncode, printed


def compare_bytes(anna: Clone, bob: Clone, files: dict[str, bytes], results: Results) -> None:
    """Every byte on the remote, in the clone's cache and in its workspace."""
    want = anna.cached_objects()
    drive = anna.drive
    found = {drive.items[item.parent].title + item.title: item.data for item in drive.files()}
    if found != want:
        results.wrong.append(f"cycle {results.cycles}: the remote differs")
    if bob.cached_objects() != want or bob.read(files) != files:
        results.wrong.append(f"cycle {results.cycles}: the clone differs")


if __name__ == "__main__":
    main()
