"""A trial as an experiment of DVC's: run beside the workspace, found again by its name, read from its commit."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.params import load_params
from stages.params_file import yaml_text
from stages.runtime.errors import UserError, one_line
from stages.runtime.storage import is_remote
from stages.training.pruning import VARIABLE, TrialSettings
from stages.versioning.git import read_blobs, run_git
from stages.versioning.pins import read_if_present
from stages.versioning.revisions import LOCK, RECORD, commit_of, lock_stages

STAGE, METRICS, DETAILS = "train", "metrics/train.json", "metrics/details/train.json"
BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked|LockError|cannot lock ref")
KILLED = re.compile(r"exited with (-\d+|130|137|143)\b")
TRIES, PAUSE = 20, 3  # of a start while another process of DVC's holds a lock; seconds between
GLANCE = 1  # seconds between two looks at a training


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. wer: the lowest on validation, percent; pruned: at which step, None at its end."""

    commit: str
    wer: float
    steps: int
    pruned: int | None


class FailedError(UserError):
    """A training that ended by itself, without a result."""


def find_outcome(root: Path, name: str) -> Outcome | None:
    """The outcome of the experiment of a name, on whichever baseline; None where there is none."""
    ref = f"refs/exps/*/*/{name}"
    listed = run_git(root, "for-each-ref", "--format=%(objectname) %(refname)", ref).decode().split()
    if not listed:
        return None
    outcome = read_outcome(root, listed[0])
    return reopen_pruned(root, listed[1], outcome) if outcome.pruned is not None else outcome


def read_outcome(root: Path, commit: str) -> Outcome:
    """What train measured in a commit; raises UserError where that is not there."""
    texts = read_blobs(root, [f"{commit}:{METRICS}", f"{commit}:{DETAILS}"])
    if None in texts:
        raise UserError(f"{commit[:7]} lacks {METRICS} or {DETAILS}: remove that experiment with `dvc exp remove`")
    metrics, details = (json.loads(text or "") for text in texts)
    return Outcome(commit, metrics["validation_wer"], details["steps"], details.get("pruned"))


def reopen_pruned(root: Path, ref: str, outcome: Outcome) -> Outcome:
    """Have dvc.lock say, in a pruned experiment's commit, that another command than dvc.yaml's made its model.

    So that `dvc exp apply`, then `dvc repro`, trains to the end instead of taking the pruned model for finished.
    """
    (text,) = read_blobs(root, [f"{outcome.commit}:{LOCK}"])
    lock = YAML(typ="rt").load(text)
    mark = f" # pruned at step {outcome.pruned}"
    if lock["stages"][STAGE]["cmd"].endswith(mark):
        return outcome
    lock["stages"][STAGE]["cmd"] += mark
    blob = run_git(root, "hash-object", "-w", "--stdin", stdin=yaml_text(lock).encode()).decode().strip()
    tree = run_git(root, "ls-tree", outcome.commit).decode()
    tree = re.sub(rf"(?m)^(\d+ blob )[0-9a-f]+(\t{re.escape(LOCK)})$", rf"\g<1>{blob}\g<2>", tree)
    made = run_git(root, "mktree", stdin=tree.encode()).decode().strip()
    described = run_git(root, "log", "-1", "--format=%P%n%an%n%ae%n%s", outcome.commit).decode()
    parent, name, mail, subject = described.strip().split("\n")
    identity = ["-c", f"user.name={name}", "-c", f"user.email={mail}"]
    commit = run_git(root, *identity, "commit-tree", made, "-p", parent, "-m", subject).decode().strip()
    run_git(root, "update-ref", ref, commit, outcome.commit)
    return Outcome(commit, outcome.wer, outcome.steps, outcome.pruned)


def downstream(stages: dict[str, Any], of: str = STAGE) -> list[str]:
    """The stages of a lock that read, directly or not, what one of them makes."""
    found, made = [], {out["path"] for out in stages.get(of, {}).get("outs", [])}
    for name, entry in stages.items():  # a lock lists a stage after those that it follows, or soon would
        if made & {dep["path"] for dep in entry.get("deps", [])}:
            found.append(name)
            made |= {out["path"] for out in entry.get("outs", [])}
    return found


