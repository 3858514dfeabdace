"""The training command as a process, begun again as often as a test likes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.material import ROOT, write_params

SETTINGS = {
    "train.batch_size": 4,
    "train.learning_rate": 1e-2,
    "train.warmup_steps": 2,
    "train.max_steps": 60,
    "train.log_every": 1,
    "train.eval_every": 6,
    "train.save_every": 4,
    "train.dropout": 0.1,
    "train.gradient_accumulation": 2,
    "train.spec_augment.time_prob": 0.1,
    "train.average": 3,
}
RESULTS = ("tuned/model.safetensors", "curves/training.tsv", "curves/validation.tsv", "metrics.json", "details.json")


def make_place(folder: Path, model: Path, shards: Path, settings: dict) -> Path:
    """Put what training reads into a folder, and the results of a run that nobody stopped below ``whole``."""
    shutil.copytree(model, folder / "pretrained")
    for split in ("train", "validation"):
        shutil.copytree(shards, folder / split)
    write_params(folder / "params.yaml", settings)
    assert start(folder, "whole").wait() == 0
    return folder


def arguments(place: Path, name: str, params: Path | None = None) -> list[str]:
    """The command's, for a run with outs and a store of its own below place/name; deletes outs, as DVC does before."""
    run = place / name
    options = {
        "params": params or place / "params.yaml",
        "train": place / "train",
        "validation": place / "validation",
        "pretrained": place / "pretrained",
        "checkpoints": run / "checkpoints",
        "trackers": run / "runs",
        "tuned": run / "tuned",
        "curves": run / "curves",
        "dropped": run / "dropped.tsv",
        "metrics": run / "metrics.json",
        "details": run / "details.json",
    }
    for out in ("tuned", "curves"):
        shutil.rmtree(run / out, ignore_errors=True)
    run.mkdir(exist_ok=True)
    return [word for option, value in options.items() for word in (f"--{option}", str(value))]


def start(place: Path, name: str, params: Path | None = None, **env: str) -> subprocess.Popen:
    """Begin, or begin again, a run."""
    command = [sys.executable, "-m", "stages", "train", *arguments(place, name, params)]
    env = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | env
    with (place / name / "log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def wait_for(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    """Wait until something is so, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.002)


def newest(run: Path) -> int:
    """The step of a run's newest checkpoint."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/*/step-*")), default=0)


def results(place: Path, name: str) -> dict[str, bytes]:
    return {file: (place / name / file).read_bytes() for file in RESULTS}
