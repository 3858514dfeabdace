"""The project as a repository of its own, under a real Git and DVC, with a tiny model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tests.support.material import ROOT
from tests.support.tones import write_table

PARTS = ["stages", "tools", "recipes", "dvc.yaml", "params.yaml"]
PARTS += [".gitignore", ".dvcignore", ".dvc/config", ".dvc/plots"]
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
    "evaluate.conditions.clips": 2,
}


def run(folder: Path, *command: str, status: int = 0, **variables: str) -> str:
    """Run a command as a person in an activated environment would; returns what it printed."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder) | variables,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def environment(folder: Path) -> dict[str, str]:
    """What a command sees in a repository: our programs first, no shared caches, a name to commit under."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str((folder / ".dvc/tmp" if folder == ROOT else folder.parent) / "site"),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
        "COLUMNS": "300",
    }


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


def copy_repository(folder: Path) -> Path:
    """The project's own files of today, without Git and DVC's cache."""
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    run(folder, "python", "-m", "tools.recipe", "set", "default")  # whatever recipe is set
    return folder


def finish_pipeline(folder: Path) -> Path:
    """A repository in which the pipeline has run with a tiny model, committed, and pushed to a folder beside it.

    It trains on two corpora, of which the second is the probe too.
    """
    copy_repository(folder)
    set_params(folder, TINY)
    recordings = folder.parent / "recordings"
    write_table(recordings, [{"path": f"{number}.wav", "text": f"mening {number}"} for number in range(4)])
    settings = {
        "corpora.voices.corpus": "synthetic",
        "corpora.mine.corpus": "folder",
        "corpora.mine.train_only": "true",
    }
    settings |= {
        "corpora.mine.set.path": recordings,
        "probes.again.corpus": "folder",
        "probes.again.set.path": recordings,
    }
    settings |= {"probes.again.language": "en"}
    given = [part for key, value in settings.items() for part in ("--set", f"download.{key}={value}")]
    run(folder, "python", "-m", "tools.recipe", "set", *given)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "remote", "add", "-d", "local", str(folder.parent / "remote"))
    run(folder, "dvc", "repro")
    commit(folder)
    run(folder, "dvc", "push")
    return folder


def with_store(folder: Path) -> Path:
    """A repository with nothing in it, whose remote ``store`` is a folder beside it."""
    folder.mkdir()
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "remote", "add", "store", str(folder.parent / "store"))
    return folder
