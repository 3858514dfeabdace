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
from stages.training import run as runs
from stages.training.mirror import Remote

STORE = click.option("--store", type=click.Path(path_type=Path), default="models/checkpoints", help="Runs' folder.")
PARAMS = click.option("--params", type=click.Path(path_type=Path), default="params.yaml")


@dataclass(frozen=True)
class Row:
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
def list_(store: Path, params: Path) -> None:
    """Show every run's checkpoints: place, steps, size, age."""
    rows = [*local_rows(store), *remote_rows(mirror(params))]
    if not rows:
        click.echo(f"no checkpoints in {store}")
        return
    click.echo(f"{'place':<14}{'run':<8}{'steps':<24}{'size':>10}{'age':>10}")
    for row in rows:
        steps = ", ".join(str(step) for step in row.steps) or "none"
        age = f"{row.age:.1f} h" if row.age is not None else ""
        click.echo(f"{row.place:<14}{runs.short(row.run):<8}{steps:<24}{row.size / 1e6:>7.1f} MB{age:>10}")


@main.command()
@STORE
@PARAMS
@click.argument("names", metavar="[RUN]…", nargs=-1)
@click.option("--remote", "on_remote", is_flag=True, help="On checkpoints.mirror, too.")
def prune(store: Path, params: Path, names: tuple[str, ...], on_remote: bool) -> None:
    """Delete the named runs' checkpoints, or those of all; not those of a run that is being trained."""
    remote = mirror(params) if on_remote else None
    if on_remote and remote is None:
        raise UserError("checkpoints.mirror in params.yaml names no remote")
    chosen = [row for row in (*local_rows(store), *remote_rows(remote)) if matches(row.run, names)]
    for name in names:
        if not any(row.run.startswith(name) for row in chosen):
            raise UserError(f"no run {name}: python -m tools.checkpoints list shows those that there are")
    for row in chosen:
        if row.place != "here":
            remote.remove(row.run)
        elif runs.in_use(store / row.run):
            click.echo(f"run {runs.short(row.run)} is being trained; left alone")
            continue
        else:
            shutil.rmtree(store / row.run)
        click.echo(f"run {runs.short(row.run)} {row.place}: {row.size / 1e6:.1f} MB freed")


def matches(run: str, names: tuple[str, ...]) -> bool:
    return not names or any(run.startswith(name) for name in names)


def mirror(params: Path) -> Remote | None:
    """The remote that params names, if any."""
    settings = load_params(params).checkpoints
    return Remote(Path(), settings.mirror) if settings.mirror else None


def local_rows(store: Path) -> list[Row]:
    """The runs of a store, the newest first; hard links count once."""
    rows = []
    for folder in (path for path in store.glob("*") if path.is_dir()):
        files = {path.stat().st_ino: path.stat() for path in folder.rglob("*") if path.is_file()}
        newest = max((stat.st_mtime for stat in files.values()), default=time.time())
        steps = [runs.step_of(path) for path in runs.checkpoints(folder)]
        size = sum(stat.st_size for stat in files.values())
        rows.append(Row("here", folder.name, steps, size, (time.time() - newest) / 3600))
    return sorted(rows, key=lambda row: row.age)


def remote_rows(remote: Remote | None) -> list[Row]:
    """The runs that have copies on the remote."""
    found = {name: remote.copies(name) for name in remote.runs()} if remote else {}
    return [
        Row(remote.name, name, [copy.step for copy in copies], sum(copy.size for copy in copies), None)
        for name, copies in found.items()
    ]


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
