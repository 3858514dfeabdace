"""``python -m bench.parallel``: do two experiments at once take less time than one after the other?

The first steps of the shipped training with two seeds, through DVC's queue with one worker and with two, in turn; the
weights must be the same bytes. ``--busy``: beside a process that computes all the time. ``--spinning``: with threads
that spin while they wait, OpenMP's default, and do not soon sleep as the stages' do. Wants what `make repro` leaves.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from ruamel.yaml import YAML

from stages.__main__ import SHARING
from tests.support import repository
from tests.support.material import ROOT

SPINNING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "30000000000"}  # libgomp's own where there are cores enough
SEEDS = (2, 3)
NEEDED = ("data/features/train", "data/features/validation", "models/pretrained")  # by train


@click.command()
@click.option("--steps", default=100, show_default=True)
@click.option("--rounds", default=1, show_default=True, help="Of which each way counts with its fastest.")
@click.option("--busy", is_flag=True)
@click.option("--spinning", is_flag=True)
def main(steps: int, rounds: int, busy: bool, spinning: bool) -> None:
    """Time both ways, and compare what they trained."""
    os.environ.update(SPINNING if spinning else SHARING)
    spent: dict[int, list[float]] = {1: [], 2: []}
    tuned = set()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = prepare(Path(place) / "repository", steps)
            try:
                for number in range(rounds):
                    for workers, times in spent.items():
                        seconds, digests = run(folder, f"{number}-{workers}", workers)
                        times.append(seconds)
                        tuned.add(digests)
                        click.echo(f"dvc queue start -j {workers}: {seconds:.1f} s", err=True)
            finally:
                repository.run(folder, "dvc", "queue", "stop", "--kill")
    finally:
        if other:
            other.kill()
    same = "the same bytes" if len(tuned) == 1 else "OTHER BYTES"
    click.echo(f"both at once take {min(spent[2]) / min(spent[1]):.2f} times as long as one after the other; {same}")
    sys.exit(len(tuned) != 1)


def prepare(folder: Path, steps: int) -> Path:
    """The project with the features and the base that are there, and a shorter training, committed."""
    repository.copy_repository(folder)
    shutil.copy(ROOT / "dvc.lock", folder)
    every = {f"train.{name}": steps for name in ("max_steps", "log_every", "eval_every", "save_every")}
    repository.set_params(folder, every | {"train.warmup_steps": 0})
    repository.run(folder, "git", "init", "-q", "-b", "main")
    repository.run(folder, "dvc", "remote", "add", "-d", "here", str(ROOT / ".dvc/cache"))
    repository.run(folder, "dvc", "pull", *NEEDED)
    repository.commit(folder)
    return folder


def run(folder: Path, name: str, workers: int) -> tuple[float, tuple[str, ...]]:
    """Seconds of two experiments with so many workers, from their start; and the digests of their weights."""
    shutil.rmtree(folder / "models/checkpoints", ignore_errors=True)  # else what the way before trained would be taken
    names = [f"{name}-{seed}" for seed in SEEDS]
    for each, seed in zip(names, SEEDS, strict=True):
        change = ["--allow-missing", "-S", f"train.seed={seed}", "train"]
        repository.run(folder, "dvc", "exp", "run", "--queue", "-n", each, *change)
    begun = time.perf_counter()
    with (folder.parent / "log").open("w") as log:  # the workers stay, and would hold a pipe open
        command = ["dvc", "queue", "start", "-j", str(workers)]
        subprocess.run(command, cwd=folder, env=repository.environment(folder), stdout=log, stderr=log, check=True)
    while not all(commits := [finished(folder, each) for each in names]):
        time.sleep(0.5)
        if failed := repository.run(folder, "git", "for-each-ref", "refs/exps/celery/failed"):
            sys.exit(f"{failed}\n{(folder.parent / 'log').read_text()}")
    seconds = time.perf_counter() - begun
    repository.run(folder, "dvc", "queue", "stop")
    return seconds, tuple(weights(folder, commit) for commit in commits)


def finished(folder: Path, name: str) -> str:
    """The commit of an experiment that is done, else nothing."""
    refs = repository.run(folder, "git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    return next((line.split()[0] for line in refs.splitlines() if line.endswith(f"/{name}")), "")


def weights(folder: Path, commit: str) -> str:
    """The digest of the folder that an experiment trained."""
    lock = YAML(typ="safe", pure=True).load(repository.run(folder, "git", "show", f"{commit}:dvc.lock"))
    return str(next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/tuned"))


if __name__ == "__main__":
    main()
