"""``python -m tools.pin``: a version that DVC's registry reads, and no version of what is not committed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from dvc.api import artifacts_show

from stages.runtime.errors import UserError
from stages.versioning.pins import Repository
from tests.support.material import ROOT
from tests.support.pinned import isolate, other, push, start, tag, train
from tests.support.repository import commit, run, set_params
from tools.pin import main

NAME = "tuned@v1.0.0"
FIGURES = "WER 12.3 % (11.3 to 13.3), synthetic, 3,000 clips"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny) -> Path:
    """A repository with a committed model, not yet pushed; do not change it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.mktemp("site"))
        folder = start(tmp_path_factory.mktemp("trained") / "repo", tiny)
        train(folder, other(tiny, folder.parent / "other", 1.5), 12.3, 3000)
    return folder


@pytest.fixture
def repository(trained, tmp_path) -> Path:
    folder = shutil.copytree(trained, tmp_path / "repo", symlinks=True)
    config = folder / ".dvc/config"
    config.write_text(config.read_text().replace(str(trained.parent), str(tmp_path)))  # a remote of its own
    run(folder, "git", "commit", "-qam", "remote")
    return folder


@pytest.fixture
def tool(repository, capsys):
    """Call with arguments: what the command prints."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        main([*arguments, "--root", str(repository)], standalone_mode=False)
        return "".join(capsys.readouterr())

    return call


def test_a_pin_is_what_the_registry_reads(repository, tool):
    push(repository)
    printed = tool("v1.0.0")
    head = run(repository, "git", "rev-parse", "HEAD").strip()
    assert f"{NAME} pins {head[:7]}: {FIGURES}" in printed and "warning" not in printed
    assert "git push origin tuned@v1.0.0 && make push" in printed
    assert run(repository, "git", "tag", "-l", "--format=%(objecttype) %(contents:subject)") == f"tag {FIGURES}\n"
    assert artifacts_show("tuned", "v1.0.0", repo=str(repository)) == {"rev": head, "path": "models/tuned"}
    run(repository.parent, "dvc", "artifacts", "get", "-q", str(repository), "tuned", "--rev", "v1.0.0", "-o", "got")
    weights = "model.safetensors"
    assert (repository.parent / "got" / weights).read_bytes() == (repository / "models/tuned" / weights).read_bytes()
    version = Repository(repository).versions()[0]
    assert (version.name, version.commit, str(version)) == (NAME, head, FIGURES)


def test_without_a_version_pins_are_listed(repository, tool):
    assert tool() == "no version is pinned yet: make pin VERSION=v1.0.0\n"
    tag(repository, "tuned@v1.0.0", "tuned@v1.10.0", "tuned@v1.9.0", "tuned#prod")
    lines = tool().splitlines()
    assert [line.split()[0] for line in lines] == ["tuned@v1.10.0", "tuned@v1.9.0", "tuned@v1.0.0"]
    assert all(line.endswith(FIGURES) for line in lines)


def test_a_remote_that_lacks_the_model_is_told(repository, tool):
    assert "warning: the remote store does not have the model, so that others cannot" in tool("v1.0.0")


@pytest.mark.parametrize("version", ["1.0.0", "v1", "v1.0", "v01.0.0", "v1.0.0!", "v1.0.0#2", "latest", ""])
def test_what_is_no_version_is_told(repository, tool, version):
    with pytest.raises(UserError, match="is not a semantic version: give one such as v1"):
        tool(version)
    assert run(repository, "git", "tag") == ""


@pytest.mark.parametrize("lightweight", [True, False])
def test_a_version_stays_what_it_is(repository, tool, lightweight):
    run(repository, "git", "tag", NAME, *([] if lightweight else ["-a", "-m", "first"]))
    with pytest.raises(UserError, match=f"{NAME} exists already"):
        tool("v1.0.0")


def retrained(folder: Path) -> None:
    (folder / "models/tuned/config.json").write_text("{}")


def uncached(folder: Path) -> None:
    shutil.rmtree(folder / ".dvc/cache")


def unpulled(folder: Path) -> None:
    shutil.rmtree(folder / "models/tuned")


def other_params(folder: Path) -> None:
    set_params(folder, {"train.max_steps": 7})
    commit(folder)


def other_scores(folder: Path) -> None:
    (folder / "metrics/evaluate/tuned.json").write_text(json.dumps({"wer": 0}))
    commit(folder)


def uncommitted(folder: Path) -> None:
    set_params(folder, {"download.synthetic.train": 7})


def untracked(folder: Path) -> None:
    (folder / "metrics/new.json").write_text("{}")


def ignored(folder: Path) -> None:
    (folder / ".gitignore").write_text("/metrics\n")
    run(folder, "git", "rm", "-qr", "--cached", "metrics")
    commit(folder)


def no_stage(folder: Path) -> None:
    (folder / "dvc.yaml").write_text("stages: {}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (retrained, r"dvc.lock names another model \(models/tuned: modified\): run `make pull` or `make repro`"),
        (uncached, r"dvc.lock names another model \(models/tuned: not in cache\)"),
        (unpulled, r"dvc.lock names another model \(models/tuned: deleted\)"),
        (other_params, "changed since the last run: params.yaml: run `make repro`, then `git add"),
        (other_scores, "changed since the last run: metrics/evaluate/tuned.json"),
        (uncommitted, "not committed: params.yaml: run `git add"),
        (untracked, "not committed: metrics/new.json"),
        (ignored, "metrics/evaluate/tuned.json is in no commit"),
        (no_stage, "DVC tracks no models/tuned: run `make repro`"),
    ],
)
def test_what_is_not_as_committed_is_not_pinned(repository, tool, change, message):
    change(repository)
    with pytest.raises(UserError, match=message):
        tool("v1.0.0")
    assert run(repository, "git", "tag") == ""


def test_what_git_misses_is_told_in_its_own_words(repository, tool, monkeypatch):
    for name in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    run(repository, "git", "config", "user.useConfigOnly", "true")
    with pytest.raises(UserError, match="Please tell me who you are"):
        tool("v1.0.0")


def test_outside_of_a_repository_one_line_says_so(tmp_path):
    printed = run(ROOT, sys.executable, "-m", "tools.pin", "v1.0.0", "--root", str(tmp_path), status=1)
    assert printed.startswith("Error: fatal: not a git repository") and printed.count("\n") == 1
