import json
import subprocess
import sys

import pytest

SCORES = {"wer": 50.0, "wer_low": 45.0, "wer_high": 55.0, "cer": 20.0}
BEYOND = {"wer_full_window": 51.0, "wer_stressed": 70.0}
BEYOND_DETAILS = {"wer_by": "speaker", "speakers": 9, "wer_full_window_low": 44.0, "wer_full_window_high": 56.0}
BEYOND_DETAILS |= {"wer_full_window_by": "clip", "conditions": 9, "condition_clips": 100}
BEYOND_DETAILS |= {"wer_new_speakers": 60.0, "wer_new_speakers_low": 40.0, "wer_new_speakers_high": 80.0}
BEYOND_DETAILS |= {"wer_new_speakers_by": "speaker", "new_speakers": 4}
DETAILS = {"wer_raw": 60.0, "substitutions": 16, "deletions": 3, "insertions": 1, "words": 40, "clips": 7}
SPLITS = ("train", "validation", "test")


def report(folder):
    command = [sys.executable, "-m", "tools.report", "--metrics", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def metrics(tmp_path):
    """What a run leaves."""
    files = {
        "evaluate/pretrained": SCORES | {"wer": 100.0, "untrained": True},
        "evaluate/tuned": SCORES,
        "train": {"validation_wer": 48.0, "best_step": 3, "steps": 4},
        "details/evaluate/pretrained": DETAILS | {"dropped": {"no words": 1}},
        "details/evaluate/tuned": DETAILS | {"dropped": {"no words": 1}},
        "details/train": {"dropped": {"label too long": 1}},
        "details/download": {split: {"dropped": {"too short": 2}} for split in SPLITS},
    }
    files |= {f"details/featurize/{split}": {"clips": 20, "seconds": 90.0, "dropped": {}} for split in SPLITS}
    for name, values in files.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return tmp_path


def test_table_shows_before_and_after(metrics):
    lines = report(metrics).stdout.splitlines()
    assert lines[0].split()[2:4] == ["untrained", "tuned"]
    assert lines[1].split() == ["WER", "100.0", "50.0", "45.0", "to", "55.0"]
    assert not [line for line in lines if "voices" in line]  # neither model has those scores
    assert [line.split()[-2:] for line in lines if "raw" in line] == [["60.0", "60.0"]]


def test_each_rate_stands_with_the_interval_it_has_and_the_speakers_it_rests_on(metrics):
    for name, values in (("evaluate/tuned", SCORES | BEYOND), ("details/evaluate/tuned", DETAILS | BEYOND_DETAILS)):
        (metrics / f"{name}.json").write_text(json.dumps(values | {"dropped": {}}))
    rows = {line[:20].strip(): line[20:].split(maxsplit=2) for line in report(metrics).stdout.splitlines()[1:6]}
    assert rows == {
        "WER": ["100.0", "50.0", "45.0 to 55.0 by speaker, 9 speakers"],
        "WER, full window": ["51.0", "44.0", "to 56.0 by clip"],
        "WER, stressed": ["70.0", "mean", "of 9 conditions, 100 clips"],
        "WER, new voices": ["60.0", "40.0", "to 80.0 by speaker, 4 speakers"],
        "WER, raw text": ["60.0", "60.0"],
    }


def test_counts_and_what_was_dropped_stand_below_the_table(metrics):
    lines = report(metrics).stdout.splitlines()
    assert lines[4:7] == [
        "7 clips, 40 words: substitutions 16, deletions 3, insertions 1",
        "Trained on 20 clips, 2 min: validation WER 48.0 % at step 3 of 4",
        "Dropped: 6 too short, 1 label too long, 1 no words",
    ]


def test_weights_that_no_step_had_are_named(metrics):
    (metrics / "details/train.json").write_text(json.dumps({"dropped": {}, "weights": "mean of steps 2, 3, 4"}))
    assert "validation WER 48.0 % (mean of steps 2, 3, 4)\n" in report(metrics).stdout


@pytest.mark.parametrize("name", ["evaluate/tuned", "train"])
def test_missing_scores_say_what_to_do(metrics, name):
    for path in (metrics / f"{name}.json", metrics / f"details/{name}.json"):
        path.unlink()
    result = report(metrics)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "make repro" in result.stderr
