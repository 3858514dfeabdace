"""Progress as a terminal shows it, and as a log keeps it."""

import os
import pty
import subprocess
import sys
import termios

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


def test_a_terminal_gets_a_bar_that_overwrites_itself():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", STEPS], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait() == 0
    assert shown.count(b"\r") > 2 and b"2000/2000" in shown
