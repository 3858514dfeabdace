"""Revisions as files: what Git has of a commit, tag, branch, experiment or the workspace, and what DVC has of it.

What made a revision's files is told from its dvc.lock alone, which names what its last run read and wrote; params.yaml
and the modules of the workspace may have changed since.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import UserError, one_line
from stages.versioning.cache import fetch_folder, fetch_objects, in_cache, load_tree
from stages.versioning.git import read_blobs, run_git
from stages.versioning.pins import read_if_present

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

WORKSPACE_NAME = "workspace"  # as DVC calls it
LOCK = "dvc.lock"
COMMITS = "--all-commits"  # of `dvc fetch`
RECORD = "run `make repro`, then `git add -A && git commit`"


@dataclass(frozen=True)
class Revision:
    """name: as a person gave it. commit: 40 hex digits, "" of the workspace."""

    name: str
    commit: str


def find_revision(root: Path, name: str) -> Revision:
    """The revision of a name: ``workspace``, whatever Git resolves to a commit, or a DVC experiment.

    Raises UserError where there is none, or several experiments of the name and none on the current commit.
    """
    if name == WORKSPACE_NAME:
        return Revision(name, "")
    try:
        return Revision(name, commit_of(root, name))
    except UserError:
        return Revision(name, experiment_commit(root, name))


def commit_of(root: Path, name: str) -> str:
    return run_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").decode().strip()


def experiment_commit(root: Path, name: str) -> str:
    """The commit of an experiment, whose ref is refs/exps/<2 digits>/<38 digits of its baseline>/<name>."""
    listed = run_git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/").decode().splitlines()
    found: dict[str, str] = {}  # by baseline
    for commit, ref in (line.split(" ", 1) for line in listed):
        parts = ref.split("/", 4)
        if len(parts) == 5 and parts[4] == name and len(parts[2] + parts[3]) == 40:
            found[parts[2] + parts[3]] = commit
    if not found:
        raise UserError(
            f"{name} is no commit, branch, tag or experiment here: `git branch -a`, `git tag` and "
            f"`dvc exp list --all-commits` show what there is; `git fetch --tags` and `dvc exp pull` bring others'"
        )
    if len(found) == 1:
        return next(iter(found.values()))
    try:
        return found[commit_of(root, "HEAD")]
    except (UserError, KeyError):
        commits = ", ".join(commit[:7] for commit in sorted(found.values()))
        raise UserError(f"several experiments are called {name}: give the commit of one: {commits}") from None


# What the last run read and wrote


@dataclass(frozen=True)
class Provenance:
    """What a stage's results rest on, upstream of it too: params by dotted key, and hashes of data and code by path."""

    params: dict[str, Any]
    data: dict[str, str]
    code: dict[str, str]


def read_lock(root: Path, revision: Revision) -> dict[str, Any]:
    """The stages of a revision's dvc.lock; raises UserError where no run is recorded, or a merge is unfinished."""
    text = read_blobs(root, [f"{revision.commit}:{LOCK}"])[0] if revision.commit else read_if_present(root, LOCK)
    stages = lock_stages(text)
    if not stages:
        raise UserError(f"{revision.name} has no {LOCK}, so no run is recorded there: {RECORD}")
    return stages


def lock_stages(text: str | None) -> dict[str, Any]:
    """The stages of a dvc.lock; none where there is no such file. Raises UserError as ``parse_record`` does."""
    return parse_record(text, YAML(typ="safe").load, LOCK).get("stages") or {}


def parse_record(text: str | None, load: Callable[[str], Any], path: str) -> dict[str, Any]:
    """The mapping of what a run wrote into a file; raises UserError where that is broken, as by a merge."""
    try:
        values = load(text or "{}")
    except (ValueError, YAMLError) as error:
        reason = one_line(error)
        if "\n<<<<<<< " in f"\n{text}":
            reason = f"a merge left conflicts in it: take one side's (`git checkout --ours {path}`), then `make repro`"
        raise UserError(f"{path} cannot be read: {reason}") from None
    return values if isinstance(values, dict) else {}


def check_current(revision: Revision, lock: dict[str, Any], stage: str) -> None:
    """Raise UserError where a stage's results are older than what it reads, as after a run of train alone."""
    if stage not in lock:
        raise UserError(f"{revision.name}: the stage {stage} has not run: {remedy(revision, stage)}")
    made = {out["path"]: digest(out) for entry in lock.values() for out in entry.get("outs", [])}
    for dep in lock[stage].get("deps", []):
        if made.get(dep["path"], digest(dep)) != digest(dep):
            raise UserError(
                f"{revision.name}: {stage} has not run since {dep['path']} was made anew: {remedy(revision, stage)}"
            )


