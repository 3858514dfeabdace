"""Checkpoints at rest: complete or absent, verified before use, and one process a run.

Below a store, a git-ignored folder that is no out of any stage, each run has a folder by its name:

    <name>/parts.json     what the name is made of, to say why a checkpoint does not fit
    <name>/lock           held by the one process that trains it
    <name>/step-00000600  a checkpoint; manifest.json in it has the SHA-256 of every other file
    <name>/partial-…      one that is being written, or never was finished
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from stages.runtime.errors import UserError, is_full
from stages.runtime.files import file_digest, write_json
from stages.runtime.progress import note
from stages.training.run import Parts, short_name

PARTS, MANIFEST = "parts.json", "manifest.json"
STATE, WEIGHTS = "state.json", "model.safetensors"  # files of a checkpoint


class DamagedError(UserError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class TrainingState:
    """What we know of a run at a step, beside what transformers' trainer writes.

    best: (step, validation WER in percent) of the evaluations whose weights are kept, the lowest WER first; empty
    before the first validation. adopted: another run that this one went on from, and what differs. pruned: a sweep
    stopped it before its end, so that it is done as a trial, and no more than begun as a run.
    """

    step: int
    best: list[tuple[int, float]]
    finished: bool
    adopted: dict[str, Any] | None
    pruned: bool = False

    def write(self, folder: Path) -> None:
        write_json(folder / STATE, asdict(self))


@dataclass(frozen=True)
class Checkpoint:
    """What a training resumes from: a folder that was complete when it got its name."""

    folder: Path

    @property
    def run(self) -> str:
        """The name of its run."""
        return self.folder.parent.name

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step-"))

    @cached_property
    def state(self) -> TrainingState:
        return TrainingState(**json.loads((self.folder / STATE).read_text(encoding="utf-8")))

    def weights_of(self, step: int) -> Path:
        """The weights of one of the evaluations that the state names, which are its own where it is of that step."""
        return self.folder / (WEIGHTS if step == self.step else best_name(step))

    def check(self) -> None:
        """Raise DamagedError where a file is not as it was written."""
        if problem := damage(self.folder):
            raise DamagedError(f"{self.folder} is damaged: {problem}")


class CheckpointStore(Protocol):
    """Where runs keep their checkpoints: in a folder here, or on a remote."""

    @property
    def name(self) -> str: ...

    def runs(self) -> list[str]:
        """Names of the runs, the latest first where that is known."""

    def parts(self, run: str) -> Parts:
        """What a run is made of."""

    def steps(self, run: str) -> list[int]:
        """The steps of which a run has a checkpoint, the newest first."""

    def fetch(self, run: str, step: int) -> Checkpoint:
        """That checkpoint, here and verified. Raises DamagedError."""


@dataclass(frozen=True)
class LocalCheckpoints:
    """The store in a folder of this machine."""

    root: Path
    name: str = "here"

    def folder(self, run: str) -> Path:
        return self.root / run

    def runs(self) -> list[str]:
        found = sorted(self.root.glob(f"*/{PARTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in found]

    def parts(self, run: str) -> Parts:
        parts: Parts = json.loads((self.folder(run) / PARTS).read_text(encoding="utf-8"))
        return parts

    def steps(self, run: str) -> list[int]:
        return [checkpoint.step for checkpoint in newest_first(self.folder(run))]

    def fetch(self, run: str, step: int) -> Checkpoint:
        checkpoint = Checkpoint(self.folder(run) / step_name(step))
        checkpoint.check()
        return checkpoint

    def remove_finished(self, spare: str) -> None:
        """Delete the runs that are finished or pruned, but for one, and for those that a process holds."""
        for folder in self.root.glob("*/"):
            if folder.name != spare and not in_use(folder):
                newest = newest_first(folder)[:1]
                if newest and (newest[0].state.finished or newest[0].state.pruned):
                    remove(folder)


class CheckpointCopier(Protocol):
    """What takes checkpoints elsewhere while training goes on."""

    def send(self, checkpoint: Path) -> None:
        """Have a checkpoint copied."""

    def finish(self) -> None:
        """The run is done, and nobody needs its copies any more."""


@dataclass(frozen=True)
class CheckpointManager:
    """The checkpoints of the run that is being trained: the newest few here, and where a mirror is set copied there."""

    folder: Path
    keep: int
    mirror: CheckpointCopier | None = None

    def before(self, step: int) -> Checkpoint | None:
        """The one that training came by last on its way to a step; a damaged one that it passed over is no earlier."""
        return next((checkpoint for checkpoint in newest_first(self.folder) if checkpoint.step < step), None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Make a checkpoint of what ``write`` puts into the folder it is given. Raises UserError on a full disk."""
        checkpoint = save(self.folder, step, write)
        prune(self.folder, self.keep)
        if self.mirror:
            self.mirror.send(checkpoint)

    def finish(self) -> None:
        """Make room. The last checkpoint stays, for DVC has not recorded the result yet."""
        if self.mirror:
            self.mirror.finish()
        prune(self.folder, 1)


def step_name(step: int) -> str:
    return f"step-{step:08}"


def best_name(step: int) -> str:
    """The file of the weights that did well in validation at an earlier step."""
    return f"best-{step:08}.safetensors"


def newest_first(folder: Path) -> list[Checkpoint]:
    """A run's checkpoints; each was complete when it got its name."""
    return [Checkpoint(path) for path in sorted(folder.glob("step-*"), reverse=True)]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run alone; waits for the process that has it, and says which that is."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            note(f"run {short_name(folder.name)} is held by process {lock.read().strip() or '?'}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a process holds a run."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make a checkpoint of what ``write`` puts into the folder it is given; returns where it lies.

    It is written aside, flushed to the disk, and gets its name last. Raises UserError where the disk is full.
    """
    final, partial = folder / step_name(step), folder / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        write_json(partial / MANIFEST, {path.name: file_digest(path) for path in sorted(partial.iterdir())})
        complete(partial, final)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_full(error):
            raise
        raise UserError(
            f"no space is left for the checkpoint of step {step} in {folder}; the one before it is whole: free some "
            "(python -m tools.checkpoints prune), then run the same command again"
        ) from None
    return final


def complete(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name, once all of it is on the disk."""
    for path in [*partial.iterdir(), partial]:
        flush(path)
    if final.exists():
        remove(final)  # a damaged one of the same step
    partial.rename(final)
    flush(final.parent)


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in manifest.items():
        try:
            found = file_digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written"
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but a run's newest checkpoints, and what was never finished."""
    for path in [*(checkpoint.folder for checkpoint in newest_first(folder)[keep:]), *folder.glob("partial-*")]:
        remove(path)


def remove(folder: Path) -> None:
    """Delete a checkpoint or a run; its name goes first, so that an interrupted removal leaves nothing half there."""
    doomed = folder.with_name(f"partial-removed-{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
