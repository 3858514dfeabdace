"""Progress as a terminal shows it, and as a log keeps it."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import threading

import pytest

from tests.support.material import ROOT

STEPS = """
from stages.runtime.progress import ProgressBar
for _ in ProgressBar(range(2000), desc="steps", mininterval=0): pass
"""
COMMAND = [sys.executable, "-c", STEPS.replace(", mininterval=0", "")]


def test_a_log_gets_few_lines_and_the_last_says_all():
    result = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stderr.splitlines()
    assert "\r" not in result.stderr
    assert len(lines) == 2  # the first and the last, for a step shorter than LINE_EVERY
    assert "0/2000" in lines[0] and "2000/2000" in lines[1]


def in_terminal(script: str, columns: int) -> bytes:
    """What a script writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    shown = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while piece := os.read(ours, 65536):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, contextlib.redirect_stderr(terminal):
        exec(script, {})
    reader.join()
    os.close(ours)
    return b"".join(shown)


def test_a_terminal_gets_a_bar_that_overwrites_itself():
    shown = in_terminal(STEPS, 80)
    assert shown.count(b"\r") > 2 and b"2000/2000" in shown


TRAINING = """
from stages.training.curves import StepBar
bar = StepBar(32, total=200000, initial=119000)
bar.start_t -= 36 * 3600
bar.update(1000)
bar.show(loss=12.3456)
bar.show(phase="validate")
bar.show(phase="train", wer=104.29)
bar.close()
"""


@pytest.mark.parametrize("columns", [80, 30])
def test_the_line_of_a_training_never_wraps(columns):
    frames = [frame.strip() for frame in in_terminal(TRAINING, columns).decode().splitlines()]
    assert max(map(len, frames)) <= columns
    assert any(frame.startswith("validate 120000/200000 (60%)") for frame in frames)
    whole = "train    120000/200000 (60%)  loss 12.346  WER 104.3 %  0.247 clips/s  2880:00:00 left"
    assert frames[-1].startswith(whole[: columns - 1].rstrip())


def test_a_log_gets_the_line_of_a_training_at_each_validation(capsys):
    exec(TRAINING, {})
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split()[0] for line in said.splitlines()] == ["train", "validate", "train"]
    assert said.splitlines()[-1].endswith(" left")
