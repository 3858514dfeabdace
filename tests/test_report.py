import json
import subprocess
import sys

SCORES = {"wer": 50.0, "wer_low": 45.0, "wer_high": 55.0, "wer_raw": 60.0, "cer": 20.0, "clips": 7, "words": 40}


def report(folder):
    command = [sys.executable, "-m", "tools.report", "--metrics", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_table_shows_before_and_after(tmp_path):
    (tmp_path / "pretrained.json").write_text(json.dumps(SCORES | {"wer": 100.0, "untrained": True}))
    (tmp_path / "tuned.json").write_text(json.dumps(SCORES))
    lines = report(tmp_path).stdout.splitlines()
    assert lines[0].split()[2:4] == ["untrained", "tuned"]
    assert lines[1].split() == ["WER", "100.0", "50.0", "45.0", "to", "55.0"]
    assert not [line for line in lines if "voices" in line]  # neither model has those scores


def test_missing_scores_say_what_to_do(tmp_path):
    result = report(tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "make repro" in result.stderr
