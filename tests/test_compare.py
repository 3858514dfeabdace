"""``python -m tools.compare``: revisions of a real Git and DVC, whose transcripts are written by hand."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.asr.scoring import wer
from stages.asr.shards import Entry, write_shard
from stages.runtime.errors import UserError
from stages.runtime.files import write_table, write_text
from stages.versioning.revisions import WORKSPACE_NAME, Revision
from tests.support.material import ROOT
from tests.support.pinned import isolate, tag
from tests.support.repository import commit, run
from tools.compare.__main__ import main
from tools.report.records import read_record
from tools.sweep.experiments import stale_results

MAP = """\
stages:
  featurize:
    foreach: [test]
    do: {cmd: "false", outs: ["data/features/${item}"]}
  train: {cmd: "false", params: [train], deps: [stages/train.py], outs: [models/tuned]}
  evaluate:
    foreach: [tuned]
    do:
      cmd: "false"
      deps: [data/features/test, "models/${item}", stages/evaluate.py]
      outs: ["data/transcripts/${item}.tsv"]
"""
SAID = ["vi köper tolv ägg", "Åsa bor i Örebro.", "båten går klockan åtta", "jag dansar på lördag"]
WORSE = ["vi köper tolv", "åsa bor vid en ö", "båten står klockan åtta", "jag dansar lördag"]
CLIPS = 40
TRANSCRIPT = "data/transcripts/tuned.tsv"


def heard(texts: list[str], from_clip: int = 0, clips: int = CLIPS) -> dict[str, tuple[str, str]]:
    """What was said and heard, by clip; up to from_clip all was heard well."""
    said = {f"clip-{at:02}": SAID[at % len(SAID)] for at in range(clips)}
    return {
        clip: (text, texts[at % len(texts)] if at >= from_clip else text)
        for at, (clip, text) in enumerate(said.items())
    }


def record(folder: Path, transcripts: dict[str, tuple[str, str]], rate: float = 0.001, model: str = "") -> None:
    """Leave in the workspace what a run would, and have DVC take it as one; model: its weights."""
    clips = [
        (Entry(clip, text, f"voice {at % 8}", "yes" if at % 2 else "no", 1 + at % 3, 1, 0.0), bytes(80))
        for at, (clip, (text, _)) in enumerate(transcripts.items())
    ]
    rows = [(clip, *texts, "0.0") for clip, texts in transcripts.items()]
    for out in (folder / "data/features/test", folder / TRANSCRIPT, folder / "models/tuned"):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)  # links into the cache
    (folder / "data/features/test").mkdir(parents=True)
    write_shard(folder / "data/features/test/00000.zip", "uint8", 80, clips)
    write_table(folder / TRANSCRIPT, ["clip", "reference", "hypothesis", "wer"], rows)
    write_text(folder / "models/tuned/weights", model or str(transcripts))
    write_text(folder / "params.yaml", f"train: {{learning_rate: {rate}, spec_augment: {{time_prob: 0.0}}}}\n")
    run(folder, "dvc", "commit", "-q", "-f")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Revisions to compare; do not change it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.mktemp("site"))
        folder = tmp_path_factory.mktemp("compare") / "repo"
        folder.mkdir()
        run(folder, "git", "init", "-q", "-b", "main")
        Repo.init(str(folder)).close()
        run(folder, "dvc", "remote", "add", "-q", "--default", "store", str(folder.parent / "store"))
        write_text(folder / "dvc.yaml", MAP)
        for module in ("train", "evaluate"):
            write_text(folder / f"stages/{module}.py", "")
        for ignored, names in {
            "data/features": "/test\n",
            "data/transcripts": "/*.tsv\n",
            "models": "/tuned\n",
        }.items():
            write_text(folder / ignored / ".gitignore", names)
        commit(folder)
        run(folder, "git", "tag", "before")
        record(folder, heard(SAID))
        commit(folder)
        tag(folder, "tuned@v1.0.0")
        branches = {
            "worse": lambda: record(folder, heard(WORSE, 10), rate=0.01),
            "chance": lambda: record(folder, heard(WORSE, CLIPS - 2)),
            "other-clips": lambda: record(folder, heard(SAID, clips=CLIPS - 7)),
            "other-text": lambda: record(folder, heard(SAID) | {"clip-03": ("jag dansar", "jag dansar")}),
            "new-code": lambda: (write_text(folder / "stages/train.py", "# \n"), record(folder, heard(SAID))),
        }
        for name, make in branches.items():
            run(folder, "git", "switch", "-q", "-c", name, "main")
            make()
            commit(folder)
        run(folder, "git", "switch", "-q", "-c", "stale", "main")  # as after a run of train alone
        run(folder, "dvc", "checkout", "-q")
        lock = (folder / "dvc.lock").read_text()
        record(folder, heard(SAID), model="trained anew")
        (made,) = re.findall(r"outs:\n    - path: models/tuned\n.*?md5: (\S+)", (folder / "dvc.lock").read_text(), re.S)
        (old,) = re.findall(r"outs:\n    - path: models/tuned\n.*?md5: (\S+)", lock, re.S)
        head, outs, rest = lock.rpartition("outs:\n    - path: models/tuned")
        (folder / "dvc.lock").write_text(head + outs + rest.replace(old, made, 1))
        commit(folder)
        run(folder, "git", "switch", "-q", "main")
        record(folder, heard(WORSE, 30), rate=0.02)
        run(folder, "dvc", "exp", "save", "-q", "--name", "high-rate")
        run(folder, "git", "checkout", "-q", ".")
        run(folder, "dvc", "checkout", "-q")
        with Repo(str(folder)) as repo:
            repo.push(all_branches=True, all_tags=True)
    return folder


@pytest.fixture
def tool(repository, capsys):
    """Call with arguments: what the command prints on stdout."""

    def call(*arguments: str, root: Path = repository) -> str:
        capsys.readouterr()
        main([*arguments, "--root", str(root), "--samples", "500"], standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture
def result(tool):
    """Call with arguments: what --json prints."""
    return lambda *arguments, **options: json.loads(tool(*arguments, "--json", **options))


@pytest.fixture
def clone(repository, tmp_path) -> Path:
    """A fresh one, whose remote is a copy."""
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    for branch in ("worse", "chance"):
        run(tmp_path / "clone", "git", "branch", "-q", branch, f"origin/{branch}")
    shutil.copytree(repository.parent / "store", tmp_path / "store")
    run(tmp_path / "clone", "dvc", "remote", "modify", "-q", "store", "url", str(tmp_path / "store"))
    return tmp_path / "clone"


def test_rates_are_the_scores_of_the_transcripts(result):
    found = result("tuned@v1.0.0", "worse")
    references, hypotheses = zip(*heard(WORSE, 10).values(), strict=True)
    rates = [revision["wer"] for revision in found["revisions"]]
    assert rates == pytest.approx([0, wer(references, hypotheses)])
    (other,) = found["comparisons"]
    assert other["wer"]["points"] == pytest.approx(rates[1])
    for interval in (other["wer"]["by_clip"], other["wer"]["by_speaker"]):
        assert interval[0] < rates[1] < interval[1]
    assert other["wer"]["significant"] and other["wer"]["p"] == pytest.approx(2 / 2**30)  # all 30 of one sign
    assert (other["better"], other["worse"], other["equal"]) == (0, 30, 10)


def test_groups_add_up(result):
    found = result("main", "worse")
    for groups in (found["lengths"], found["speakers"], found["voices"]):
        assert sum(group["clips"] for group in groups) == found["clips"] == CLIPS
    assert [group["name"] for group in found["lengths"]] == ["01–02 s", "02–03 s", "03–04 s"]
    assert [group["name"] for group in found["speakers"]] == [f"voice {number}" for number in range(8)]
    assert {group["name"] for group in found["voices"]} == {"known voices", "new voices"}


def test_what_made_the_difference_is_told(result):
    (worse,), (code,) = (result("main", name)["comparisons"] for name in ("worse", "new-code"))
    assert worse["params"] == {"train.learning_rate": [0.001, 0.01]}
    assert worse["data"].keys() == {"models/tuned"} and not worse["code"]
    assert code["code"].keys() == {"stages/train.py"} and not code["params"] and not code["data"]


def test_experiments_commits_and_the_workspace(tool, result, repository):
    (other,) = result("HEAD", "high-rate")["comparisons"]
    assert other["params"] == {"train.learning_rate": [0.001, 0.02]} and other["worse"] == 10
    worse = run(repository, "git", "rev-parse", "worse").strip()
    found = result(worse[:9], "workspace")
    assert [revision["commit"] for revision in found["revisions"]] == [worse, ""]
    assert found["comparisons"][0]["better"] == 30
    assert result(worse[:9]) == found  # without B the workspace


def test_a_transcript_that_no_run_recorded_is_said_to_be_one(repository, tmp_path, result):
    folder = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    (folder / TRANSCRIPT).unlink()
    rows = [(clip, *texts, "0.0") for clip, texts in heard(WORSE).items()]
    write_table(folder / TRANSCRIPT, ["clip", "reference", "hypothesis", "wer"], rows)
    found = result("main", root=folder)
    assert found["comparisons"][0]["worse"] == CLIPS and "not the file that dvc.lock names" in found["notes"][0]


def test_several_against_one_fit_100_columns(tool):
    lines = tool("main", "worse", "chance", "high-rate", "--sentences", "2").splitlines()
    assert max(map(len, lines)) <= 100
    assert [line[:9].split()[0] for line in lines[1:5]] == ["A", "B", "C", "D"]
    verdicts = [line.split()[-1] for line in lines if line[1:6] == "  WER"]
    assert verdicts == ["worse", "significant", "worse"]  # not significant
    assert "    B  åsa bor [→vid] [i→en] [örebro→ö]" in lines
    assert "  params  train.learning_rate               0.001 → 0.01" in lines


def test_the_wider_interval_comes_first(tool, result):
    (other,) = result("main", "worse")["comparisons"]
    by = {"clip": other["wer"]["by_clip"], "speaker": other["wer"]["by_speaker"]}
    first, second = sorted(by, key=lambda unit: by[unit][0] - by[unit][1])
    (line,) = (line for line in tool("main", "worse").splitlines() if line.startswith("B  WER"))
    assert line.index(f"by {first}") < line.index(f"by {second}")


def test_the_same_seed_gives_the_same_text(tool):
    assert tool("main", "chance", "--seed", "3") == tool("main", "chance", "--seed", "3")


def test_other_test_sets_are_refused_with_their_clips(tool):
    with pytest.raises(UserError, match=r"7 only in main \(clip-33, clip-34, clip-35, clip-36, clip-37, …\): evaluate"):
        tool("main", "other-clips")
    with pytest.raises(UserError, match=r"1 with another reference \(clip-03\)"):
        tool("main", "other-text")


def test_transcripts_that_are_older_than_their_model_are_refused(tool):
    with pytest.raises(UserError, match="stale: evaluate@tuned has not run since models/tuned was made anew"):
        tool("main", "stale")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is no commit, branch, tag or experiment here"),
        ("before", "before has no dvc.lock, so no run is recorded there: run `make repro`"),
    ],
)
def test_a_revision_without_a_run_says_what_to_do(tool, name, message):
    with pytest.raises(UserError, match=message):
        tool("main", name)


def test_an_unfinished_merge_is_named_with_its_file(repository, tmp_path, tool):
    """Also for a sweep and for the report, which read the same files."""
    folder = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    run(folder, "git", "switch", "-q", "chance")
    run(folder, "git", "merge", "-q", "worse", status=1)
    assert "<<<<<<<" in (folder / "dvc.lock").read_text()
    write_text(folder / "metrics/train.json", '{\n<<<<<<< HEAD\n"a": 1\n=======\n"a": 2\n>>>>>>> worse\n}\n')
    conflict = "{} cannot be read: a merge left conflicts in it: take one side's"
    with pytest.raises(UserError, match=conflict.format("dvc.lock")):
        tool("chance", "workspace", root=folder)
    with pytest.raises(UserError, match=conflict.format("dvc.lock")):
        stale_results(folder)
    with pytest.raises(UserError, match=conflict.format("metrics/train.json")):
        read_record(folder, Revision(WORKSPACE_NAME, "")).numbers("train")


def test_a_stage_that_never_ran_is_named(tool):
    with pytest.raises(UserError, match="main: the stage evaluate@pretrained has not run: run `dvc repro"):
        tool("main", "worse", "--model", "pretrained")


def test_experiments_of_one_name_need_a_commit(repository, tmp_path, tool):
    folder = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    (ref,) = run(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/high-rate").split()
    baseline = run(folder, "git", "rev-parse", "chance").strip()
    run(folder, "git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/high-rate", "worse")
    assert "Against A" in tool("main", "high-rate", root=folder)  # the one on the current commit
    run(folder, "git", "switch", "-q", "--detach", "other-clips")
    with pytest.raises(UserError, match=f"several experiments .*{run(folder, 'git', 'rev-parse', ref)[:7]}"):
        tool("main", "high-rate", root=folder)


def test_what_is_missing_is_fetched(clone, result):
    found = result("main", "worse", root=clone)
    assert found["comparisons"][0]["worse"] == 30 and len(found["speakers"]) == 8
    assert not (clone / TRANSCRIPT).exists()  # the workspace stays as it was


def test_without_features_there_are_no_speakers(clone, tool, result):
    with Repo(str(clone)) as repo:
        (out,) = repo.find_outs_by_path(str(clone / "data/features/test"))
        digest = out.hash_info.value
    (clone.parent / "store/files/md5" / digest[:2] / digest[2:]).unlink()
    found = result("main", "worse", root=clone)
    (other,) = found["comparisons"]
    assert other["wer"]["by_speaker"] is None and found["lengths"] == found["speakers"] == []
    assert "no speakers and lengths: data/features/test of main could not be fetched" in found["notes"][0]
    assert "WER, % by" not in tool("main", "worse", root=clone)


def test_transcripts_that_are_nowhere_say_what_to_do(clone, tool):
    shutil.rmtree(clone.parent / "store")
    with pytest.raises(UserError, match=f"{TRANSCRIPT} of main could not be fetched from the remote store"):
        tool("main", "worse", root=clone)
    run(clone, "dvc", "remote", "remove", "store")
    with pytest.raises(UserError, match=f"{TRANSCRIPT} of main is not in DVC's cache.*`dvc remote add --default"):
        tool("main", "worse", root=clone)


def test_what_is_worse_ends_with_1_for_ci(repository):
    """In a process of its own; what is compared is printed all the same."""
    command = ("main", "worse", "--root", str(repository), "--fail-if-worse", "0.5")
    printed = run(ROOT, sys.executable, "-m", "tools.compare", *command, status=1)
    points = wer(*zip(*heard(WORSE, 10).values(), strict=True))  # main's is 0
    assert "Against A" in printed and f"Error: worse is {points:.2f} points of WER worse than main" in printed


@pytest.mark.parametrize(("other", "allowed"), [("worse", "90"), ("chance", "0"), ("main", "0")])
def test_less_or_chance_is_not_worse_for_ci(tool, other, allowed):
    assert "Against A" in tool("main", other, "--fail-if-worse", allowed)
