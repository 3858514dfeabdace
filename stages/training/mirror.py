"""Checkpoints on a DVC remote, so that another machine can go on: copied beside training, verified before use.

On the remote they lie in ``checkpoints/<run>/``, away from DVC's own ``files/``: ``parts.json`` of the run, and zips
named by step, SHA-256 and a random part, so that no name is written twice. A process of its own uploads them; what
goes wrong there gives one warning and never ends the training.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError
from stages.runtime.files import file_digest, link_or_copy, write_json
from stages.runtime.progress import note, warn
from stages.training.checkpoints import PARTS, Checkpoint, DamagedError, complete, damage, step_name
from stages.training.run import Parts
from stages.versioning.remotes import open_remote

COPY = re.compile(r"step-(\d{8})-([0-9a-f]{64})-[0-9a-f]{8}\.zip")
OUTBOX = "outbox"  # in a run's folder: what is to be uploaded, held by hard links
TRIES, PAUSE = 4, 5  # of one upload; seconds before the second, doubled each time
FINISH_SECONDS = 60  # that a finished training waits for its copies to be removed
GRACE_SECONDS = 5  # of these, for an upload that is under way; then it is cut off, for nobody needs it any more
FINISHED = "finished"  # what the uploader is told last; before it, the names of checkpoints


class UnavailableError(UserError):
    """A remote that cannot be reached or read."""


@dataclass(frozen=True)
class RemoteCopy:
    """A checkpoint on the remote, as a zip of so many bytes."""

    run: str
    step: int
    sha256: str
    name: str
    size: int


class RemoteCheckpoints:
    """The checkpoints on one DVC remote of the repository at ``root``; store: the folder here that they are fetched to.

    What goes wrong while it is asked is an UnavailableError.
    """

    def __init__(self, root: Path, name: str, store: Path):
        """Raises UserError where there is no such remote."""
        self.name, self.store = name, store
        with self.asking():
            try:
                remote = open_remote(root, name)
            except UserError as error:
                raise UserError(f"checkpoints.mirror: {error}") from None
            self.fs = remote.fs
            self.base = self.fs.join(remote.path, "checkpoints")
            if self.fs.protocol == "gdrive":
                self.fs.fs._trash_only = False  # what was superseded must not count against the quota

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a remote's libraries raise anything
            raise UnavailableError(f"remote {self.name} cannot be reached or read: {error}") from error

    def path(self, *parts: str) -> str:
        path: str = self.fs.join(self.base, *parts)
        return path

    def runs(self) -> list[str]:
        """Names of the runs that have copies."""
        with self.asking():
            return sorted(self.names(self.base))

    def parts(self, run: str) -> Parts:
        """What a run is made of."""
        with self.asking(), self.fs.open(self.path(run, PARTS), "r") as file:
            parts: Parts = json.loads(file.read())
            return parts

    def steps(self, run: str) -> list[int]:
        """The steps of which a run has a copy, the newest first."""
        return list(dict.fromkeys(copy.step for copy in self.copies(run)))

    def fetch(self, run: str, step: int) -> Checkpoint:
        """A run's checkpoint of a step, brought into the store; raises DamagedError where it is not what was sent."""
        problem = f"the copy of step {step} is gone"
        for copy in (copy for copy in self.copies(run) if copy.step == step):
            note(f"fetching the checkpoint of step {step} from {self.name}, {copy.size / 1e6:.0f} MB")
            try:
                with self.asking():
                    return self.download(copy)
            except DamagedError as error:
                problem = str(error)
        raise DamagedError(problem)

    def copies(self, run: str) -> list[RemoteCopy]:
        """A run's copies, the newest first."""
        with self.asking():
            found = [(name, match) for name in self.names(self.path(run)) if (match := COPY.fullmatch(name))]
            copies = [RemoteCopy(run, int(m[1]), m[2], name, self.fs.size(self.path(run, name))) for name, m in found]
        return sorted(copies, key=lambda copy: (copy.step, copy.name), reverse=True)

    def names(self, folder: str) -> list[str]:
        """Of what lies in a folder."""
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def download(self, copy: RemoteCopy) -> Checkpoint:
        """Bring a copy into the store, with its run's parts. Raises DamagedError."""
        folder = self.store / copy.run
        partial, archive = folder / f"partial-{copy.step:08}", folder / f"partial-{copy.step:08}.zip"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(self.path(copy.run, copy.name), str(archive))
            if file_digest(archive) != copy.sha256:
                raise DamagedError(f"{copy.name} on {self.name} is not what was sent")
            shutil.rmtree(partial, ignore_errors=True)
            with zipfile.ZipFile(archive) as members:
                members.extractall(partial)
            if problem := damage(partial):
                raise DamagedError(f"{copy.name} on {self.name} is damaged: {problem}")
            if not (folder / PARTS).exists():
                write_json(folder / PARTS, self.parts(copy.run))
            complete(partial, folder / step_name(copy.step))
            return Checkpoint(folder / step_name(copy.step))
        finally:
            archive.unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)

    def upload(self, folder: Path, checkpoint: Path, keep: int) -> None:
        """Copy a checkpoint, with its run's parts before the first; then delete all but the ``keep`` newest."""
        run = folder.name
        self.fs.makedirs(self.path(run), exist_ok=True)
        if PARTS not in self.names(self.path(run)):
            self.fs.put_file(str(folder / PARTS), self.path(run, PARTS))
        archive = pack(checkpoint)
        try:
            name = f"{checkpoint.name}-{file_digest(archive)}-{secrets.token_hex(4)}.zip"
            self.fs.put_file(str(archive), self.path(run, name))
        finally:
            archive.unlink(missing_ok=True)
        for old in self.copies(run)[keep:]:
            self.fs.remove(self.path(run, old.name))

    def remove(self, run: str) -> None:
        """Delete all of a run's copies, for good."""
        with self.asking():
            for name in self.names(self.path(run)):
                self.fs.remove(self.path(run, name))
            with contextlib.suppress(Exception):  # object stores have no folders to delete
                self.fs.rmdir(self.path(run))


