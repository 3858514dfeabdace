"""The training command as a process, begun again as often as a test likes."""

import atexit
import contextlib
import gc
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.support.material import ROOT, write_params

SETTINGS = {
    "train.batch_size": 4,
    "train.learning_rate": 1e-2,
    "train.optimizer": "adamw",
    "train.warmup_steps": 2,
    "train.max_steps": 60,
    "train.log_every": 1,
    "train.eval_every": 12,
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


class Training(ForkServerProcess):
    """``python -m stages train`` in a process of its own: forked, for importing torch takes longer than it trains."""

    def __init__(self, arguments: list[str], log: Path, env: dict[str, str]):
        super().__init__()
        self.arguments, self.log, self.env = arguments, log, env

    def run(self) -> None:
        gc.freeze()  # what was imported is no garbage
        os.environ.clear()
        os.environ.update(self.env)
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv[1:] = ["train", *self.arguments]
        try:
            runpy.run_module("stages", run_name="__main__", alter_sys=True)
        finally:
            atexit._run_exitfuncs()  # which multiprocessing leaves out

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(place: Path, name: str, params: Path | None = None, **env: str) -> Training:
    """Begin, or begin again, a run with outs and a store of its own below place/name."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | env
    process = Training(arguments(place, name, params), place / name / "log", environment)
    get_context("forkserver").set_forkserver_preload(["stages.train", "tests.support.training"])
    with contextlib.chdir(ROOT):
        process.start()
    atexit.register(process.kill)  # else Python's end would wait for one that a failed test has stopped
    return process


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


def wait_for(process: subprocess.Popen | Training, condition: Callable[[], object]) -> None:
    """Wait until something is so, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.002)


def newest(run: Path) -> int:
    """The step of a run's newest checkpoint."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/*/step-*")), default=0)


def results(place: Path, name: str) -> dict[str, bytes]:
    return {file: (place / name / file).read_bytes() for file in RESULTS}
