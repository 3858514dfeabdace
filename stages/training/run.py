"""Training runs at rest: what a run is, one process a run, and checkpoints that are complete or absent.

A run is named by a digest of everything that shapes its result. Below a store, a git-ignored folder that is no out of
any stage, each has a folder by its name:

    <name>/parts.json     what the digest is made of, to say why a checkpoint does not fit
    <name>/lock           held by the one process that trains it
    <name>/step-00000600  a checkpoint; manifest.json in it has the SHA-256 of every other file
    <name>/partial-…      one that is being written, or never was finished
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from stages.runtime.errors import UserError
from stages.runtime.files import file_digest, write_json
from stages.runtime.imports import reached_modules

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")  # whose versions may shape the weights
BY_VALUE = frozenset({"stages.params"})  # whose values count instead of its code
PARTS, MANIFEST = "parts.json", "manifest.json"


@dataclass(frozen=True)
class Run:
    """A run by what shapes its result.

    parts: {"params", "shards", "base", "code", "versions", "machine"}, each a dict of names and JSON values.
    """

    parts: dict[str, dict]

    @property
    def name(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, store: Path) -> Path:
        return store / self.name

    def differences(self, theirs: dict[str, dict]) -> dict[str, list[str]]:
        """How this run differs from one of other parts: {"params": ["learning_rate: 0.001, was 0.002"], …}."""
        found = {}
        for part, values in self.parts.items():
            mine, their = flat(values), flat(theirs.get(part, {}))
            names = sorted(name for name in mine.keys() | their.keys() if mine.get(name) != their.get(name))
            if names:
                found[part] = [f"{name}: {shown(mine.get(name))}, was {shown(their.get(name))}" for name in names]
        return found


def short(name: str) -> str:
    """A run's name as people see it."""
    return name[:6]


def describe(params: dict, shards: list[Path], base: str, module: str) -> Run:
    """The run of these settings, shard folders, base model's digest and training module on this machine."""
    device = torch.accelerator.current_accelerator()
    machine = torch.cuda.get_device_name() if device and device.type == "cuda" else processor()
    return Run(
        {
            "params": params,
            "shards": {
                path.parent.name + "/" + path.name: file_digest(path) for folder in shards for path in zips(folder)
            },
            "base": {"digest": base},
            "code": {str(name): file_digest(path) for name, path in reached_modules(module, BY_VALUE).items()},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "machine": {
                "processor": machine,
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
            },
        }
    )


def zips(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.zip"))


def processor() -> str:
    """The processor's model, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one with dotted names."""
    result = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def shown(value: object) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a run alone; waits for the process that has it, and says which that is."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            say(f"run {short(folder.name)} is in the hands of process {lock.read().strip() or '?'}; waiting for it")
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


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first; each was complete when it got its name."""
    return sorted(folder.glob("step-*"), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make a checkpoint of what ``write`` puts into the folder it is given; returns where it lies.

    It is written aside, flushed to the disk, and gets its name last. Raises UserError where the disk is full.
    """
    final, partial = folder / f"step-{step:08}", folder / f"partial-{os.getpid()}"
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


def complete(partial: Path, final: Path) -> Path:
    """Give a whole checkpoint its name, once all of it is on the disk."""
    for path in [*partial.iterdir(), partial]:
        flush(path)
    if final.exists():
        remove(final)  # a damaged one of the same step
    partial.rename(final)
    flush(final.parent)
    return final


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: Exception) -> bool:
    """Whether a disk or a quota is used up; libraries wrap the system's error in their own."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        sign in str(error) for sign in ("No space left", "os error 28", "quota exceeded", "file write failed")
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in manifest.items():
        try:
            found = file_digest(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written"
    return None


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is undamaged; says which it passes over."""
    for checkpoint in checkpoints(folder):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        say(f"{checkpoint} is damaged: {problem}; taking the one before it")
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but a run's newest checkpoints, and what was never finished."""
    for path in [*checkpoints(folder)[keep:], *folder.glob("partial-*")]:
        remove(path)


def remove(folder: Path) -> None:
    """Delete a checkpoint or a run; its name goes first, so that an interrupted removal leaves nothing half there."""
    doomed = folder.with_name(f"partial-removed-{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
