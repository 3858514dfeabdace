"""Stages as processes of their own, as DVC runs them, and commands in this one."""

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click

from stages.runtime.command import invoke, report_error
from tests.support.material import ROOT

PATIENCE = 60  # seconds until a process that says nothing counts as hanging; a test never waits for them to pass
NOISE = re.compile(r"import time:.*|[^\r\n]*?\d+(%\||\w+ \[)[^]\r\n]*]")  # of -X importtime, and progress bars


class Stage:
    """``python -m stages …`` in a process group of its own; use as a context manager."""

    def __init__(self, folder: Path, *arguments: object, flags: tuple[str, ...] = (), **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-m", "stages", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.said = ""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait_for(self, words: str) -> None:
        """Read stderr until words stand there."""
        while words not in self.said:
            if not self.read():
                raise AssertionError(f"ended without saying {words!r}:\n{self.said}")

    def read(self) -> bool:
        """Read what stderr holds; False at its end, which comes once no process holds it any more."""
        stderr = self.process.stderr.fileno()
        if not select.select([stderr], [], [], PATIENCE)[0]:
            raise AssertionError(f"says nothing any more:\n{self.said}")
        piece = os.read(stderr, 65536).decode(errors="replace")
        self.said += piece
        return bool(piece)

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: every process of the group gets it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, list[str]]:
        """Wait for the process and its children; returns its status and the lines on stderr beside its progress."""
        while self.read():
            pass
        return self.process.wait(PATIENCE), said_lines(self.said)


def said_lines(said: str) -> list[str]:
    """The lines of what was written on stderr, without its progress."""
    return [line for line in re.split(r"[\r\n]+", NOISE.sub("", said)) if line.strip()]


def call(command: click.Command, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, from the project's folder, to the end that it would have in its own."""
    words, out, err = [str(argument) for argument in arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
        try:
            status = invoke(lambda: command, words)
        except Exception as error:
            status = report_error(error)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
