"""What workers are given to do; they import this, so it imports little."""

import contextlib
import os
import signal
from pathlib import Path

from stages.asr.clips import Clip


def killing(place: Path, deaths: int, function, clip: Clip):
    """The same as function, but a process that gets the clip in the middle kills itself, so many times."""
    if clip.id == "c040":
        for number in range(deaths):
            with contextlib.suppress(FileExistsError):
                (place / f"death-{number}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
    return function(clip)
