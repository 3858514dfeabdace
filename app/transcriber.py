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
from functools import partial
from pathlib import Path
from typing import TypeVar

from app.models import Models
from app.turns import Turns
from stages.asr.model import SpeechModel
from stages.asr.recording import Recording, open_recording
from stages.asr.transcription import Segment, transcribe
from stages.params import App
from stages.runtime.errors import UserError

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

    step: str = "loading"  # waiting | downloading | loading | transcribing
    ahead: int = 0  # who come first while it waits
    wait_seconds: float = 0.0  # about as long
    downloaded: float = 0.0  # share of the video's audio
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

    def transcribe(self, names: list[str], source: Path | str, client: str = "") -> Iterator[TranscriptionProgress]:
        """Transcribe a recording, or a video by its address (str), with these models at once, when it is its turn.

        client: the address of whoever asks. Raises UserError where a model, the video or the recording is unavailable,
        QueueFullError, and OvertimeError.
        """
        progress = TranscriptionProgress(segments=[[] for _ in names])
        turn = self.turns.join(client)
        try:
            while ahead := self.turns.ahead(turn):
                progress.step, progress.ahead, progress.wait_seconds = "waiting", ahead, self.turns.seconds(ahead)
                yield progress
                time.sleep(POLL_SECONDS)
            yield from self.transcribe_now(names, source, progress)
        finally:
            self.turns.leave(turn)

    def transcribe_now(
        self, names: list[str], source: Path | str, progress: TranscriptionProgress
    ) -> Iterator[TranscriptionProgress]:
        deadline = time.monotonic() + self.settings.timeout_seconds
        folder = Path(tempfile.mkdtemp(prefix="viska-video-"))
        steps = self.steps(names, source, folder, progress)
        try:
            for _ in steps:
                if time.monotonic() > deadline:
                    raise OvertimeError(self.settings.timeout_seconds)
                yield progress
        finally:
            steps.close()
            shutil.rmtree(folder, ignore_errors=True)

    def steps(self, names: list[str], source: Path | str, folder: Path, progress: TranscriptionProgress) -> Steps[None]:
        """What ``transcribe`` does; every step writes how far it is into ``progress``."""
        if isinstance(source, str):
            progress.step = "downloading"
            source = yield from self.download(source, folder, progress)
        progress.step = "loading"
        models = []
        for name in names:
            model = yield from in_thread(partial(self.models.load, name))
            models.append(model)
        progress.step = "transcribing"
        yield from transcribe_in_turn(models, source, self.settings.max_seconds, progress)

    def download(self, url: str, folder: Path, progress: TranscriptionProgress) -> Steps[Path]:
        """A video's audio; where nobody is waiting any more, the download ends at its next piece and cleans up."""
        abandoned = threading.Event()

        def report(share: float) -> None:
            progress.downloaded = share
            if abandoned.is_set():
                raise UserError("nobody is waiting for this video any more")

        def fetch() -> Path:
            limits = self.settings.max_seconds, self.settings.max_megabytes * MEGABYTE, self.settings.timeout_seconds
            try:
                return self.fetch_audio(url, folder, *limits, report)
            finally:
                if abandoned.is_set():
                    shutil.rmtree(folder, ignore_errors=True)

        try:
            return (yield from in_thread(fetch))
        finally:
            abandoned.set()


def in_thread(work: Callable[[], T]) -> Steps[T]:
    """Do something in a thread of its own, with a step every POLL_SECONDS until it is done; returns what it gives."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while wait([future], POLL_SECONDS).not_done:
        yield
    return future.result()


def transcribe_in_turn(
    models: list[SpeechModel], path: Path, max_seconds: float, progress: TranscriptionProgress
) -> Steps[None]:
    """Each model reads the recording for itself; the one that is behind goes on, so that the texts grow together."""
    with ExitStack() as stack:
        recordings = [stack.enter_context(open_recording(path, max_seconds)) for _ in models]
        streams = [segment_stream(*pair) for pair in zip(models, recordings, strict=True)]
        for stream in streams:
            stack.callback(stream.close)
        progress.total_seconds = recordings[0].seconds
        seconds = [0.0] * len(streams)
        running = set(range(len(streams)))
        while running:
            turn = min(running, key=seconds.__getitem__)
            step = next(streams[turn], None)
            if step is None:
                running.remove(turn)
                continue
            seconds[turn], segment = step
            progress.seconds = min(seconds)
            if segment:
                progress.segments[turn].append(segment)
            yield


def segment_stream(model: SpeechModel, recording: Recording) -> Generator[tuple[float, Segment | None], None, None]:
    """What ``transcribe`` gives of a recording, as a generator, which can be closed."""
    yield from transcribe(model, recording.blocks())
