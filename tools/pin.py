"""``python -m tools.pin v1.0.0``: pin the committed ``models/tuned`` as a version, for the demo and DVC's registry.

A pin is an annotated Git tag, ``tuned@v1.0.0``, on the commit whose dvc.lock names the model's bytes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError, one_line
from stages.versioning.pins import ARTIFACT, SCORES, WORKSPACE, Version, git, pinned_versions, pins

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

MODEL = WORKSPACE[ARTIFACT]
SHAPING = ["dvc.yaml", "dvc.lock", "params.yaml", "metrics", "stages"]  # what a version is made of, in Git
AGAIN = "run `make repro`, then `git add -A && git commit`"


@click.command()
@click.argument("version", required=False)
@click.option("--root", type=click.Path(path_type=Path), default=".", help="The clone.")
def main(version: str | None, root: Path) -> None:
    """Pin the model of the last commit as VERSION, such as v1.0.0; without it, list the pins."""
    if version is None:
        click.echo(listing(root))
        return
    pinned, warning = pin(root, version)
    click.echo(f"{pinned.name} pins {pinned.commit[:7]}: {pinned}")
    if warning:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"To share it: git push origin {pinned.name} && make push")


def listing(root: Path) -> str:
    """The pins, a line each, the newest version first."""
    tags = list(pins(root).items())
    rows = [f"{version.name:<20}{version.commit[:7]}  {version}" for version in pinned_versions(root, tags)]
    return "\n".join(rows or ["no version is pinned yet: make pin VERSION=v1.0.0"])


def pin(root: Path, version: str) -> tuple[Version, str]:
    """Tag the last commit; returns what it pins, and a warning where others could not fetch it, else "".

    Raises UserError where the commit is not all that made the model, or the model is not what the commit names.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    name = tag_name(version)
    if git(root, "tag", "--list", name) or name in pins(root):
        raise UserError(f"{name} is there already, and a version stays what it is: choose another")
    try:
        with Repo(str(root)) as repo:
            check_model(repo)
            check_committed(root)
            warning = remote_lacks(repo)
    except DvcException as error:
        raise UserError(one_line(error)) from None
    commit = git(root, "rev-parse", "HEAD").decode().strip()
    (pinned,) = pinned_versions(root, [(name, commit)])
    git(root, "tag", "--annotate", "--message", str(pinned), name, commit)
    return pinned, warning


def tag_name(version: str) -> str:
    """The tag that pins a version; raises UserError where it is none."""
    from gto.tag import parse_name

    name = f"{ARTIFACT}@{version}"
    said = parse_name(name, raise_on_fail=False)
    if said.get("version") != version or name.endswith("!"):
        raise UserError(f"{version} is no semantic version: give one such as v1.0.0")
    return name


def check_model(repo: "Repo") -> None:
    """Raise UserError where the model is not here, or it or its scores are not of this code, data and parameters."""
    if absent := out_of(repo, MODEL).status():
        told = ", ".join(f"{path}: {how}" for path, how in absent.items())
        raise UserError(f"dvc.lock names another model ({told}): run `make pull` or `make repro`")
    stage = out_of(repo, SCORES.format(ARTIFACT)).stage.addressing
    if changed := sorted(set(moved_on(repo.status(targets=[stage], with_deps=True)))):
        raise UserError(f"changed since the last run: {', '.join(changed)}: {AGAIN}")


def out_of(repo: "Repo", path: str) -> "Output":
    from dvc.exceptions import OutputNotFoundError

    try:
        (out,) = repo.find_outs_by_path(repo.fs.join(repo.root_dir, path))
    except OutputNotFoundError:
        raise UserError(f"DVC keeps no {path}: {AGAIN}") from None
    return out


def moved_on(status: dict) -> Iterator[str]:
    """What DVC's status calls changed; not what is only absent, as raw audio is from a clone."""
    for stage, changes in status.items():
        for change in changes:
            if isinstance(change, str):  # "changed command"
                yield f"{stage} ({change})"
                continue
            for paths in change.values():
                yield from (path for path, how in paths.items() if how not in ("deleted", "not in cache"))


def check_committed(root: Path) -> None:
    """Raise UserError where Git's last commit is not what is here."""
    if changed := git(root, "status", "--porcelain", "--", *SHAPING).decode().splitlines():
        raise UserError(f"not committed: {', '.join(line[3:] for line in changed)}: run `git add -A && git commit`")
    scores = SCORES.format(ARTIFACT)
    if not git(root, "ls-files", "--", scores):
        raise UserError(f"{scores} is in no commit: see that no .gitignore names it, then {AGAIN}")


def remote_lacks(repo: "Repo") -> str:
    """A warning where the remote lacks the model, or cannot be asked; "" where it has it, or there is none."""
    out = out_of(repo, MODEL)
    name = out.remote or repo.config["core"].get("remote")
    if not name:
        return ""
    try:
        lacking = repo.cloud.status([out.hash_info], remote=name).new
    except Exception as error:  # a remote's libraries raise anything
        return f"the remote {name} could not be asked whether it has the model: {one_line(error)}"
    return (
        f"the remote {name} does not have the model, so that others cannot fetch it: run `make push`" if lacking else ""
    )


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
