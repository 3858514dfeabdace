"""``python -m tools.pin v1.0.0``: pin the committed ``models/tuned`` as a version for the demo and DVC's registry.

A pin is an annotated Git tag, ``tuned@v1.0.0``, on the commit whose dvc.lock names the model's bytes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError, one_line
from stages.versioning.git import run_git
from stages.versioning.pins import ARTIFACT, SCORES, WORKSPACE, Version, pinned_commits, pinned_versions

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

MODEL = WORKSPACE[ARTIFACT]
SHAPING = ["dvc.yaml", "dvc.lock", "params.yaml", "metrics", "stages"]  # what a version is made of, in Git
REPRODUCE = "run `make repro`, then `git add -A && git commit`"


@click.command()
@click.argument("version", required=False)
@click.option("--root", type=click.Path(path_type=Path), default=".", help="The clone.")
def main(version: str | None, root: Path) -> None:
    """Pin the model of the last commit as VERSION, such as v1.0.0; without it, list the pins."""
    if version is None:
        click.echo(list_pins(root))
        return
    pinned, warning = pin_version(root, version)
    click.echo(f"{pinned.name} pins {pinned.commit[:7]}: {pinned}")
    if warning:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"To share it: git push origin {pinned.name} && make push")


def list_pins(root: Path) -> str:
    """The pins, a line each, the newest version first."""
    tags = list(pinned_commits(root).items())
    rows = [f"{version.name:<20}{version.commit[:7]}  {version}" for version in pinned_versions(root, tags)]
    return "\n".join(rows or ["no version is pinned yet: make pin VERSION=v1.0.0"])


def pin_version(root: Path, version: str) -> tuple[Version, str]:
    """Tag the last commit; returns the new version, and a warning where others could not fetch it, else "".

    Raises UserError where the commit lacks a part of what made the model, or names another model.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    name = tag_name(version)
    if run_git(root, "tag", "--list", name) or name in pinned_commits(root):
        raise UserError(f"{name} exists already, and a version never changes: choose another")
    try:
        with Repo(str(root)) as repo:
            check_model(repo)
            check_committed(root)
            warning = remote_warning(repo)
    except DvcException as error:
        raise UserError(one_line(error)) from None
    commit = run_git(root, "rev-parse", "HEAD").decode().strip()
    (pinned,) = pinned_versions(root, [(name, commit)])
    run_git(root, "tag", "--annotate", "--message", str(pinned), name, commit)
    return pinned, warning


def tag_name(version: str) -> str:
    """The tag that pins a version; raises UserError where VERSION is not a semantic version."""
    from gto.tag import parse_name

    name = f"{ARTIFACT}@{version}"
    parts = parse_name(name, raise_on_fail=False)
    if parts.get("version") != version or name.endswith("!"):
        raise UserError(f"{version} is not a semantic version: give one such as v1.0.0")
    return name


def check_model(repo: "Repo") -> None:
    """Raise UserError where the model is missing, or it or its scores do not come from this code, data and params."""
    if changes := find_out(repo, MODEL).status():
        listed = ", ".join(f"{path}: {change}" for path, change in changes.items())
        raise UserError(f"dvc.lock names another model ({listed}): run `make pull` or `make repro`")
    stage = find_out(repo, SCORES.format(ARTIFACT)).stage.addressing
    if changed := sorted(set(changed_paths(repo.status(targets=[stage], with_deps=True)))):
        raise UserError(f"changed since the last run: {', '.join(changed)}: {REPRODUCE}")


def find_out(repo: "Repo", path: str) -> "Output":
    from dvc.exceptions import OutputNotFoundError

    try:
        (out,) = repo.find_outs_by_path(repo.fs.join(repo.root_dir, path))
    except OutputNotFoundError:
        raise UserError(f"DVC tracks no {path}: {REPRODUCE}") from None
    return out


def changed_paths(status: dict) -> Iterator[str]:
    """The paths that DVC's status calls changed; not those that are only missing, as raw audio is in a clone."""
    for stage, changes in status.items():
        for change in changes:
            if isinstance(change, str):  # "changed command"
                yield f"{stage} ({change})"
                continue
            for paths in change.values():
                yield from (path for path, how in paths.items() if how not in ("deleted", "not in cache"))


def check_committed(root: Path) -> None:
    """Raise UserError where the workspace differs from Git's last commit."""
    if changed := run_git(root, "status", "--porcelain", "--", *SHAPING).decode().splitlines():
        raise UserError(f"not committed: {', '.join(line[3:] for line in changed)}: run `git add -A && git commit`")
    scores = SCORES.format(ARTIFACT)
    if not run_git(root, "ls-files", "--", scores):
        raise UserError(f"{scores} is in no commit: make sure that no .gitignore names it, then {REPRODUCE}")


def remote_warning(repo: "Repo") -> str:
    """A warning where the remote lacks the model or is not available; "" where it has it, or there is no remote."""
    out = find_out(repo, MODEL)
    name = out.remote or repo.config["core"].get("remote")
    if not name:
        return ""
    try:
        missing = repo.cloud.status([out.hash_info], remote=name).new
    except Exception as error:  # a remote's libraries raise anything
        return f"the remote {name} could not be asked for the model: {one_line(error)}"
    return (
        f"the remote {name} does not have the model, so that others cannot fetch it: run `make push`" if missing else ""
    )


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
