"""How far a long step has come: a bar in a terminal, a line now and then in a log or a pipe."""

import sys
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

LINE_EVERY = 30  # seconds between two lines where nobody watches


if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm  # is generic in its stubs alone


class ProgressBar(Bar):
    """tqdm's bar on stderr; where that is no terminal, whole lines that do not overwrite one another."""

    def __init__(self, *arguments: Any, **options: Any):
        if not sys.stderr.isatty():
            options = {"file": Lines(sys.stderr), "mininterval": LINE_EVERY, "maxinterval": LINE_EVERY} | options
        super().__init__(*arguments, **options)


class Lines:
    """A stream that turns the frames of a bar into lines, each once."""

    def __init__(self, stream: TextIO):
        self.stream, self.last = stream, ""
        self.encoding = getattr(stream, "encoding", None)  # decides whether tqdm draws with blocks or with signs

    def write(self, frame: str) -> int:
        line = frame.strip()
        if line and line != self.last:
            self.stream.write(line + "\n")
            self.last = line
        return len(frame)

    def flush(self) -> None:
        self.stream.flush()


def note(message: str) -> None:
    """A line on stderr, for whoever watches."""
    print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """The same, below a bar that may stand there."""
    note(f"\nwarning: {message}")
