"""Trackers: what TensorBoard, W&B, MLflow and DVCLive hold of a run, against the run's own curves."""

import json
import signal
import struct
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from stages.params import TrackerName
from stages.runtime.errors import UserError
from stages.training.trackers import TRACKERS, Follower, Row, check_installed, read_curves
from tests.support.material import ROOT, write_params
from tests.support.training import SETTINGS, make_place, results, start

ALL = {"compute.report_to": list(TRACKERS)}
Series = dict[str, list[tuple[int, float]]]  # steps and values by name


def tensorboard(runs: Path) -> Series:
    (folder,) = (runs / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    # Event files hold float32, which keeps the six digits of the curves.
    return {
        tag: [(event.step, float(f"{event.value:.6g}")) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def wandb(runs: Path) -> Series:
    (file,) = (runs / "wandb").glob("offline-run-*/*.wandb")
    series = defaultdict(list)
    for record in read_records(file.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() & NAMES:
                series[name].append((row["_step"], row[name]))
    return series


def read_records(data: bytes) -> list[Record]:
    """W&B's file: a head of 7 bytes, and LevelDB's log format, pieces of records in blocks of 32 kB."""
    records, whole, at, block = [], b"", 7, 2**15
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a piece's own head
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            records.append(Record.FromString(whole))
            whole = b""
    return records


def mlflow(runs: Path) -> Series:
    client = MlflowClient(tracking_uri=(runs / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("viska").experiment_id])
    return {
        name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def dvclive(runs: Path) -> Series:
    (folder,) = (runs / "dvclive").glob("*/plots/metrics")
    series = {}
    for path in folder.rglob("*.tsv"):
        _, *rows = (line.split("\t") for line in path.read_text().splitlines())
        name = path.relative_to(folder).with_suffix("").as_posix()
        series[name] = [(int(step), float(value)) for step, value in rows]
    return series


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "dvclive": dvclive}
NAMES = {"training/loss", "training/learning_rate", "validation/loss", "validation/wer"}


def series(curves: Path) -> Series:
    found = defaultdict(list)
    for step, row in read_curves(curves):
        for name, value in row.items():
            found[name].append((step, value))
    return found


@pytest.fixture(scope="module", autouse=True)
def _no_trackers_of_this_machine():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "DVC_EXP_NAME"):
            patch.delenv(name, raising=False)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TENSORBOARD_LOGGING_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, shards_folder) -> Path:
    """Two runs of the same settings: ``whole``, and ``reported`` to every tracker."""
    settings = SETTINGS | {"train.max_steps": 12, "train.eval_every": 6}
    folder = make_place(tmp_path_factory.mktemp("place"), tiny, shards_folder, settings)
    params = write_params(folder / "reported.yaml", settings | ALL)
    assert start(folder, "reported", params).wait() == 0, (folder / "reported/log").read_text()
    return folder


def test_the_run_and_its_bytes_are_the_same(place):
    assert results(place, "reported") == results(place, "whole")
    (name,), (same,) = (
        [path.parent.name for path in (place / run).glob("checkpoints/*/parts.json")] for run in ("whole", "reported")
    )
    assert name == same


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_holds_the_curves(place, name):
    curves = series(place / "reported/curves")
    assert curves.keys() == NAMES
    assert READERS[name](place / "reported/runs") == curves


# A run that is killed, in a process of its own

FOLLOW = """
import os, signal, sys, time
from pathlib import Path
from stages.training.run import Run
from stages.training.trackers import TRACKERS, Follower, TrackedRun, open_trackers, read_curves
place, dies = Path(sys.argv[1]), len(sys.argv) > 2
run = Run({"params": {"learning_rate": 0.5, "schedule": {"kind": "linear"}}})
with open_trackers(list(TRACKERS), TrackedRun(run, place / "runs"), place) as trackers:
    trackers.on_log(None, None, None)
    if dies:
        wanted = {(step, name) for step, row in read_curves(place) for name in row}
        for _ in range(12000):
            if all(follower.sent == wanted for follower in trackers.followers):
                break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def write_curves(folder: Path, steps: int) -> None:
    """Curves up to a step, as a run that was repeated from there would write them again."""
    training = [f"{step}\t{1 / step:.6g}\t{step / 7:.6g}\n" for step in range(1, steps + 1)]
    validation = [f"{step}\t{2 / step:.6g}\t{300 / step:.6g}\n" for step in range(2, steps + 1, 2)]
    (folder / "training.tsv").write_text("step\tloss\tlearning_rate\n" + "".join(training))
    (folder / "validation.tsv").write_text("step\tloss\twer\n" + "".join(validation))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """A run that was killed at step 8 with a checkpoint of step 4, and went on to step 10."""
    folder = tmp_path_factory.mktemp("resumed")
    command = [sys.executable, "-c", FOLLOW, str(folder)]
    write_curves(folder, 8)
    assert subprocess.run([*command, "dies"], cwd=ROOT).returncode == -signal.SIGKILL
    write_curves(folder, 4)
    write_curves(folder, 10)
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    return folder


@pytest.mark.parametrize("name", TRACKERS)
def test_a_killed_run_goes_on_in_the_same_run_and_no_step_is_there_twice(resumed, name):
    found = READERS[name](resumed / "runs")  # each asserts that there is one run
    assert found == series(resumed)
    assert all(one[0] < two[0] for values in found.values() for one, two in pairwise(values))


# What goes wrong


class Flaky:
    """A tracker whose server is away from its second call to its fourth."""

    calls, opened, closed = 0, 0, False
    rows: list[Row]

    def open(self) -> "Flaky":
        self.opened += 1
        self.rows = []
        return self

    def log(self, rows: list[Row]) -> None:
        self.calls += 1
        if 1 < self.calls < 5:
            raise ConnectionError("refused\nby its server")
        self.rows += rows

    def close(self) -> None:
        self.closed = True


def follow(tracker: Flaky, curves: Path, steps: range) -> Follower:
    follower = Follower("mlflow", tracker.open, curves)
    follower.start()
    for step in steps:
        write_curves(curves, step)
        before = tracker.calls
        follower.wake.set()
        while tracker.calls == before:
            follower.join(0.001)
    return follower


def test_a_server_that_comes_back_gets_every_figure_and_one_warning_is_given(tmp_path, capfd):
    tracker = Flaky()
    follow(tracker, tmp_path, range(1, 8)).finish()
    assert tracker.closed and tracker.opened == 4
    assert {(step, name): value for step, row in tracker.rows for name, value in row.items()} == {
        (step, name): value for step, row in read_curves(tmp_path) for name, value in row.items()
    }
    assert capfd.readouterr().err.count("warning: mlflow takes no figures (refused by its server)") == 1


def test_a_server_that_stays_away_is_said_at_the_end(tmp_path, capfd, monkeypatch):
    write_curves(tmp_path, 3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    command = [sys.executable, "-c", FOLLOW.replace("list(TRACKERS)", "['mlflow']"), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert "warning: mlflow takes no figures" in result.stderr
    assert "warning: mlflow does not have all figures (API request" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_library_is_said_with_its_remedy():
    name: TrackerName = "no_such_tracker"
    with pytest.raises(UserError, match=r"report_to: no_such_tracker is not installed: pip install no_such_tracker"):
        check_installed([name])
