"""``python -m tools.checkpoints list|prune``: what unfinished and finished runs hold, here and on the remote."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from stages.params import load_params
from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.training.checkpoints import LocalCheckpoints, in_use
from stages.training.mirror import RemoteCheckpoints
from stages.training.run import short_name

STORE = click.option("--store", type=click.Path(path_type=Path), default="models/checkpoints", help="Runs' folder.")
PARAMS = click.option("--params", type=click.Path(path_type=Path), default="params.yaml")


@dataclass(frozen=True)
class Holding:
    """What one run holds in one place. age: hours since its newest checkpoint; None on a remote, which may not say."""

    place: str
    run: str
    steps: list[int]
    size: int
    age: float | None


@click.group()
def main() -> None:
    """Checkpoints of training runs."""


@main.command("list")
@STORE
@PARAMS
def list_holdings(store: Path, params: Path) -> None:
    """Show every run's checkpoints: place, steps, size, age."""
    holdings = [*held_here(store), *held_on(mirror_of(params, store))]
    if not holdings:
        click.echo(f"no checkpoints in {store}")
        return
    click.echo(f"{'place':<14}{'run':<8}{'steps':<24}{'size':>10}{'age':>10}")
    for held in holdings:
        steps = ", ".join(str(step) for step in held.steps) or "none"
        age = f"{held.age:.1f} h" if held.age is not None else ""
        click.echo(f"{held.place:<14}{short_name(held.run):<8}{steps:<24}{held.size / 1e6:>7.1f} MB{age:>10}")


@main.command("prune")
@STORE
@PARAMS
@click.argument("names", metavar="[RUN]…", nargs=-1)
@click.option("--remote", "on_remote", is_flag=True, help="On checkpoints.mirror, too.")
def prune_runs(store: Path, params: Path, names: tuple[str, ...], on_remote: bool) -> None:
    """Delete the named runs' checkpoints, or those of all; not those of a run that is being trained."""
    remote = mirror_of(params, store) if on_remote else None
    if on_remote and remote is None:
        raise UserError("checkpoints.mirror in params.yaml names no remote")
    holdings = [*held_here(store), *held_on(remote)]
    chosen = [held for held in holdings if not names or held.run.startswith(names)]
    for name in names:
        if not any(held.run.startswith(name) for held in chosen):
            raise UserError(f"no run {name}: python -m tools.checkpoints list shows those that there are")
    for held in chosen:
        if remote and held.place == remote.name:
            remote.remove(held.run)
        elif in_use(store / held.run):
            click.echo(f"run {short_name(held.run)} is being trained; left alone")
            continue
        else:
            shutil.rmtree(store / held.run)
        click.echo(f"run {short_name(held.run)} {held.place}: {held.size / 1e6:.1f} MB freed")


def mirror_of(params: Path, store: Path) -> RemoteCheckpoints | None:
    """The remote that params names, if any."""
    name = load_params(params).checkpoints.mirror
    return RemoteCheckpoints(Path(), name, store) if name else None


def held_here(store: Path) -> list[Holding]:
    """The runs of a store, the latest first; hard links count once."""
    local, holdings = LocalCheckpoints(store), []
    for folder in (path for path in store.glob("*") if path.is_dir()):
        files = {path.stat().st_ino: path.stat() for path in folder.rglob("*") if path.is_file()}
        newest = max((stat.st_mtime for stat in files.values()), default=time.time())
        size = sum(stat.st_size for stat in files.values())
        age = (time.time() - newest) / 3600
        holdings.append((age, Holding(local.name, folder.name, local.steps(folder.name), size, age)))
    return [held for _, held in sorted(holdings, key=lambda entry: entry[0])]


def held_on(remote: RemoteCheckpoints | None) -> list[Holding]:
    """The runs that have copies on the remote, if there is one."""
    if not remote:
        return []
    copies = {run: remote.copies(run) for run in remote.runs()}
    return [
        Holding(remote.name, run, [copy.step for copy in found], sum(copy.size for copy in found), None)
        for run, found in copies.items()
    ]


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
