"""The whole pipeline under a real DVC, in a repository of its own, with a tiny model."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from stages.asr.clips import read_clips
from tests.support.material import ROOT
from tests.support.process import PATIENCE
from tests.support.repository import commit, environment, run, set_params
from tools.report.terminal import NEXT


@pytest.fixture
def clone(finished, tmp_path) -> Path:
    """A fresh clone of it, with the shared site cache of its own."""
    run(tmp_path, "git", "clone", "-q", str(finished), "repo")
    return tmp_path / "repo"


@pytest.fixture(scope="module")
def pulled_once(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pulled")
    run(folder, "git", "clone", "-q", str(finished), "repo")
    run(folder / "repo", "dvc", "pull")
    return folder / "repo"


@pytest.fixture
def pulled(pulled_once) -> Iterator[Path]:
    """A clone with all that was pushed; what a test changes in files of Git is taken back."""
    yield pulled_once
    run(pulled_once, "git", "checkout", "-q", ".")


def scores(folder: Path, name: str) -> dict:
    return json.loads((folder / "metrics" / name).read_text())


def test_every_stage_leaves_its_results(finished):
    report = run(finished, "python", "-m", "tools.report")
    assert "WER" in report and "Trained on 28 clips" in report and "Dropped: none" in report
    assert "WER, again" in report and "4 clips, 4 with audio in train, 4 with sentence in train" in report
    assert scores(finished, "evaluate/pretrained.json")["untrained"] is True
    assert "untrained" not in scores(finished, "evaluate/tuned.json")
    assert scores(finished, "train.json").keys() == {"validation_wer", "best_step"}
    assert scores(finished, "details/download.json")["train"] == {"clips": 28, "speakers": 13, "dropped": {}}
    assert {clip.id.partition(".")[0] for clip in read_clips(finished / "data/raw/train")} == {"mine", "voices"}
    steps = [line.split("\t")[0] for line in (finished / "metrics/curves/training.tsv").read_text().splitlines()]
    assert steps == ["step", "1", "2", "3", "4"]
    steps = [line.split("\t")[0] for line in (finished / "metrics/curves/validation.tsv").read_text().splitlines()]
    assert steps == ["step", "2", "4"]


def test_nothing_changed_runs_nothing(finished):
    assert "Running stage" not in run(finished, "dvc", "repro")
    assert "up to date" in run(finished, "dvc", "status")


def test_raw_audio_is_in_no_commit(finished):
    assert (finished / "data/raw/train/clips.tsv").is_file()
    assert "data/raw/" not in run(finished, "git", "ls-files")


def test_a_clone_pulls_everything_but_raw_audio_and_runs_nothing(pulled, finished):
    for out in ("data/features", "models/pretrained", "models/tuned", "data/transcripts", "data/dropped.tsv"):
        for path in sorted((finished / out).rglob("*")) or [finished / out]:
            if path.is_file() and path.name != ".gitignore":
                assert (pulled / path.relative_to(finished)).read_bytes() == path.read_bytes()
    assert "Running stage" not in run(pulled, "dvc", "repro", "--pull")
    assert not (pulled / "data/raw").exists()


def test_what_shapes_no_result_reruns_nothing(pulled):
    set_params(pulled, {"compute.processes": 1, "compute.decode_batch_size": 3, "checkpoints.keep.local": 5})
    assert "params.yaml" not in run(pulled, "dvc", "status")


def test_forced_rerun_gives_the_same_bytes(clone):
    run(clone, "dvc", "repro", "--force")
    assert run(clone, "git", "status", "--porcelain") == ""


CHANGE = ("-S", "train.weight_decay=0.1", "--allow-missing")


def check_experiment(folder: Path, name: str, rate: float, printed: str) -> None:
    """It ran train and the evaluation of its result, is shown, and its commit holds no raw clip."""
    ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage '")}
    assert ran == {"train", "evaluate@tuned"}
    commit = experiment_commit(folder, name)
    files = run(folder, "git", "ls-tree", "-r", "--name-only", commit).splitlines()
    assert "dvc.lock" in files and not [file for file in files if file.startswith("data/raw/")]
    check_table(folder, name, rate)
    assert "learning_rate" in run(folder, "dvc", "params", "diff", "HEAD", commit)


def experiment_commit(folder: Path, name: str) -> str:
    (line,) = [line for line in run(folder, "git", "show-ref").splitlines() if line.endswith(f"/{name}")]
    return line.split()[0]


def check_table(folder: Path, name: str, rate: float) -> None:
    """The README's table of experiments: within 100 columns, the WER first and what was changed last, with values."""
    (shown,) = re.findall(r"^dvc exp show.*?(?=  #|$)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert shown in NEXT  # which `make repro` ends with
    table = run(folder, *shlex.split(shown)).splitlines()
    (header,) = (line.split() for line in table if line.split()[:1] == ["Experiment"])
    probes = [column for column in header if column.startswith("probes.")]  # there where a probe's WER has changed
    assert max(map(len, table)) <= 100 + sum(len(column) + 2 for column in probes)
    (trial,) = (line.split() for line in table if f"[{name}]" in line)
    values = dict(zip(reversed(header), reversed(trial), strict=False))  # its name and state are of several words
    tuned = json.loads(run(folder, "git", "show", f"{experiment_commit(folder, name)}:metrics/evaluate/tuned.json"))
    assert [column for column in header[1:] if column not in probes] == [
        "wer",
        "wer_stressed",
        "train.learning_rate",
        "train.weight_decay",
    ]
    assert float(values["wer"]) == pytest.approx(tuned["wer"], rel=1e-4)  # DVC rounds to five digits
    assert float(values["train.learning_rate"]) == rate


def processes(folder: Path) -> Iterator[psutil.Process]:
    """What runs for a repository: its workers, their experiments, and the stages of these."""
    place = environment(folder)["DVC_SITE_CACHE_DIR"]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DVC_SITE_CACHE_DIR") == place:
                yield process


def trainers(folder: Path) -> Iterator[psutil.Process]:
    """Trainings that have saved a checkpoint."""
    holders = {(path.parent / "lock").read_text() for path in folder.glob("models/checkpoints/*/step-*")}
    return (process for process in (processes(folder) if holders else ()) if str(process.pid) in holders)


def begin_workers(folder: Path, *command: str) -> None:
    """They stay after the command, and would hold a pipe open."""
    with (folder.parent / "workers.log").open("w") as log:
        subprocess.run(command, cwd=folder, env=environment(folder), stdout=log, stderr=log, check=True)


def kill(folder: Path) -> None:
    for process in processes(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_queued_experiments_killed_with_their_worker_go_on_when_queued_again(clone):
    run(clone, "dvc", "pull")
    set_params(clone, {"train.max_steps": 60, "train.eval_every": 20, "train.save_every": 20})
    commit(clone)

    def queue() -> list[str]:
        printed = run(clone, "dvc", "exp", "run", "--queue", "-S", "train.learning_rate=1e-5,3e-5", *CHANGE)
        return re.findall(r"experiment '(.+?)'", printed)

    names = queue()
    assert len(names) == 2
    begin_workers(clone, "dvc", "queue", "start", "-j", "2")
    caught, end = set(), time.monotonic() + 5 * PATIENCE
    while len(caught) < 2:
        assert time.monotonic() < end, run(clone, "dvc", "queue", "status")
        time.sleep(0.01)  # leaves them the processor
        for trainer in trainers(clone):
            trainer.suspend()  # so that it waits for the other one
            caught.add(trainer.pid)
    rows = csv.DictReader(run(clone, "dvc", "exp", "show", "--csv").splitlines())
    running = [row for row in rows if row["Experiment"] in names and row["State"] == "Running"]
    # Each has validated, for it has saved after that.
    assert [int(row["best_step"]) >= 20 and float(row["validation_wer"]) >= 0 for row in running] == [True, True]
    kill(clone)
    run(clone, "dvc", "queue", "kill", "--force", *names)
    names = queue()
    begin_workers(clone, "dvc", "queue", "start", "-j", "2")  # --run-all may wait for ever once workers were killed
    end = time.monotonic() + 5 * PATIENCE
    while run(clone, "dvc", "queue", "status").count("Success") < 2:
        assert time.monotonic() < end, run(clone, "dvc", "queue", "status")
        time.sleep(0.5)
    kill(clone)
    logs = [run(clone, "dvc", "queue", "logs", name) for name in names]
    resumed = [line for log in logs for line in log.splitlines() if line.startswith("resuming run")]
    assert len(set(resumed)) == 2 and all(line.endswith("of 60") for line in resumed)
    shown = run(clone, "dvc", "exp", "show", "--csv").splitlines()
    assert sum(line.startswith(tuple(names)) and ",Success," in line for line in shown) == 2
    check_experiment(clone, names[0], 1e-5, logs[0])


def test_two_people_share_experiments_over_git_and_a_remote(finished, tmp_path):
    """As the manual of training has it: each runs one, pushes it, and takes the other's."""
    run(tmp_path, "git", "clone", "-q", "--bare", str(finished), "team.git")
    rates, places = {"anna": 1e-5, "bo": 3e-2}, {"anna": [], "bo": ["--temp"]}  # in the workspace, and beside it
    people = {name: tmp_path / name for name in rates}
    for name, folder in people.items():
        run(tmp_path, "git", "clone", "-q", "team.git", name)
        run(folder, "dvc", "pull")
        shutil.copytree(finished / "data/raw", folder / "data/raw")  # something for its commit to leave out
        change = ["-n", f"{name}-rate", "-S", f"train.learning_rate={rates[name]}", *CHANGE]
        printed = run(folder, "dvc", "exp", "run", *change, *places[name])
        check_experiment(folder, f"{name}-rate", rates[name], printed)
        run(folder, "dvc", "exp", "push", "origin", f"{name}-rate")
    assert "1e-05" in run(people["anna"], "dvc", "params", "diff")
    assert run(people["bo"], "git", "status", "--porcelain") == ""
    for name, other in (("anna", "bo"), ("bo", "anna")):
        run(people[name], "dvc", "exp", "pull", "origin", f"{other}-rate")
    compared = run(people["anna"], "python", "-m", "tools.compare", "anna-rate", "bo-rate")
    assert "learning_rate" in compared
    run(people["bo"], "dvc", "exp", "apply", "anna-rate")
    for path in ("models/tuned/model.safetensors", "data/transcripts/tuned.tsv", "metrics/train.json", "params.yaml"):
        assert (people["anna"] / path).read_bytes() == (people["bo"] / path).read_bytes()
    assert "up to date" in run(people["bo"], "dvc", "status", "train", "evaluate@tuned")


def test_plots_and_metrics_are_there(finished):
    page = finished.parent / "plots"
    run(finished, "dvc", "plots", "show", "-o", str(page))
    html = (page / "index.html").read_text()
    for title in YAML(typ="safe").load(finished / "dvc.yaml")["plots"]:
        assert next(iter(title)) in html
    shown = json.loads(run(finished, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert list(shown) == ["metrics/evaluate/tuned.json", "metrics/train.json"]
    assert list(shown["metrics/evaluate/tuned.json"]["data"]) == [
        "wer",
        "wer_low",
        "wer_high",
        "wer_full_window",
        "wer_stressed",
        "cer",
        "probes",
    ]
    assert shown["metrics/evaluate/tuned.json"]["data"]["probes"]["again"].keys() == {
        "wer",
        "wer_low",
        "wer_high",
        "cer",
    }
    assert "validation_wer" in shown["metrics/train.json"]["data"]
    artifacts = YAML(typ="safe").load(finished / "dvc.yaml")["artifacts"]
    assert artifacts["tuned"]["type"] == "model"


def test_a_wrong_value_stops_the_run_and_loses_nothing(pulled):
    set_params(pulled, {"train.learning_rate": -1})
    printed = run(pulled, "dvc", "repro", "--pull", status=255)
    assert "train.learning_rate: Input should be greater than 0, found -1" in printed
    assert "Traceback" not in printed
    run(pulled, "git", "checkout", ".")
    run(pulled, "dvc", "checkout")
    assert "up to date" in run(pulled, "dvc", "status", "train")