def remedy(revision: Revision, stage: str) -> str:
    there = f" at {revision.commit[:7]}, in a branch or a worktree of it" if revision.commit else ""
    return f"run `dvc repro {stage}`{there}"


def provenance(lock: dict[str, Any], stage: str) -> Provenance:
    """What a stage of a lock rests on. Modules are code; every other dep is data."""
    found = Provenance({}, {}, {})
    for name in upstream(lock, stage):
        for values in lock[name].get("params", {}).values():
            found.params.update(dotted_values(values))
        for dep in lock[name].get("deps", []):
            (found.code if dep["path"].endswith(".py") else found.data)[dep["path"]] = digest(dep)
    return found


def upstream(lock: dict[str, Any], stage: str) -> list[str]:
    """A stage and all that made what it reads, in the order of the lock; data/raw may make data/raw/test."""
    maker = {out["path"]: name for name, entry in lock.items() for out in entry.get("outs", [])}
    seen, waiting = set(), [stage]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        deps = (Path(dep["path"]) for dep in lock[name].get("deps", []))
        makers = {maker.get(str(place)) for path in deps for place in (path, *path.parents)}
        waiting += [other for other in makers if other and other not in seen]
    return [name for name in lock if name in seen]


def recorded_hash(lock: dict[str, Any], path: str) -> str:
    """The hash of an out that a lock names; "" where it names none."""
    return next((digest(out) for entry in lock.values() for out in entry.get("outs", []) if out["path"] == path), "")


def digest(item: dict[str, Any]) -> str:
    return str(item.get("md5", ""))


def dotted_values(values: dict[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted_values(value, f"{parent}{key}.")
        else:
            yield f"{parent}{key}", value


# What DVC has


def tracked_file(repo: "Repo", revision: Revision, path: str) -> Path:
    """A file that DVC tracks at a revision: in the cache, fetched from the remote where it is missing, or the
    workspace's own. Raises UserError where it is not available."""
    if not revision.commit and (own := Path(repo.root_dir, path)).is_file():
        return own
    out = find_output(repo, revision, path)
    fetch_objects(repo, out, f"{path} of {revision.name}", [out.hash_info], COMMITS)
    return Path(repo.cache.local.oid_to_path(out.hash_info.value))


def tracked_folder(repo: "Repo", revision: Revision, path: str) -> dict[str, Path]:
    """The files of a folder that DVC tracks at a revision, by their names within it, as ``tracked_file`` has one."""
    out = find_output(repo, revision, path)
    cache, tree = repo.cache.local, fetch_folder(repo, out, f"{path} of {revision.name}", COMMITS)
    return {"/".join(names): Path(cache.oid_to_path(info.value)) for names, _, info in tree}


def tracked_member(repo: "Repo", revision: Revision, path: str, name: str) -> Path:
    """One file, by its name within it, of a folder that DVC tracks at a revision; of the others nothing is fetched.

    Raises UserError where it is not available.
    """
    if not revision.commit and (own := Path(repo.root_dir, path, name)).is_file():
        return own
    out, label = find_output(repo, revision, path), f"{path} of {revision.name}"
    fetch_objects(repo, out, label, [out.hash_info], COMMITS)
    wanted = [info for names, _, info in load_tree(repo, out, label) if "/".join(names) == name]
    if not wanted:
        raise UserError(f"{label} holds no {name}: {RECORD}")
    fetch_objects(repo, out, label, wanted, COMMITS)
    return Path(repo.cache.local.oid_to_path(wanted[0].value))


def is_cached(repo: "Repo", revision: Revision, path: str) -> bool:
    """Whether the list of a folder's files is in the cache, as it is where the folder was made or fetched here."""
    return in_cache(repo.cache.local, find_output(repo, revision, path).hash_info.value)


def find_output(repo: "Repo", revision: Revision, path: str) -> "Output":
    """An out as a revision has it; raises UserError where DVC tracks none of that path, or no run made it."""
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        if revision.commit:
            with repo.switch(revision.commit):
                (out,) = repo.find_outs_by_path(repo.fs.join(repo.root_dir, path))
        else:
            (out,) = repo.find_outs_by_path(repo.fs.join(repo.root_dir, path))
    except (DvcException, RevError) as error:
        raise UserError(f"DVC tracks no {path} at {revision.name} ({one_line(error)}): {RECORD}") from None
    if not out.hash_info:
        raise UserError(f"{revision.name}: no run that {LOCK} records made {path}: {RECORD}")
    return out
