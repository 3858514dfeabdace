"""The command line around a stage or a tool: how it stops, and how it says what went wrong."""

import signal
import sys
from collections.abc import Callable

import click

from stages.asr.errors import UserError


def run(load: Callable[[], click.Command], arguments: list[str]) -> None:
    """Load and run a click command, then end the process: with 0 only where the work is done.

    DVC records a stage that exits 0 as done, so Ctrl-C ends with 130 and SIGTERM with 143, one line each, also while
    the command's modules are still being imported (``load``). UserError ends with 1 and its message; any other
    exception is our own mistake and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        status = load().main(arguments, standalone_mode=False) or 0
    except (KeyboardInterrupt, click.Abort):
        status = stop("stopped by Ctrl-C", 130)
    except Terminated:
        status = stop("stopped by SIGTERM", 143)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except UserError as error:
        status = stop(f"Error: {error}", 1)
    sys.exit(status)


class Terminated(BaseException):
    """SIGTERM, as an exception that passes through ``except Exception``, so that files are closed on the way."""


def terminate(number: int, frame: object) -> None:
    raise Terminated


def stop(message: str, status: int) -> int:
    click.echo(message, err=True)
    return status
