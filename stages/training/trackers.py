"""The curves of a training, handed on to what a team watches its runs in: TensorBoard, W&B, MLflow, DVCLive.

transformers' own callbacks begin another run of the tracker after each resume, and log the repeated steps twice. Here a
tracker follows the files of the curves instead, which a resumed training cuts to its checkpoint: what it holds is what
they hold, under the name of the training run. It does so in a thread of its own, so that a server which is slow or
gone never delays or ends the training.
"""

import contextlib
import importlib.util
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.params import TrackerName
from stages.runtime.errors import UserError, one_line
from stages.runtime.progress import note, warn
from stages.training.run import Run, flatten_names, short_name

PROJECT = "viska"  # of W&B, and MLflow's experiment, where the environment names no other
CURVES = ("training", "validation")  # tables of a step and its values, in the folder of curves
LAST_SECONDS = 120  # that a finished training waits for a tracker
MLFLOW_BATCH = 500  # values a request; its REST interface takes 1,000

Row = tuple[int, dict[str, float]]  # a step and its values by name, such as validation/wer


class Tracker(Protocol):
    """One run of a tracker. After an error it is opened anew, and given every row again."""

    def log(self, rows: list[Row]) -> None:
        """Take rows, of which a tracker that kept some of them keeps no second copy."""

    def close(self) -> None:
        """Say that the run has finished."""


