"""``.github/metrics.sh``: what a pull request is told, of a real repository; a stand-in only for GitHub's command."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.material import ROOT
from tests.support.repository import commit, environment, run, set_params

SCRIPT = ROOT / ".github/metrics.sh"
SCORES, CURVE = "metrics/evaluate/tuned.json", "metrics/curves/validation.tsv"
# Answers as GitHub does, and keeps what it was asked: a comment of a person's, and one of ours once it was made.
GH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$ASKED"
case "$*" in
    *--method*) ;;
    *--paginate*) jq --raw-output "${@: -1}" < "$COMMENTS" ;;
esac
"""


@pytest.fixture
def repository(tmp_path) -> Path:
    """The project's map, parameters and metrics, committed; no data and no code."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "metrics", folder / "metrics")
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvc/plots/models.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    commit(folder)
    return folder


def compare(folder: Path) -> str:
    return run(folder, str(SCRIPT), "HEAD~1")


def change(folder: Path, name: str, old: str, new: str) -> None:
    text, n = re.subn(old, new, (folder / name).read_text(encoding="utf-8"), count=1)
    assert n
    (folder / name).write_text(text, encoding="utf-8")


def test_what_changed_stands_beside_what_it_was(repository):
    set_params(repository, {"train.learning_rate": 0.00321})
    change(repository, SCORES, r'"wer": [\d.]+', '"wer": 77.5')
    commit(repository)
    text = compare(repository)
    assert re.search(r"\| train.learning_rate +\| [\d.]+ +\| 0.00321 +\|", text)
    assert re.search(r"\| wer +\| [\d.]+ +\| 77.5 +\| [\d.]+ +\|", text)
    assert "mermaid" not in text


def test_nothing_changed(repository):
    commit(repository)
    assert compare(repository).count("No change.") == 2


def test_a_new_curve_is_drawn_beside_the_old(repository):
    old = [line.split("\t")[-1] for line in (repository / CURVE).read_text().splitlines()[1:]]
    change(repository, CURVE, r"[\d.]+\n\Z", "12.5\n")
    commit(repository)
    text = compare(repository)
    assert re.findall(r"^ +line \[(.*)\]$", text, re.M) == [", ".join(old), ", ".join([*old[:-1], "12.5"])]
    assert text.count("```mermaid") == 1


def test_curves_of_other_steps_have_charts_of_their_own(repository):
    (repository / CURVE).write_text("step\tloss\twer\n10\t1\t50.5\n20\t0.5\t25.5\n")
    commit(repository)
    text = compare(repository)
    assert text.count("```mermaid") == 2
    assert 'x-axis "step" [10, 20]' in text
    assert "line [50.5, 25.5]" in text


def test_a_branch_without_a_curve(repository):
    (repository / CURVE).unlink()
    commit(repository)
    assert compare(repository).count("```mermaid") == 1


def test_what_the_base_got_meanwhile_is_not_told(repository):
    run(repository, "git", "branch", "-m", "main")
    run(repository, "git", "switch", "-qc", "other")
    commit(repository)
    run(repository, "git", "switch", "-q", "main")
    set_params(repository, {"train.learning_rate": 0.00321})
    commit(repository)
    run(repository, "git", "switch", "-q", "other")
    assert "0.00321" not in run(repository, str(SCRIPT), "main")


@pytest.mark.skipif(not shutil.which("jq"), reason="the stand-in for gh reads JSON with jq")
@pytest.mark.parametrize("before", [[], [7], [7, 8]], ids=["the first", "the second", "one of two"])
def test_a_pull_request_has_one_comment(tmp_path, repository, before):
    ours = [{"id": each, "user": {"type": "Bot"}, "body": "<!-- metrics.sh -->\n### old"} for each in before]
    theirs = [
        {"id": 1, "user": {"type": "User"}, "body": "<!-- metrics.sh --> as a person quotes it"},
        {"id": 2, "user": {"type": "Bot"}, "body": "another bot's"},
    ]
    (tmp_path / "comments.json").write_text(json.dumps(theirs + ours))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    told = {"ASKED": str(tmp_path / "asked"), "COMMENTS": str(tmp_path / "comments.json")}
    told |= {"GITHUB_REPOSITORY": "anna/viska", "PR": "12"}
    env = environment(repository) | told
    env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
    subprocess.run([SCRIPT, "--comment", "comparison.md"], cwd=repository, env=env, check=True)
    *_, last = (tmp_path / "asked").read_text().splitlines()
    target = f"issues/comments/{before[-1]}" if before else "issues/12/comments"
    assert re.search(rf"repos/anna/viska/{target} --field body=@comparison.md$", last)
    assert ("PATCH" in last) == bool(before)
