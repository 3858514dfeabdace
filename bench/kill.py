"""``python -m bench.kill``: trainings killed at random moments, against one that nobody touched.

First the training process alone, with SIGKILL, while it trains, saves, prunes or has its checkpoints copied to a
remote; then `dvc repro`, with SIGKILL to dvc alone or to its whole group. Each run is begun again until it ends; then
its weights, curves and metrics must be the same bytes, and no start may have repeated more than one save interval.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: its threads do not survive a fork

import click

from stages.params import load_params
from stages.pretrained import pretrained
from stages.train import Paths, train
from tests.support import repository
from tests.support.material import TINY, sounds, write_params, write_shards
from tests.support.training import RESULTS, SETTINGS, newest

SAVE_EVERY = 20
TRAINING = SETTINGS | {"train.max_steps": 600, "train.eval_every": 100, "train.save_every": SAVE_EVERY}


@click.command()
@click.option("--kills", default=200, help="Of the training process.")
@click.option("--dvc-kills", default=20, help="Of dvc, alone and with its group in turn.")
@click.option("--seed", default=1)
def main(kills: int, dvc_kills: int, seed: int) -> None:
    """Kill, begin again, compare."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        click.echo(kill_training(Path(folder) / "training", kills, rng))
        click.echo(kill_dvc(Path(folder) / "dvc", dvc_kills, rng))


def kill_training(place: Path, wanted: int, rng: random.Random) -> str:
    """Kill forked training processes; returns a line of figures, or exits where bytes differ."""
    place.mkdir()
    shards = write_shards(place / "train", sounds())
    shutil.copytree(shards, place / "validation")
    whisper = load_params(write_params(place / "params.yaml", TINY)).whisper
    pretrained(whisper, shards, place / "pretrained")
    root = repository.with_store(place / "repository")
    plain = write_params(place / "plain.yaml", TRAINING)
    mirrored = write_params(place / "mirrored.yaml", TRAINING | {"checkpoints.mirror": "store"})
    seconds = {params: time_of(place, params, root) for params in (mirrored, plain)}
    kills = runs = repeated = 0
    while kills < wanted:
        runs += 1
        params = mirrored if runs % 3 == 0 else plain
        while True:
            child = begin(place, f"run{runs}", params, root)
            time.sleep(rng.uniform(0, seconds[params] / 2))
            if kills >= wanted or ended(child):
                wait(child)
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            repeated = max(repeated, steps_lost(place / f"run{runs}"))
            if repeated > SAVE_EVERY:
                sys.exit(f"run {runs} had {repeated} steps to repeat, one save interval is {SAVE_EVERY}")
        compare(place, f"run{runs}")
        shutil.rmtree(place / f"run{runs}")
        click.echo(f"{kills} kills, {runs} runs the same so far", err=True)
    return f"training process: {kills} kills in {runs} runs, all the same bytes; at most {repeated} steps repeated"


def time_of(place: Path, params: Path, root: Path) -> float:
    """Seconds of a run that nobody touches; leaves its results below ``whole``."""
    shutil.rmtree(place / "whole", ignore_errors=True)
    begun = time.monotonic()
    wait(begin(place, "whole", params, root))
    return time.monotonic() - begun


def begin(place: Path, name: str, params: Path, root: Path) -> int:
    """Fork a training process, spared the seconds of importing; returns its pid."""
    run = place / name
    for out in ("tuned", "curves"):  # as DVC does before it runs a stage
        shutil.rmtree(run / out, ignore_errors=True)
    run.mkdir(exist_ok=True)
    if child := os.fork():
        return child
    status = 1
    try:
        log = os.open(run / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["DVC_ROOT"] = str(root)
        names = ("checkpoints", "runs", "tuned", "curves", "dropped.tsv", "metrics.json", "details.json")
        outs = [run / name for name in names]
        paths = Paths(place / "train", place / "validation", place / "pretrained", *outs)
        values = load_params(params)
        train(values.train, values.compute, values.checkpoints, paths)
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> bool:
    """Whether a child is done; leaves it to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a training that nobody killed ended with {status}")


def steps_lost(run: Path) -> int:
    """Steps since the newest checkpoint when a run was killed."""
    curve = run / "curves/training.tsv"
    rows = curve.read_text().splitlines()[1:] if curve.exists() else []
    return int(rows[-1].split("\t")[0]) - newest(run) if rows else 0


def compare(place: Path, name: str) -> None:
    for file in RESULTS:
        if (place / name / file).read_bytes() != (place / "whole" / file).read_bytes():
            kept = shutil.copytree(place, tempfile.mkdtemp() + "/kept")
            sys.exit(f"{file} of {name} is not the same as {file} of whole: see {kept}")


def kill_dvc(place: Path, wanted: int, rng: random.Random) -> str:
    """Kill `dvc repro` while it trains; returns a line of figures, or exits where bytes differ."""
    place.mkdir()
    folder = repository.copy_repository(place / "repository")
    settings = {name: value for name, value in TRAINING.items() if name.startswith("train.")}
    repository.set_params(folder, repository.TINY | settings)
    repository.run(folder, "git", "init", "-q", "-b", "main")
    repository.run(folder, "dvc", "repro")
    expected = outcome(folder)
    kills = runs = 0
    while kills < wanted:
        runs += 1
        while True:
            dvc, log = begin_dvc(folder)
            while dvc.poll() is None and "train:" not in log.read_text():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 4))
            if kills >= wanted or dvc.poll() is not None:
                break
            (os.kill if kills % 2 else os.killpg)(dvc.pid, signal.SIGKILL)
            dvc.wait()
            kills += 1
        if dvc.wait() or outcome(folder) != expected:
            sys.exit(f"after {kills} kills dvc ended with {dvc.returncode} or other bytes: {log.read_text()[-2000:]}")
        click.echo(f"{kills} kills of dvc, {runs} runs the same so far", err=True)
    stopped = sum("which started this, is gone" in log.read_text() for log in place.glob("*.log"))
    return (
        f"dvc repro: {kills} kills in {runs} runs, all the same bytes; {stopped} orphaned trainers stopped themselves"
    )


def begin_dvc(folder: Path) -> tuple[subprocess.Popen, Path]:
    """Begin `dvc repro` of train in a process group of its own; returns it and its log."""
    log = folder.parent / f"{time.monotonic_ns()}.log"
    command = ["dvc", "repro", "--force", "--single-item", "train"]
    with log.open("w") as file:
        env = repository.environment(folder)
        dvc = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True)
    return dvc, log


def outcome(folder: Path) -> list[bytes]:
    """What a run left behind, the lock's hashes included."""
    names = ["dvc.lock", "metrics/train.json", "metrics/curves/training.tsv", "metrics/curves/validation.tsv"]
    return [(folder / name).read_bytes() for name in [*names, "models/tuned/model.safetensors"]]


if __name__ == "__main__":
    main()