def stale_results(root: Path) -> tuple[str, ...]:
    """The files in Git that evaluate the workspace's model, which a trial's model is not."""
    stages = lock_stages(read_if_present(root, LOCK))
    outs = [out["path"] for name in downstream(stages) for out in stages[name].get("outs", [])]
    return tuple(run_git(root, "ls-files", "-z", "--", *outs).decode().split("\0")[:-1]) if outs else ()


def check_ready(root: Path) -> None:
    """Raise UserError where there is no commit to experiment on, or what train reads is not there."""
    try:
        commit_of(root, "HEAD")
    except UserError:
        raise UserError(f"{root.resolve()} has no commit yet: {RECORD}") from None
    for place in load_params(root / "params.yaml").features.model_dump().values():
        if not is_remote(place) and not (root / place).exists():
            raise UserError(f"{place} is missing: run `make features` first, or `dvc pull` where it was pushed")


def run_experiment(
    root: Path,
    name: str,
    values: Mapping[str, object],
    settings: TrialSettings,
    log: Path,
    lock: int,
    watch: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run train with other parameters in a folder of its own; an experiment of that name is taken as it is.

    log: where DVC's output goes. lock: a descriptor that DVC keeps open, so that what it locks stays locked when this
    process dies. watch: given the log's last line, now and then. Raises FailedError where training ended without a
    result, and UserError where somebody killed it.
    """
    if outcome := find_outcome(root, name):
        return outcome
    changes = [word for key, value in values.items() for word in ("-S", f"{key}={spell(value)}")]
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock"]
    command = [*dvc, "exp", "run", "--temp", "--allow-missing", "--name", name, *changes, STAGE]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {VARIABLE: settings.to_json(), "PATH": path}
    log.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(root, name)
    for _ in range(TRIES):
        with log.open("w") as output:
            status = wait(
                subprocess.Popen(
                    command,
                    cwd=root,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C comes to us, and from us to it
                ),
                lambda: watch(last_line(log)),
            )
        text = log.read_text(errors="replace")
        if not status or not BUSY.search(text):
            break
        time.sleep(PAUSE)
    if outcome := find_outcome(root, name):
        return outcome
    if not status and f"Stage '{STAGE}' didn't change" in text:
        return read_outcome(root, commit_of(root, "HEAD"))  # it is what was committed
    if status < 0 or KILLED.search(text):
        raise UserError(f"{name} was killed; the same command goes on with it. Its log: {log}")
    raise FailedError(f"{reason(text)} (log: {log})")


def remove_remains(root: Path, name: str) -> None:
    """Delete the folder of an experiment whose `dvc` was killed, which `dvc exp show` has as running for ever."""
    home = (root / ".dvc/tmp/exps").resolve()
    for path in home.glob("run/*/*.run"):
        info = json.loads(path.read_text(encoding="utf-8"))
        folder = Path(info.get("root_dir") or home).resolve()
        if info.get("name") == name and home in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)


def wait(process: "subprocess.Popen[bytes]", glance: Callable[[], None]) -> int:
    """A process's status; when we are stopped, so is it, with all its children, as by Ctrl-C."""
    try:
        while True:
            try:
                return process.wait(GLANCE)
            except subprocess.TimeoutExpired:
                glance()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise


def spell(value: object) -> str:
    """A value as `dvc exp run -S` reads it."""
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else f"{value}"


def last_line(log: Path) -> str:
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(errors="replace")[-2000:]) if line.strip()]
    return lines[-1].strip() if lines else ""


def reason(text: str) -> str:
    """Why a training failed: what the stage said, else DVC."""
    for sign in ("Error: ", "ERROR: "):
        if lines := [line for line in text.splitlines() if line.startswith(sign)]:
            return one_line(UserError(lines[-1].removeprefix(sign)))
    return "it ended without saying why"
