"""The whole pipeline under a real DVC, in a repository of its own, with a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PARTS = ["stages", "tools", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/plots"]
TINY = {
    "whisper.scratch.d_model": 16,
    "whisper.scratch.layers": 1,
    "whisper.scratch.heads": 2,
    "download.synthetic.train": 24,
    "download.synthetic.validation": 4,
    "download.synthetic.test": 6,
    "featurize.clips_per_shard": 10,
    "train.batch_size": 4,
    "train.warmup_steps": 1,
    "train.max_steps": 4,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.save_every": 2,
    "evaluate.bootstrap_samples": 100,
}


def run(folder: Path, *command: str, status: int = 0) -> str:
    """Run a command as a person in an activated environment would; returns what it printed."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
        "COLUMNS": "300",
    }
    result = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "state", "--allow-empty")


def set_params(folder: Path, values: dict) -> None:
    """Put dotted keys into a repository's params.yaml, its comments kept."""
    yaml, path = YAML(), folder / "params.yaml"
    params = yaml.load(path)
    for key, value in values.items():
        *parents, last = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = value
    yaml.dump(params, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A repository in which the pipeline has run and was committed and pushed to a local remote; do not change it."""
    folder = tmp_path_factory.mktemp("viska") / "repo"
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    set_params(folder, TINY)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "remote", "add", "-d", "local", str(folder.parent / "remote"))
    run(folder, "dvc", "repro")
    commit(folder)
    run(folder, "dvc", "push")
    return folder


@pytest.fixture
def clone(finished, tmp_path) -> Path:
    """A fresh clone of it, with the shared site cache of its own."""
    run(tmp_path, "git", "clone", "-q", str(finished), "repo")
    return tmp_path / "repo"


@pytest.fixture
def pulled(clone) -> Path:
    run(clone, "dvc", "pull")
    return clone


def scores(folder: Path, name: str) -> dict:
    return json.loads((folder / "metrics" / name).read_text())


def test_every_stage_leaves_its_results(finished):
    assert "WER" in run(finished, "python", "-m", "tools.report")
    assert scores(finished, "evaluate/pretrained.json")["untrained"] is True
    assert "untrained" not in scores(finished, "evaluate/tuned.json")
    assert scores(finished, "train.json").keys() == {"validation_wer", "best_step", "steps", "dropped"}
    assert scores(finished, "download.json")["train"] == {"clips": 24, "speakers": 12, "dropped": {}}
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


def test_a_clone_pulls_everything_but_raw_audio_and_runs_nothing(clone, finished):
    run(clone, "dvc", "pull")
    for out in ("data/features", "models/pretrained", "models/tuned", "data/transcripts", "data/dropped.tsv"):
        for path in sorted((finished / out).rglob("*")) or [finished / out]:
            if path.is_file() and path.name != ".gitignore":
                assert (clone / path.relative_to(finished)).read_bytes() == path.read_bytes()
    assert "Running stage" not in run(clone, "dvc", "repro", "--pull")
    assert not (clone / "data/raw").exists()


def test_what_shapes_no_result_reruns_nothing(pulled):
    set_params(pulled, {"compute.processes": 1, "compute.decode_batch_size": 3, "checkpoints.keep.local": 5})
    assert "params.yaml" not in run(pulled, "dvc", "status")


def test_forced_rerun_gives_the_same_bytes(clone):
    run(clone, "dvc", "repro", "--force")
    assert run(clone, "git", "status", "--porcelain") == ""


def experiment(folder: Path, *options: str) -> str:
    """Run an experiment with another learning rate; returns what DVC printed."""
    change = ["-n", "trial", "-S", "train.learning_rate=1e-5", "--allow-missing"]
    return run(folder, "dvc", "exp", "run", *change, *options)


def check_experiment(folder: Path, printed: str) -> None:
    """It ran train and the evaluation of its result, is shown, and its commit holds no raw clip."""
    ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage '")}
    assert ran == {"train", "evaluate@tuned"}
    (line,) = [line for line in run(folder, "git", "show-ref").splitlines() if line.endswith("/trial")]
    files = run(folder, "git", "ls-tree", "-r", "--name-only", line.split()[0]).splitlines()
    assert "dvc.lock" in files and not [file for file in files if file.startswith("data/raw/")]
    assert "trial" in run(folder, "dvc", "exp", "show", "--csv")
    assert "learning_rate" in run(folder, "dvc", "params", "diff", "HEAD", line.split()[0])


def test_experiment_in_the_workspace(finished, pulled):
    shutil.copytree(finished / "data/raw", pulled / "data/raw")  # something for its commit to leave out
    check_experiment(pulled, experiment(pulled))
    assert "1e-05" in run(pulled, "dvc", "params", "diff")


def test_experiment_in_a_folder_of_its_own(pulled):
    check_experiment(pulled, experiment(pulled, "--temp"))


def test_experiment_from_the_queue(pulled):
    experiment(pulled, "--queue")
    run(pulled, "dvc", "exp", "run", "--run-all")
    check_experiment(pulled, run(pulled, "dvc", "queue", "logs", "trial"))


def test_plots_and_metrics_are_there(finished):
    page = finished.parent / "plots"
    run(finished, "dvc", "plots", "show", "-o", str(page))
    html = (page / "index.html").read_text()
    for title in YAML(typ="safe").load(finished / "dvc.yaml")["plots"]:
        assert next(iter(title)) in html
    shown = run(finished, "dvc", "metrics", "show", "--json")
    assert "wer_low" in shown and "validation_wer" in shown
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
