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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.files import file_digest, link_or_copy
from stages.training import run as runs
from stages.versioning.remotes import open_remote

NAME = re.compile(r"step-(\d{8})-([0-9a-f]{64})-[0-9a-f]{8}\.zip")
OUTBOX = "outbox"  # in a run's folder: what is to be uploaded, held by hard links
TRIES, PAUSE = 4, 5  # of one upload; seconds before the second, doubled each time
LAST_WORD = 60  # seconds that a finished training waits for its copies to be removed
GRACE = 5  # of these, for an upload that is under way; then it is cut off, for nobody needs it any more


@dataclass(frozen=True)
class Copy:
    """A checkpoint on the remote."""

    run: str
    step: int
    sha256: str
    name: str
    size: int


class Remote:
    """The checkpoints on one DVC remote of the repository at ``root``."""

    def __init__(self, root: Path, name: str):
        """Raises UserError where there is no such remote."""
        try:
            remote = open_remote(root, name)
        except UserError as error:
            raise UserError(f"checkpoints.mirror: {error}") from None
        self.name, self.fs = name, remote.fs
        self.base = self.fs.join(remote.path, "checkpoints")
        if self.fs.protocol == "gdrive":
            self.fs.fs._trash_only = False  # what was superseded must not count against the quota

    def path(self, *parts: str) -> str:
        return self.fs.join(self.base, *parts)

    def runs(self) -> list[str]:
        """Names of the runs that have copies."""
        return sorted(self.names(self.base))

    def names(self, folder: str) -> list[str]:
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def copies(self, run: str) -> list[Copy]:
        """A run's copies, the newest first."""
        found = [(name, match) for name in self.names(self.path(run)) if (match := NAME.fullmatch(name))]
        copies = [Copy(run, int(m[1]), m[2], name, self.fs.size(self.path(run, name))) for name, m in found]
        return sorted(copies, key=lambda copy: (copy.step, copy.name), reverse=True)

    def parts(self, run: str) -> dict:
        """What a run is made of."""
        with self.fs.open(self.path(run, runs.PARTS), "r") as file:
            return json.loads(file.read())

    def upload(self, folder: Path, checkpoint: Path, keep: int) -> None:
        """Copy a checkpoint, with its run's parts before the first; then delete all but the ``keep`` newest."""
        run = folder.name
        self.fs.makedirs(self.path(run), exist_ok=True)
        if runs.PARTS not in self.names(self.path(run)):
            self.fs.put_file(str(folder / runs.PARTS), self.path(run, runs.PARTS))
        archive = pack(checkpoint)
        try:
            name = f"{checkpoint.name}-{file_digest(archive)}-{secrets.token_hex(4)}.zip"
            self.fs.put_file(str(archive), self.path(run, name))
        finally:
            archive.unlink(missing_ok=True)
        for old in self.copies(run)[keep:]:
            self.fs.remove(self.path(run, old.name))

    def download(self, copy: Copy, folder: Path) -> Path:
        """Bring a copy into a run's folder; returns the checkpoint, whole and verified.

        Raises UserError where the bytes are not those that were sent.
        """
        partial, archive = folder / f"partial-{copy.step:08}", folder / f"partial-{copy.step:08}.zip"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(self.path(copy.run, copy.name), str(archive))
            if file_digest(archive) != copy.sha256:
                raise UserError(f"{copy.name} on {self.name} is not what was sent")
            shutil.rmtree(partial, ignore_errors=True)
            with zipfile.ZipFile(archive) as members:
                members.extractall(partial)
            if problem := runs.damage(partial):
                raise UserError(f"{copy.name} on {self.name} is damaged: {problem}")
            return runs.complete(partial, folder / f"step-{copy.step:08}")
        finally:
            archive.unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, run: str) -> None:
        """Delete all of a run's copies, for good."""
        for name in self.names(self.path(run)):
            self.fs.remove(self.path(run, name))
        with contextlib.suppress(Exception):  # object stores have no folders to delete
            self.fs.rmdir(self.path(run))


def pack(checkpoint: Path) -> Path:
    """A checkpoint's files as a zip beside it; stored, for weights do not shrink."""
    archive = checkpoint.with_name(f"{checkpoint.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
        for path in sorted(checkpoint.iterdir()):
            members.write(path, path.name)
    return archive


class Mirror:
    """The process that uploads a run's checkpoints; the training's side of it. quiet: the warning was given already."""

    def __init__(self, root: Path, remote: str, folder: Path, keep: int, quiet: bool = False):
        self.outbox = folder / OUTBOX
        shutil.rmtree(self.outbox, ignore_errors=True)
        self.outbox.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            __name__,
            str(root),
            remote,
            str(folder),
            str(keep),
            "quiet" if quiet else "loud",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def send(self, checkpoint: Path) -> None:
        """Have a checkpoint copied; one that still waits is overtaken."""
        held = self.outbox / checkpoint.name
        shutil.copytree(checkpoint, held, copy_function=link_or_copy, dirs_exist_ok=True)
        self.say(checkpoint.name)

    def finish(self) -> None:
        """The run is done: have its copies removed, and wait for that, but not for long."""
        self.say("finished")
        self.process.stdin.close()
        try:
            self.process.wait(LAST_WORD)
        except subprocess.TimeoutExpired:
            self.process.kill()
            warn("the run's copies on the remote may be left there: python -m tools.checkpoints prune")
        shutil.rmtree(self.outbox, ignore_errors=True)

    def say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it gave up, and said so
            print(line, file=self.process.stdin, flush=True)


def warn(message: str) -> None:
    print(f"\nwarning: {message}", file=sys.stderr, flush=True)


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
        remote = None
        while True:
            with self.news:
                self.news.wait_for(lambda: self.newest)
                line, self.newest = self.newest, None
            remote = remote or self.attempt("reached", Remote, self.root, self.remote)
            if remote and line == "finished":
                self.attempt("cleared", remote.remove, self.folder.name)
            elif remote:
                self.attempt(f"sent {line}", remote.upload, self.folder, self.folder / OUTBOX / line, self.keep)
                self.tidy(line)
            if line == "finished":
                return

    def attempt(self, what: str, work: Callable, *arguments: object) -> object:
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

    def tidy(self, done: str) -> None:
        """Let go of what was sent or overtaken."""
        for path in (self.folder / OUTBOX).iterdir():
            if path.name <= done:
                shutil.rmtree(path, ignore_errors=True)


def main(root: str, remote: str, folder: str, keep: str, voice: str, *told: str) -> None:
    """Upload what standard input names, until it ends: then the training is gone, and so are we.

    told: lines in place of standard input's.
    """
    uploader = Uploader(Path(root), remote, Path(folder), int(keep), voice == "quiet")
    uploader.start()
    for line in told or sys.stdin:
        uploader.tell(line.strip())
        if line.strip() == "finished":
            uploader.join(None if told else GRACE)
            if uploader.is_alive():  # no thread can be stopped, but its process can become another
                again = [sys.executable, "-m", __spec__.name, root, remote, folder, keep, voice, "finished"]
                os.execv(sys.executable, again)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
