"""``python -m bench.sweep``: sweeps of a small model that are killed and stopped, shared, and left alone.

First with pruning and the present values first, killed twice with SIGKILL (alone, and with its training) and stopped
once with Ctrl-C; then at random to the end of every trial, by two processes beside two workers of DVC's queue. Counts
steps, experiments and what the sweep itself costs; some trials trained again by hand must give the same bytes.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two trainings share the cores

import click
import psutil
from optuna import Study
from optuna.trial import TrialState
from ruamel.yaml import YAML

from stages.training.pruning import open_study
from tests.support import repository
from tools.sweep.plan import SHIPPED
from tools.sweep.study import LEFT_OUT, NAME, SECONDS, STEPS
from tools.sweep.winner import winners_lead

SMALL = {
    "whisper.scratch.d_model": 64,
    "whisper.scratch.layers": 2,
    "whisper.scratch.heads": 2,
    "whisper.scratch.seconds": 4,
    "download.synthetic.train": 400,
    "download.synthetic.validation": 60,
    "download.synthetic.test": 20,
    "train.full_context_share": 0.0,
    "train.timestamp_share": 0.0,
    **{f"train.augment.{name}": 0.0 for name in ("lead_seconds", "cut_seconds", "gain", "noise", "speed")},
    "train.warmup_steps": 50,
    "train.max_steps": 25,  # of the committed model; trials are as long as STEPS_EACH
    "train.eval_every": 25,
    "train.save_every": 25,
    "evaluate.bootstrap_samples": 100,
}
STEPS_EACH, EVERY, SAVED = 400, 50, 25
QUEUED = ("train.seed=7", "train.seed=8")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@click.command()
@click.option("--trials", default=12)
@click.option("--again", default=2, help="Trials to train once more by hand.")
@click.option("--seed", default=1, help="Of the moments to kill at.")
def main(trials: int, again: int, seed: int) -> None:
    """Sweep, kill, go on, count."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = repository.copy_repository(Path(place) / "repository")
        repository.set_params(folder, SMALL)
        repository.run(folder, "git", "init", "-q", "-b", "main")
        repository.run(folder, "dvc", "repro", "evaluate@tuned")
        repository.commit(folder)
        pruned = write_plan(folder.parent / "pruned.yaml", trials)
        whole = write_plan(folder.parent / "whole.yaml", trials, pruner=None, start=[], sampler={"kind": "random"})
        click.echo(interrupted(folder, pruned, rng))
        begun = time.monotonic()
        together(folder, whole)
        click.echo(f"two processes, two workers of the queue: {time.monotonic() - begun:.0f} s")
        click.echo(compare(folder, pruned, whole))
        click.echo(check_experiments(folder, [pruned, whole]))
        click.echo(train_again(folder, whole, again))


def write_plan(path: Path, trials: int, **changes: object) -> Path:
    """The shipped sweep with shorter trials."""
    plan = YAML(typ="safe").load(SHIPPED / "default.yaml")
    plan["overrides"] = {"train.max_steps": STEPS_EACH, "train.eval_every": EVERY, "train.save_every": SAVED}
    plan["pruner"]["warmup_steps"] = 3 * EVERY
    plan |= {"trials": trials} | changes
    YAML().dump(plan, path)
    return path


def begin(folder: Path, plan: Path) -> subprocess.Popen:
    with (folder.parent / f"{plan.stem}.out").open("a") as out:
        command = [sys.executable, "-m", "tools.sweep", str(plan)]
        return subprocess.Popen(command, cwd=folder, env=repository.environment(folder), stdout=out, stderr=out)


def interrupted(folder: Path, plan: Path, rng: random.Random) -> str:
    """Kill a sweep alone, kill it with its training, stop it, and let it end; a line of what that cost."""
    begun = time.monotonic()
    for kind in ("alone", "with all", "Ctrl-C"):
        sweep = begin(folder, plan)
        after = len(finished(folder, plan)) + rng.choice([1, 2])
        while len(finished(folder, plan)) < after or not training(sweep):
            if sweep.poll() is not None:
                sys.exit(f"the sweep ended before it was killed: {output(folder, plan)}")
            time.sleep(0.5)
        time.sleep(rng.uniform(2, 15))  # imports take some of them
        children = psutil.Process(sweep.pid).children(recursive=True)
        if kind == "Ctrl-C":
            sweep.send_signal(signal.SIGINT)
        else:
            for process in [psutil.Process(sweep.pid), *(children if kind == "with all" else [])]:
                process.kill()
        sweep.wait()
        click.echo(f"{kind}: after {len(finished(folder, plan))} trials", err=True)
    before, last = seconds(folder, plan), time.monotonic()
    if begin(folder, plan).wait():
        sys.exit(output(folder, plan))
    trained, wall = seconds(folder, plan) - before, time.monotonic() - last
    resumed = [int(step) for step in re.findall(r"resuming run \w+ at step (\d+)", logs(folder, plan))]
    return (
        f"killed 2 times, stopped once: {time.monotonic() - begun:.0f} s; resumed at steps {resumed}\n"
        f"the last start: {wall:.1f} s, {trained:.1f} of them experiments: {100 * (wall / trained - 1):.1f} % more"
    )


