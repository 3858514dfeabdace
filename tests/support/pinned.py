"""A repository of the project's shape whose models come from elsewhere: no stage runs, Git and DVC are real."""

import json
import os
import shutil
from pathlib import Path

import torch
from dvc.repo import Repo

from stages.asr.model import load_model, save_model
from stages.versioning.pins import CLIPS
from tests.support.material import write_params
from tests.support.repository import commit, run

MAP = """\
stages:
  pretrained: {cmd: "false", params: [whisper], outs: [models/pretrained]}
  train: {cmd: "false", params: [train], deps: [models/pretrained], outs: [models/tuned]}
  evaluate:
    cmd: "false"
    deps: [models/tuned]
    metrics: [metrics/evaluate/tuned.json: {cache: false}]
artifacts:
  tuned: {path: models/tuned, type: model}
"""


def start(folder: Path, pretrained: Path) -> Path:
    """An empty repository with a base model, and a folder beside it as its default remote."""
    folder.mkdir(parents=True)
    run(folder, "git", "init", "-q", "-b", "main")
    Repo.init(str(folder)).close()
    with (folder / ".dvc/config").open("a") as config:
        config.write(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {folder.parent / 'store'}\n")
    (folder / "dvc.yaml").write_text(MAP)
    write_params(folder / "params.yaml", {})
    shutil.copytree(pretrained, folder / "models/pretrained")
    (folder / "models/.gitignore").write_text("/pretrained\n/tuned\n")
    write(folder / "metrics/evaluate/pretrained.json", {"wer": 100, "untrained": True})
    return folder


def train(folder: Path, model: Path, wer: float, clips: int, counted: str = CLIPS) -> None:
    """Put a model and its figures where training and evaluation would, and commit it; counted: where the clips are."""
    if (folder / "models/tuned").exists():
        shutil.rmtree(folder / "models/tuned")
    shutil.copytree(model, folder / "models/tuned")
    write(folder / "metrics/evaluate/tuned.json", {"wer": wer, "wer_low": wer - 1, "wer_high": wer + 1})
    write(folder / counted, {"clips": clips})
    run(folder, "dvc", "commit", "-q", "-f")
    commit(folder)


def push(folder: Path) -> None:
    with Repo(str(folder)) as repo:
        repo.push(all_tags=True)


def tag(folder: Path, *names: str) -> None:
    """Annotated tags on the last commit."""
    for name in names:
        run(folder, "git", "tag", "-a", name, "-m", "a version")


def other(model: Path, folder: Path, factor: float) -> Path:
    """A model with other weights."""
    model = load_model(model)
    with torch.no_grad():
        model.whisper.model.decoder.embed_tokens.weight.mul_(factor)
    save_model(model, folder)
    return folder


def write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def isolate(monkeypatch, folder: Path) -> None:
    """DVC's caches of the machine in a folder, and a name for Git to commit under, for this process too."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", os.fspath(folder / "site"))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.com")
