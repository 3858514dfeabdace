"""From a recording or a video's address to text, by one model or two, step by step so that it can be shown and stopped.

Whoever iterates may close the iterator at any step: it returns at once, and what runs in a thread ends before its next
token or piece of a download; then files are closed, and nothing is left behind.
"""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from app.models import Models
from app.turns import Turns
from stages.asr.recording import open_recording
from stages.asr.segments import Segment
from stages.params import App
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from stages.asr.decoding import Check
    from stages.asr.model import SpeechModel

T = TypeVar("T")
Steps = Generator[None, None, T]
FetchAudio = Callable[[str, Path, float, int, float, Callable[[float], None]], Path]  # as video.fetch_audio
POLL_SECONDS = 0.1  # between two looks at what runs in a thread
MEGABYTE = 1_000_000


class OvertimeError(UserError):
    """A transcription that took longer than it may."""

    def __init__(self, seconds: float):
        super().__init__(f"it took longer than app.timeout_seconds, {seconds} s: cut the recording into parts")
        self.seconds = seconds


@dataclass
class TranscriptionProgress:
    """How far it has come: one object that changes from step to step."""

    step: str = "loading"  # waiting | downloading | fetching | loading | transcribing
    ahead: int = 0  # who come first while it waits
    wait_seconds: float = 0.0  # about as long
    downloaded: float = 0.0  # share of the video's audio, or of the model
    seconds: float = 0.0  # of the recording, transcribed by every model
    total_seconds: float | None = None  # where the recording says
    segments: list[list[Segment]] = field(default_factory=list)  # one list a model


@dataclass(frozen=True)
class Transcriber:
    """The models, the limits, and the way to a video's audio."""

    models: Models
    settings: App
    fetch_audio: FetchAudio
    turns: Turns

    def transcribe(
        self, names: list[str], source: Path | str, client: str = ""
    ) -> Generator[TranscriptionProgress, None, None]:
        """Transcribe a recording, or a video by its address (str), with these models at once, when it is its turn.

        client: the address of whoever asks. Raises UserError where a model, the video or the recording is unavailable,
        QueueFullError, and OvertimeError.
        """
        progress = TranscriptionProgress(segments=[[] for _ in names])
        turn, worker, left = self.turns.join(client), Worker(), ExitStack()
        left.callback(self.turns.leave, turn)
        try:
            while ahead := self.turns.ahead(turn):
                progress.step, progress.ahead, progress.wait_seconds = "waiting", ahead, self.turns.seconds(ahead)
                yield progress
                time.sleep(POLL_SECONDS)
            deadline = time.monotonic() + self.settings.timeout_seconds
            folder = Path(left.enter_context(TemporaryDirectory(prefix="viska-video-", ignore_cleanup_errors=True)))
            for _ in self.steps(names, source, folder, progress, worker):
                if time.monotonic() > deadline:
                    raise OvertimeError(self.settings.timeout_seconds)
                yield progress
        finally:
            if progress.step == "downloading":  # which may wait for its host some 15 s
                self.turns.abandon(turn)
            worker.abandon(left.close)  # what it is at may last a moment, for which the turn is held

    def steps(
        self, names: list[str], source: Path | str, folder: Path, progress: TranscriptionProgress, worker: "Worker"
    ) -> Steps[None]:
        """What ``transcribe`` does; every step writes how far it is into ``progress``."""
        if isinstance(source, str):
            progress.step = "downloading"
            source = yield from worker.run(partial(self.download, source, folder, progress, worker.check))
        models = []
        for name in names:
            model = yield from self.load(name, progress)
            models.append(model)
        progress.step = "transcribing"
        limit = self.settings.max_seconds
        yield from worker.run(partial(transcribe_in_turn, models, source, limit, progress, worker.check))

    def load(self, name: str, progress: TranscriptionProgress) -> "Steps[SpeechModel]":
        """A version's model; its loading goes on where nobody waits any more, for whoever comes next."""
        steps = Worker().run(partial(self.models.load, name))
        while True:
            try:
                next(steps)
            except StopIteration as done:
                model: SpeechModel = done.value
                return model
            share = self.models.fetched.get(name, 1.0)
            progress.step, progress.downloaded = "loading" if share == 1 else "fetching", share
            yield

    def download(self, url: str, folder: Path, progress: TranscriptionProgress, check: "Check") -> Path:
        """A video's audio."""

        def report(share: float) -> None:
            progress.downloaded = share
            check()

        limits = self.settings.max_seconds, self.settings.max_megabytes * MEGABYTE, self.settings.timeout_seconds
        return self.fetch_audio(url, folder, *limits, report)


class AbandonedError(Exception):
    """Nobody is waiting any more for what a thread is doing."""


class Worker:
    """Does one thing after the other in threads of their own, each until it is done or finds that it is abandoned."""

    def __init__(self) -> None:
        self.abandoned = threading.Event()
        self.future: Future[Any] = Future()
        self.future.set_result(None)

    def check(self) -> None:
        """To be called by what it does, now and then; raises AbandonedError."""
        if self.abandoned.is_set():
            raise AbandonedError

    def run(self, work: Callable[[], T]) -> Steps[T]:
        """Do something, with a step at once and every POLL_SECONDS until it is done; returns what it gives."""
        self.future = future = Future[T]()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        yield
        while wait([future], POLL_SECONDS).not_done:
            yield
        return future.result()

    def abandon(self, then: Callable[[], None]) -> None:
        """Begin nothing more and return at once; ``then`` is called when what was begun has ended."""
        self.abandoned.set()
        self.future.add_done_callback(lambda _: then())


def transcribe_in_turn(
    models: "list[SpeechModel]", path: Path, max_seconds: float, progress: TranscriptionProgress, check: "Check"
) -> None:
    """Each model reads the recording for itself; the one that is behind goes on, so that the texts grow together."""
    from stages.asr.transcription import transcribe

    with ExitStack() as stack:
        recordings = [stack.enter_context(open_recording(path, max_seconds)) for _ in models]
        streams = [
            transcribe(model, recording.blocks(), check=check)
            for model, recording in zip(models, recordings, strict=True)
        ]
        progress.total_seconds = recordings[0].seconds
        seconds = [0.0] * len(streams)
        running = set(range(len(streams)))
        while running:
            check()
            turn = min(running, key=seconds.__getitem__)
            step = next(streams[turn], None)
            if step is None:
                running.remove(turn)
                continue
            seconds[turn], segment = step
            progress.seconds = min(seconds)
            if segment:
                progress.segments[turn].append(segment)