def reach_remote(root: Path, name: str, store: Path) -> RemoteCheckpoints | None:
    """The remote with the checkpoints, where it answers; raises UserError where there is no such one."""
    try:
        remote = RemoteCheckpoints(root, name, store)
        remote.runs()  # asks it something
    except UnavailableError as error:
        warn(f"{error}; training goes on without it")
        return None
    return remote


def pack(checkpoint: Path) -> Path:
    """A checkpoint's files as a zip beside it; stored, for weights do not shrink."""
    archive = checkpoint.with_name(f"{checkpoint.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
        for path in sorted(checkpoint.iterdir()):
            members.write(path, path.name)
    return archive


class Mirror:
    """The copies of a run's checkpoints on a remote: those that are there, and the process that uploads new ones.

    remote: None where it did not answer; the process, begun with the first checkpoint, tries again, and gives no second
    warning.
    """

    def __init__(self, root: Path, name: str, keep: int, folder: Path):
        """Raises UserError where there is no such remote. keep: how many of the run's copies stay there."""
        self.remote = reach_remote(root, name, folder.parent)
        self.command = uploader_command(root, name, folder, keep, quiet=not self.remote)
        self.outbox = folder / OUTBOX
        shutil.rmtree(self.outbox, ignore_errors=True)

    @cached_property
    def process(self) -> "subprocess.Popen[str]":
        self.outbox.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(self.command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def send(self, checkpoint: Path) -> None:
        """Have a checkpoint copied; one that still waits is overtaken."""
        shutil.copytree(checkpoint, self.outbox / checkpoint.name, copy_function=link_or_copy, dirs_exist_ok=True)
        self.tell(checkpoint.name)

    def finish(self) -> None:
        """The run is done: have its copies removed, and wait for that, but not for long."""
        self.tell(FINISHED)
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            warn("the run's copies on the remote may be left there: python -m tools.checkpoints prune")
        shutil.rmtree(self.outbox, ignore_errors=True)

    def tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it gave up, and said so
            print(line, file=self.process.stdin, flush=True)


def uploader_command(root: Path, remote: str, folder: Path, keep: int, quiet: bool, *lines: str) -> list[str]:
    """What runs ``main`` below in a process of its own."""
    options = [str(root), remote, str(folder), str(keep), "quiet" if quiet else "loud"]
    return [sys.executable, "-m", "stages.training.mirror", *options, *lines]


class Uploader(threading.Thread):
    """Uploads the newest of what it was told, in the mirror's own process."""

    def __init__(self, root: Path, remote: str, folder: Path, keep: int, warned: bool):
        super().__init__(daemon=True)
        self.root, self.remote, self.folder, self.keep = root, remote, folder, keep
        self.news = threading.Condition()
        self.newest: str | None = None
        self.warned = warned

    def tell(self, line: str) -> None:
        """Put a line in place of one that was not begun yet."""
        with self.news:
            self.newest = line
            self.news.notify()

    def run(self) -> None:
        remote: RemoteCheckpoints | None = None
        while True:
            with self.news:
                self.news.wait_for(lambda: self.newest)
                line, self.newest = self.newest or "", None
            remote = remote or self.attempt("reached", RemoteCheckpoints, self.root, self.remote, self.folder.parent)
            if remote and line == FINISHED:
                self.attempt("cleared", remote.remove, self.folder.name)
            elif remote:
                self.attempt(f"sent {line}", remote.upload, self.folder, self.folder / OUTBOX / line, self.keep)
                self.tidy(line)
            if line == FINISHED:
                return

    def attempt(self, what: str, work: Callable[..., Any], *arguments: object) -> Any:
        """Try a few times; warns once in a run, whatever it was."""
        for pause in (*(PAUSE * 2**number for number in range(TRIES - 1)), None):
            try:
                return work(*arguments)
            except Exception as error:  # a remote's libraries raise anything
                if self.newest or pause is None:  # something newer overtakes it
                    if not self.warned:
                        warn(f"remote {self.remote} could not be {what}: {error}; training goes on without the copy")
                    self.warned = True
                    return None
                time.sleep(pause)
        return None

    def tidy(self, done: str) -> None:
        """Let go of what was sent or overtaken."""
        for path in (self.folder / OUTBOX).iterdir():
            if path.name <= done:
                shutil.rmtree(path, ignore_errors=True)


def main(root: str, remote: str, folder: str, keep: str, voice: str, *lines: str) -> None:
    """Upload what standard input names, until it ends: then the training is gone, and so are we.

    lines: in place of standard input's.
    """
    where, quiet = (Path(root), remote, Path(folder), int(keep)), voice == "quiet"
    uploader = Uploader(*where, quiet)
    uploader.start()
    for line in lines or sys.stdin:
        uploader.tell(line.strip())
        if line.strip() == FINISHED:
            uploader.join(None if lines else GRACE_SECONDS)
            if uploader.is_alive():  # no thread can be stopped, but its process can become another
                os.execv(sys.executable, uploader_command(*where, quiet, FINISHED))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
