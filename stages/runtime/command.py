"""The command line around a stage or a tool: how it stops, and how it says what went wrong."""

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError, is_full

if TYPE_CHECKING:
    from click import Command

STOPS: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
IN_THE_WAY = (FileExistsError, IsADirectoryError, NotADirectoryError)
AGAIN_S = 0.01  # until a finalizer that met a stop, and could not pass it on, has ended


def run(load: "Callable[[], Command]", arguments: list[str]) -> None:
    """Load and run a click command, then end the process: with 0 only where the work is done.

    DVC records a stage that exits 0 as done, so Ctrl-C ends with 130 and SIGTERM with 143, one line each, also while
    the command's modules are still being imported (``load``). UserError, a full disk and a lack of permission end
    with 1 and a message; any other exception is our own mistake and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal in Latin-1 does not know, such as an arrow
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        sys.unraisablehook = swallow
        while frame:
            if frame.f_code is invoke.__code__:  # else the work is done, and whatever ends the process is left to it
                raise Stopped
            frame = frame.f_back

    def swallow(lost: "sys.UnraisableHookArgs") -> None:
        """Say nothing of a finalizer that meets what was left half done, but stop again where one met the stop."""
        if lost.exc_type is Stopped:  # else training would go on to its end
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    for number in (*STOPS, signal.SIGALRM):
        signal.signal(number, stop)
    try:
        status = invoke(load, arguments)
    except BaseException as error:
        if not came:
            status = report_error(error)
    for number in (*STOPS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # to the end, where Python would give a handler's signal its default
    if came:  # whatever became of the exception: a finalizer swallows it, an import turns it into another
        status = report(f"stopped by {STOPS[came[0]]}", 128 + came[0])
    sys.exit(status)


def leave_at_once() -> None:
    """Have Ctrl-C and SIGTERM end the process with their line and status until ``run`` hears them: no work began."""

    def leave(number: int, _: FrameType | None) -> None:
        os._exit(report(f"stopped by {STOPS[number]}", 128 + number))

    for number in STOPS:
        signal.signal(number, leave)


def report_error(error: BaseException) -> int:
    """Say in a line what a person can mend, and give its exit status; raises anything else again."""
    if isinstance(error, UserError):
        message = str(error).rpartition(f"{UserError.__name__}: ")[2]  # a loader's process puts its traceback before
        return report(f"Error: {message.strip()}", 1)
    name = getattr(error, "filename", None)
    if is_full(error):
        place = f" for {name}" if name else ""
        return report(f"Error: no space is left on the disk{place}: free some and run the same command again", 1)
    if isinstance(error, PermissionError):
        return report(f"Error: {name}: permission denied: let this user read and write it (chmod, chown)", 1)
    if isinstance(error, IN_THE_WAY):
        return report(f"Error: {name}: {error.strerror}: a file lies where a folder belongs, or the reverse", 1)
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return report(f"Error: {name}: its file system is read-only: work in a folder that can be written", 1)
    raise error


class Stopped(BaseException):
    """A signal, as an exception that passes through ``except Exception``, so that files are closed on the way."""


def invoke(load: "Callable[[], Command]", arguments: list[str]) -> int:
    """The status of a click command, which explains wrong options itself."""
    import click  # only here, where a signal is already heard

    gc.disable()
    try:
        command = load()
    finally:
        gc.enable()
    gc.freeze()  # torch and transformers make a million objects that stay: looking for garbage among them takes seconds
    try:
        status: int = command.main(arguments, standalone_mode=False) or 0
        return status
    except click.ClickException as error:
        error.show()
        return error.exit_code


def report(message: str, status: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return status
