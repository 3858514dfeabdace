"""``python -m tools.drive``: set up a Google Drive remote, see what fits, and push and pull so that nothing is lost.

``check``, ``push`` and ``pull`` work on every DVC remote, and alongside plain ``dvc push`` and ``dvc pull``.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError, one_line
from tools.drive.retry import RemoteError, RetryPolicy

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tools.drive.stores import Store
    from tools.drive.transfer import TransferReport


@click.group()
def main() -> None:
    """A DVC remote that survives a bad connection: on Google Drive, or any other."""


def retry_options(command: Callable[..., int]) -> Callable[..., int]:
    """How long faults are put up with, options that every command has; the command gets them as ``policy``."""

    @seconds_option("timeout", 40, "Seconds of silence that count as a fault.")
    @seconds_option("backoff", 1, "Seconds before the second try; they double with each.")
    @seconds_option("patience", 90, "Seconds on end without any success before it gives up.")
    @functools.wraps(command)
    def with_policy(*, backoff: float, patience: float, timeout: float, **options: object) -> int:
        return command(policy=RetryPolicy(backoff, patience, timeout), **options)

    return with_policy


def seconds_option(name: str, default: float, text: str) -> Callable[[Callable], Callable]:
    variable = f"DRIVE_{name.upper()}"
    return click.option(f"--{name}", type=float, default=default, envvar=variable, show_default=True, help=text)


remote_option = click.option("-r", "--remote", help="The remote's name; without it the default remote.")


@main.command("check")
@remote_option
@retry_options
def check_command(remote: str | None, policy: RetryPolicy) -> int:
    """Show what a push would send, what is there and what is free; status 1 where it does not fit."""
    from tools.drive.transfer import check_quota, plan_push, plan_table

    with store_here(remote, policy) as (repo, store):
        plan = plan_push(repo, store)
        click.echo(plan_table(plan, store))
        check_quota(plan, store)
    return 0


@main.command("push")
@remote_option
@retry_options
def push_command(remote: str | None, policy: RetryPolicy) -> int:
    """Send what the remote lacks, and compare checksums; status 1 where something failed or nothing would fit."""
    from tools.drive.transfer import push_objects

    return transfer(push_objects, remote, policy)


@main.command("pull")
@remote_option
@retry_options
def pull_command(remote: str | None, policy: RetryPolicy) -> int:
    """Fetch what the workspace lacks, and compare checksums; status 1 where something failed."""
    from tools.drive.transfer import pull_objects

    return transfer(pull_objects, remote, policy)


@main.command("connect")
@click.argument("folder", required=False)
@click.option("--client-id", help="Of your own OAuth client, of the type Desktop app.")
@click.option(
    "--client-secret",
    envvar="DRIVE_CLIENT_SECRET",
    help="Better not given here, where ps shows it: it is asked for, or taken from DRIVE_CLIENT_SECRET.",
)
@click.option("--service-account", type=click.Path(path_type=Path), help="Its key file, instead of a client.")
@click.option("--no-browser", is_flag=True, help="Print the link, for a browser on another machine.")
@click.option("--name", default="drive", show_default=True, help="The remote's name.")
@retry_options
def connect_command(folder: str | None, name: str, policy: RetryPolicy, no_browser: bool, **identity) -> int:
    """Make FOLDER, a Drive link or id, the default remote: sign in, check the folder, write the configuration.

    Without FOLDER it is the one in .dvc/config. A client that was given once is remembered.
    """
    from tools.drive.connection import connect_folder

    with as_user_errors():
        click.echo(connect_folder(folder, name, policy, browser=not no_browser, **identity))
    return 0


def transfer(move: "Callable[[Repo, Store], TransferReport]", remote: str | None, policy: RetryPolicy) -> int:
    """Move objects under DVC's own lock, as ``dvc push`` and ``dvc pull`` hold it, and print what became of them."""
    from dvc.repo import lock_repo

    with store_here(remote, policy) as (repo, store), lock_repo(repo):
        report = move(repo, store)
    click.echo(report.table())
    return 1 if report.failed else 0


@contextmanager
def store_here(remote: str | None, policy: RetryPolicy) -> "Iterator[tuple[Repo, Store]]":
    """The repository in the working directory and its remote; errors of either are UserErrors."""
    from dvc.repo import Repo

    from tools.drive.stores import open_store

    os.environ["GDRIVE_NON_INTERACTIVE"] = "1"  # a sign-in that has expired is an error, not a wait for a browser
    with as_user_errors(), Repo() as repo:
        yield repo, open_store(repo, remote, policy)


@contextmanager
def as_user_errors() -> Iterator[None]:
    """DVC's errors and a remote's faults as UserErrors."""
    from dvc.exceptions import DvcException
    from dvc_objects.fs.errors import ConfigError

    try:
        yield
    except (DvcException, ConfigError, RemoteError) as error:
        raise UserError(one_line(error)) from None


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
