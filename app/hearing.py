"""From a recording or a video's address to text, by one model or two, step by step so that it can be shown and stopped.

Whoever iterates may close the iterator at any step; then files are closed, a download ends, and nothing is left behind.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from app import video
from app.models import Models
from stages.asr.model import SpeechModel
from stages.asr.recording import open_recording
from stages.asr.transcription import Segment, transcribe
from stages.params import App
from stages.runtime.errors import UserError

T = TypeVar("T")
Steps = Generator[None, None, T]
PAUSE = 0.1  # seconds between two looks at what runs beside
MEGABYTE = 1_000_000


class OvertimeError(UserError):
    """A transcription that took longer than it may."""

    def __init__(self, seconds: float):
        super().__init__(f"it took longer than app.timeout_seconds, {seconds} s: cut the recording into parts")
        self.seconds = seconds


@dataclass
class Progress:
    """How far it has come: one object that changes from step to step."""

    step: str = "loading"  # fetching | loading | hearing
    fetched: float = 0.0  # share of the video's sound
    heard: float = 0.0  # seconds, by every model
    total: float | None = None  # seconds, where the recording says
    segments: list[list[Segment]] = field(default_factory=list)  # one list a model


@dataclass(frozen=True)
class Listener:
    """What turns sound into text: the models, the bounds, and the way to a video's sound."""

    models: Models
    settings: App
    fetch: Callable = video.fetch

    def hear(self, names: list[str], source: Path | str) -> Iterator[Progress]:
        """Transcribe a recording, or a video by its address (str), with these models at once.

        Raises UserError where a model, the video or the recording cannot be had, and OvertimeError.
        """
        end = time.monotonic() + self.settings.timeout_seconds
        progress = Progress(segments=[[] for _ in names])
        folder = Path(tempfile.mkdtemp(prefix="viska-video-"))
        steps = self.steps(names, source, folder, progress)
        try:
            for _ in steps:
                if time.monotonic() > end:
                    raise OvertimeError(self.settings.timeout_seconds)
                yield progress
        finally:
            steps.close()
            shutil.rmtree(folder, ignore_errors=True)

    def steps(self, names: list[str], source: Path | str, folder: Path, progress: Progress) -> Steps[None]:
        """What ``hear`` does; every step leaves its mark in ``progress``."""
        if isinstance(source, str):
            progress.step = "fetching"
            source = yield from self.fetched(source, folder, progress)
        progress.step = "loading"
        models = []
        for name in names:
            model = yield from beside(lambda name=name: self.models.load(name))
            models.append(model)
        progress.step = "hearing"
        yield from in_turn(models, source, self.settings.max_seconds, progress)

    def fetched(self, url: str, folder: Path, progress: Progress) -> Steps[Path]:
        """A video's sound; where nobody waits any more, the download ends at its next piece and cleans up."""
        left = threading.Event()

        def look(share: float) -> None:
            progress.fetched = share
            if left.is_set():
                raise UserError("nobody waits for this video any more")

        def work() -> Path:
            bounds = self.settings.max_seconds, self.settings.max_megabytes * MEGABYTE, self.settings.timeout_seconds
            try:
                return self.fetch(url, folder, *bounds, look)
            finally:
                if left.is_set():
                    shutil.rmtree(folder, ignore_errors=True)

        try:
            return (yield from beside(work))
        finally:
            left.set()


def beside(work: Callable[[], T]) -> Steps[T]:
    """Do something in a thread of its own, with a step every PAUSE until it is done; returns what it gives."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while wait([future], PAUSE).not_done:
        yield
    return future.result()


def in_turn(models: list[SpeechModel], path: Path, max_seconds: float, progress: Progress) -> Steps[None]:
    """Each model reads the recording for itself; the one that is behind goes on, so that the texts grow together."""
    with ExitStack() as stack:
        recordings = [stack.enter_context(open_recording(path, max_seconds)) for _ in models]
        streams = [transcribe(*pair) for pair in zip(models, (each.blocks() for each in recordings), strict=True)]
        for stream in streams:
            stack.callback(stream.close)
        progress.total = recordings[0].seconds
        heard = [0.0] * len(streams)
        running = set(range(len(streams)))
        while running:
            turn = min(running, key=heard.__getitem__)
            step = next(streams[turn], None)
            if step is None:
                running.remove(turn)
                continue
            heard[turn], segment = step
            progress.heard = min(heard)
            if segment:
                progress.segments[turn].append(segment)
            yield
