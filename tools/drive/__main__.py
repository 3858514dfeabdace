"""``python -m tools.drive``: set up a Google Drive remote, see what fits, and push and pull so that nothing is lost.

``check``, ``push`` and ``pull`` work on every DVC remote, and beside plain ``dvc push`` and ``dvc pull``.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError
from tools.drive.google import Failed, Patience

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tools.drive.stores import Store


@click.group()
def main() -> None:
    """A DVC remote that survives a bad connection: on Google Drive, or any other."""


def seconds(name: str, default: float, words: str) -> Callable:
    variable = f"DRIVE_{name.upper()}"
    return click.option(f"--{name}", type=float, default=default, envvar=variable, show_default=True, help=words)


def bounds(command: Callable) -> Callable:
    """How long to bear faults: options that every command has."""
    command = seconds("patience", 90, "Seconds on end without any success until it gives up.")(command)
    command = seconds("backoff", 1, "Seconds before the second try; they double with each.")(command)
    return seconds("timeout", 40, "Seconds of silence that count as a fault.")(command)


remote_option = click.option("-r", "--remote", help="The remote's name; without it the default remote.")


@main.command()
@remote_option
@bounds
def check(**settings) -> int:
    """Show what a push would send, what is there and what is free; status 1 where it does not fit."""
    from tools.drive.transfer import check_room, overview

    with opened(**settings) as (repo, store):
        table, plan = overview(repo, store)
        click.echo(table)
        check_room(plan, store)
    return 0


@main.command()
@remote_option
@bounds
def push(**settings) -> int:
    """Send what the remote lacks, and compare checksums; status 1 where something failed or nothing would fit."""
    from tools.drive import transfer

    with opened(**settings) as (repo, store), locked(repo):
        report = transfer.push(repo, store)
    click.echo(report.table())
    return 1 if report.failed else 0


@main.command()
@remote_option
@bounds
def pull(**settings) -> int:
    """Fetch what the workspace lacks, and compare checksums; status 1 where something failed."""
    from tools.drive import transfer

    with opened(**settings) as (repo, store), locked(repo):
        report = transfer.pull(repo, store)
    click.echo(report.table())
    return 1 if report.failed else 0


@main.command()
@click.argument("folder", required=False)
@click.option("--client-id", help="Of your own OAuth client, of the kind Desktop app.")
@click.option(
    "--client-secret",
    envvar="DRIVE_CLIENT_SECRET",
    help="Better not given here, where ps shows it: it is asked for, or taken from DRIVE_CLIENT_SECRET.",
)
@click.option("--service-account", type=click.Path(path_type=Path), help="Its key file, instead of a client.")
@click.option("--no-browser", is_flag=True, help="Print the link, for a browser on another machine.")
@click.option("--name", default="drive", show_default=True, help="The remote's name.")
@bounds
def connect(folder, client_id, client_secret, service_account, no_browser, name, **settings) -> int:
    """Make FOLDER, a Drive link or id, the default remote: sign in, check the folder, write the configuration.

    Without FOLDER it is the one in .dvc/config. A client that was given once is remembered.
    """
    from tools.drive import connection

    check_proxy()
    with told(), repository() as repo:
        known = repo.config["remote"].get(name, {})
        shared = connection.shared_settings(folder, known)
        connection.check_ignored(repo, Path(repo.config.files["local"]))
        if service_account:
            mine = connection.service_settings(repo, service_account.expanduser().resolve())
            signing = nullcontext(({}, ""))
        else:
            mine = connection.client_settings(repo, known, client_id, client_secret, name)
            signing = connection.signing_in(mine, browser=not no_browser)
    with told(), signing as (trial, note), repository({"remote": {name: shared | mine | trial}}) as repo:
        store = open_store(repo, name, **settings)
        account = connection.check_access(store)
        connection.write_config(repo, name, shared, mine)
    click.echo(connection.summary(account, name, shared, note))
    return 0


@contextmanager
def opened(remote: str | None, **settings: float) -> "Iterator[tuple[Repo, Store]]":
    """The repository here and its remote; what goes wrong with either is told as a UserError."""
    os.environ["GDRIVE_NON_INTERACTIVE"] = "1"  # a sign-in that has ended is an error, not a wait for a browser
    with told(), repository() as repo:
        yield repo, open_store(repo, remote, **settings)


@contextmanager
def told() -> Iterator[None]:
    """DVC's errors and a remote's faults as UserErrors."""
    from dvc.exceptions import DvcException
    from dvc_objects.fs.errors import ConfigError

    try:
        yield
    except (DvcException, ConfigError, Failed) as error:
        raise UserError(" ".join(str(error).split())) from None


@contextmanager
def repository(config: dict | None = None) -> "Iterator[Repo]":
    """DVC's repository here; ``config`` is laid over its configuration."""
    from dvc.repo import Repo

    with Repo(config=config) as repo:
        yield repo


def locked(repo: "Repo") -> AbstractContextManager:
    """DVC's own lock, for as long as a transfer takes: as ``dvc push`` and ``dvc pull`` hold it."""
    from dvc.repo import lock_repo

    return lock_repo(repo)


def open_store(repo: "Repo", name: str | None, timeout: float, backoff: float, patience: float) -> "Store":
    """A remote; on Drive signed in, its folder checked."""
    from tools.drive.stores import DriveStore, Store

    socket.setdefaulttimeout(timeout)  # PyDrive2 asks for tokens without one
    remote, bearing = repo.cloud.get_remote(name, "push"), Patience(backoff, patience)
    if remote.fs.protocol != "gdrive":
        return Store(remote, bearing)
    check_proxy()
    return DriveStore(remote, bearing, timeout)


def check_proxy() -> None:
    """Raise UserError where a proxy is set that Google's client would pass over in silence."""
    if (os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")) and not importlib.util.find_spec("socks"):
        raise UserError("https_proxy is set, and Google's client heeds it only with PySocks: pip install PySocks")


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