def together(folder: Path, plan: Path) -> None:
    """Two processes on one sweep, while two workers run queued experiments."""
    for change in QUEUED:
        name = f"queued-{change[-1]}"
        repository.run(folder, "dvc", "exp", "run", "--queue", "--allow-missing", "-n", name, "-S", change, "train")
    with (folder.parent / "workers.log").open("w") as log:
        command = ["dvc", "queue", "start", "-j", "2"]
        subprocess.run(command, cwd=folder, env=repository.environment(folder), stdout=log, stderr=log, check=True)
    both = [begin(folder, plan), begin(folder, plan)]
    if sum(sweep.wait() for sweep in both):
        sys.exit(output(folder, plan))
    while (status := repository.run(folder, "dvc", "queue", "status")).count("Success") < len(QUEUED):
        if "Failed" in status:
            sys.exit(status)
        time.sleep(2)


def compare(folder: Path, pruned: Path, whole: Path) -> str:
    """Steps and best of both ways, against the present values at the same length."""
    ours, theirs = finished(folder, pruned), finished(folder, whole)
    steps, all_steps = (sum(trial.user_attrs[STEPS] for trial in trials) for trials in (ours, theirs))
    best, other = (
        min((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value)
        for trials in (ours, theirs)
    )
    lead = winners_lead(folder, best, other)
    stopped = sum(trial.state == TrialState.PRUNED for trial in ours)
    return (
        f"{stopped} of {len(ours)} pruned; {steps} steps against {all_steps}: {all_steps / steps:.2f} times fewer\n"
        f"best {best.value:.2f} % against {other.value:.2f} %, the present values {ours[0].value:.2f} %; the other way "
        f"{lead.points:+.2f} points ({lead.interval[0]:+.2f} to {lead.interval[1]:+.2f}), p {lead.p:.2g}"
    )


def check_experiments(folder: Path, plans: list[Path]) -> str:
    """Every trial is one experiment, shown without test scores, and the workspace is as it was."""
    names = [trial.user_attrs[NAME] for plan in plans for trial in finished(folder, plan)]
    rows = json.loads(repository.run(folder, "dvc", "exp", "show", "--json").partition("\n")[0])
    shown = {row["name"]: row["revs"][0] for rev in rows for row in rev.get("experiments") or []}
    lines = repository.run(folder, "dvc", "exp", "show", "--csv").splitlines()
    rows_named = [line.split(",")[0] for line in lines if line.startswith("sweep-")]
    if sorted(rows_named) != sorted(names) or any(",Running," in line for line in lines):
        sys.exit(f"trials {sorted(names)}, shown {sorted(rows_named)}")
    for name in names:
        metrics = shown[name]["data"]["metrics"]
        if metrics["metrics/evaluate/tuned.json"].get("data") or not metrics["metrics/train.json"].get("data"):
            sys.exit(f"{name} shows {metrics}")
    if changed := repository.run(folder, "git", "status", "--porcelain"):
        sys.exit(f"the workspace changed: {changed}")
    return f"{len(names)} trials are {len(rows_named)} experiments, none twice; the workspace is untouched"


def train_again(folder: Path, plan: Path, number: int) -> str:
    """Some trials once more, one after the other and by hand: the same models."""
    for trial in finished(folder, plan)[:number]:
        overrides = YAML(typ="safe").load(plan)["overrides"]
        change = [word for key, value in (overrides | trial.params).items() for word in ("-S", f"{key}={value}")]
        name = f"again-{trial.number}"
        repository.run(folder, "dvc", "exp", "run", "--temp", "--allow-missing", "--name", name, *change, "train")
        if model_of(folder, name) != model_of(folder, trial.user_attrs[NAME]):
            sys.exit(f"{trial.user_attrs[NAME]} has another model than the same parameters alone")
    return f"{number} trials trained again alone: the same bytes"


def model_of(folder: Path, name: str) -> str:
    """The hash of an experiment's model."""
    (ref,) = repository.run(folder, "git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").split()
    lock = YAML(typ="safe").load(repository.run(folder, "git", "show", f"{ref}:dvc.lock"))
    return {out["path"]: out["md5"] for out in lock["stages"]["train"]["outs"]}["models/tuned"]


def seconds(folder: Path, plan: Path) -> float:
    """How long the experiments of a sweep took so far."""
    return sum(trial.user_attrs.get(SECONDS, 0) for trial in study_of(folder, plan).get_trials(deepcopy=False))


def study_of(folder: Path, plan: Path) -> Study:
    return open_study(str(folder.resolve() / f".dvc/tmp/sweeps/{plan.stem}.log"), plan.stem, None)


def finished(folder: Path, plan: Path) -> list:
    """A sweep's trials that have ended, in the order they were begun."""
    trials = study_of(folder, plan).get_trials(deepcopy=False, states=DONE)
    return [trial for trial in trials if LEFT_OUT not in trial.user_attrs]


def training(sweep: subprocess.Popen) -> bool:
    """Whether a sweep has a training that trains."""
    try:
        return any("stages" in process.cmdline() for process in psutil.Process(sweep.pid).children(recursive=True))
    except psutil.Error:
        return False


def logs(folder: Path, plan: Path) -> str:
    return "\n".join(path.read_text() for path in (folder / f".dvc/tmp/sweeps/{plan.stem}").glob("*.log"))


def output(folder: Path, plan: Path) -> str:
    return (folder.parent / f"{plan.stem}.out").read_text()[-3000:]


if __name__ == "__main__":
    main()