@dataclass(frozen=True)
class TrackedRun:
    """A training run as trackers show it. folder: for their files, on this machine."""

    run: Run
    folder: Path

    @property
    def label(self) -> str:
        """What people see: the experiment's name, where `dvc exp run -n` gave one, and the run's short one."""
        return "-".join(filter(None, [os.environ.get("DVC_EXP_NAME"), short_name(self.run.name)]))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by dotted name."""
        return flatten_names(self.run.parts["params"])

    def place(self, root: Path) -> Path:
        """The run's folder in a tracker's, the one it has already where an earlier experiment gave it its name."""
        return next(root.glob(f"*{short_name(self.run.name)}"), root / self.label)


class TensorBoard:
    """Event files below TENSORBOARD_LOGGING_DIR. Readers drop what stood there before a file that begins anew."""

    def __init__(self, tracked: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        root = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or tracked.folder / "tensorboard")
        self.writer: Any = SummaryWriter(str(tracked.place(root)), purge_step=0)

    def log(self, rows: list[Row]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of W&B: its server's with WANDB_MODE=online or WANDB_API_KEY, else files for `wandb sync`.

    The server refuses steps that it has. Files of an earlier start go, because these hold all that those did.
    """

    def __init__(self, tracked: TrackedRun):
        import wandb

        online = os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY")
        folder = Path(os.environ.get("WANDB_DIR") or tracked.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=os.environ.get("WANDB_RUN_ID", tracked.run.name),
            name=os.environ.get("WANDB_NAME", tracked.label),
            config=tracked.params,
            resume="allow",
            mode=None if online else "offline",
            dir=folder,
            settings=wandb.Settings(console="off", silent=not online, finish_timeout=LAST_SECONDS),
        )
        self.first_step = self.run.step
        if self.run.offline:
            mine = Path(self.run.dir).parent
            for earlier in mine.parent.glob(f"offline-run-*-{self.run.id}"):
                if earlier.name != mine.name:
                    shutil.rmtree(earlier)

    def log(self, rows: list[Row]) -> None:
        for step, values in rows:
            if step >= self.first_step:
                self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of the server or store that MLFLOW_TRACKING_URI names, else of files; found again by a tag."""

    TAG = "viska.run"

    def __init__(self, tracked: TrackedRun):
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database where there is no server
        files = (tracked.folder / "mlflow").absolute().as_uri()
        self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", files))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tag = f"tags.`{self.TAG}` = '{tracked.run.name}'"
        found = self.client.search_runs([experiment], filter_string=tag, max_results=1)
        run = found[0] if found else self.create_run(experiment, tracked)
        self.id: str = run.info.run_id
        self.client.update_run(self.id, status="RUNNING")
        self.held = {
            (metric.step, name) for name in run.data.metrics for metric in self.client.get_metric_history(self.id, name)
        }

    def create_run(self, experiment: str, tracked: TrackedRun) -> Any:
        from mlflow.entities import Param

        run = self.client.create_run(experiment, run_name=tracked.label, tags={self.TAG: tracked.run.name})
        self.client.log_batch(
            run.info.run_id, params=[Param(name, str(value)) for name, value in tracked.params.items()]
        )
        return run

    def log(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        values = [
            Metric(name, value, now, step)
            for step, row in rows
            for name, value in row.items()
            if (step, name) not in self.held
        ]
        for start in range(0, len(values), MLFLOW_BATCH):
            self.client.log_batch(self.id, metrics=values[start : start + MLFLOW_BATCH])

    def close(self) -> None:
        self.client.set_terminated(self.id)


class DvcLive:
    """DVCLive's files, and DVC Studio's live view where a token for it is set; they are written anew at each start."""

    def __init__(self, tracked: TrackedRun):
        from dvclive import Live

        folder = tracked.place(tracked.folder / "dvclive")
        self.live: Any = Live(str(folder), save_dvc_exp=False, dvcyaml=False)

    def log(self, rows: list[Row]) -> None:
        for step, values in rows:
            self.live.step = step
            for name, value in values.items():
                self.live.log_metric(name, value)
        self.live.next_step()

    def close(self) -> None:
        self.live.end()


TRACKERS: dict[TrackerName, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "dvclive": DvcLive,
}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise UserError where the library of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"compute.report_to: {name} is not installed: pip install {name}, or remove it from the list"
            )


@contextlib.contextmanager
def open_trackers(names: Sequence[TrackerName], tracked: TrackedRun, curves: Path) -> Iterator["TrackerCallback"]:
    """Have trackers follow the curves in a folder, to the end of the block; an error there leaves their runs open."""
    if names:
        note(f"reporting to {', '.join(names)} (files: {tracked.folder})")
    followers = [Follower(name, partial(TRACKERS[name], tracked), curves) for name in dict.fromkeys(names)]
    for follower in followers:
        follower.start()
    yield TrackerCallback(followers)
    for follower in followers:
        follower.finish()


class Follower(threading.Thread):
    """Hands a tracker each row of the curves, some time after it was written."""

    def __init__(self, name: TrackerName, open_tracker: Callable[[], Tracker], curves: Path):
        super().__init__(name=name, daemon=True)  # a training that fails waits for nobody
        self.open_tracker, self.curves = open_tracker, curves
        self.tracker: Tracker | None = None
        self.sent: set[tuple[int, str]] = set()
        self.wake, self.ended, self.warned, self.problem = threading.Event(), False, False, ""

    def run(self) -> None:
        ended = False
        while not ended:
            self.wake.wait()
            self.wake.clear()
            ended = self.ended  # before the rows are read, which are then the last ones
            try:
                self.send(ended)
                self.problem = ""
            except Exception as error:  # whatever a tracker's library raises
                self.tracker, self.sent, self.problem = None, set(), one_line(error) or type(error).__name__
                if not self.warned:
                    self.warned = True
                    warn(f"{self.name} takes no figures ({self.problem}); training goes on, and they are kept for it")

    def send(self, ended: bool) -> None:
        """Hand over the rows that the tracker does not have."""
        self.tracker = self.tracker or self.open_tracker()
        rows = read_curves(self.curves)
        new = [(step, {name: row[name] for name in row if (step, name) not in self.sent}) for step, row in rows]
        if new := [(step, row) for step, row in new if row]:
            self.tracker.log(new)
            self.sent |= {(step, name) for step, row in new for name in row}
        if ended:
            self.tracker.close()

    def finish(self) -> None:
        """Wait for the last rows, but not for ever."""
        self.ended = True
        self.wake.set()
        self.join(LAST_SECONDS)
        if self.is_alive() or self.problem:
            warn(f"{self.name} does not have all figures ({self.problem or 'no answer'}); {self.curves} has them")


class TrackerCallback(TrainerCallback):
    """Tells followers that the curves have grown; comes after the callback that writes them."""

    def __init__(self, followers: list[Follower]):
        self.followers = followers

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for follower in self.followers:
            follower.wake.set()

    on_evaluate = on_log


def read_curves(folder: Path) -> list[Row]:
    """What the tables of a folder hold, by step; a line that is still being written is left out."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for table in CURVES:
        header, *lines = (folder / f"{table}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        names = header.split()[1:]
        for line in lines:
            if line.endswith("\n"):
                step, *values = line.split()
                rows[int(step)] |= {f"{table}/{name}": float(value) for name, value in zip(names, values, strict=True)}
    return sorted(rows.items(), key=lambda row: row[0])
