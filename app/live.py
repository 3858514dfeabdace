"""Text while somebody still speaks: pieces of audio come in, and what has been said so far goes out.

What comes before a pause is settled, and what a whole recording would give; what is being said is heard anew each time.
"""

import base64
import binascii
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import soxr

from app.models import Models
from app.turns import AT_ONCE, OWN_COMPUTER, QueueFullError, Turns
from stages.asr.audio import RATES
from stages.asr.mel import FRAMES_PER_SECOND, MAX_SECONDS, SAMPLE_RATE
from stages.asr.segments import Segment
from stages.asr.vad import CHUNK_SAMPLES, SpeechSegmenter, VadOptions
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from stages.asr.model import SpeechModel

SPEAKERS = 8  # who may speak at once
SPEAKERS_OF_ONE = 2  # of one visitor
SILENT_SECONDS = 30.0  # after which nobody is taken to speak any more


class LiveTranscription:
    """One recording that goes on. rate: of its samples, in Hz."""

    def __init__(self, model: "SpeechModel", rate: int):
        self.model, self.settled = model, list[Segment]()
        self.segmenter = SpeechSegmenter(VadOptions().within(model.window / FRAMES_PER_SECOND))
        self.rest = np.zeros(0, np.float32)
        self.resampler = None  # as ``Recording`` has it
        if rate != SAMPLE_RATE:
            self.resampler = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32")

    def feed(self, samples: np.ndarray, last: bool = False) -> None:
        """Hear on: (n,) float32. last: nothing follows; then ``settled`` is what ``transcribe`` gives of the whole."""
        from stages.asr.transcription import transcribe_windows  # torch, which the page does not wait for

        if self.resampler:
            samples = self.resampler.resample_chunk(samples, last=last)
        self.rest = np.concatenate([self.rest, samples])
        whole = len(self.rest) if last else len(self.rest) // CHUNK_SAMPLES * CHUNK_SAMPLES
        for start in range(0, whole, CHUNK_SAMPLES):
            chunk = self.rest[start : min(start + CHUNK_SAMPLES, whole)]
            self.settled += transcribe_windows(self.model, self.segmenter.feed(chunk))
        self.rest = self.rest[whole:]
        if last:
            self.settled += transcribe_windows(self.model, self.segmenter.flush())

    def hear_on(self) -> str:
        """What is being said, as far as it can be heard."""
        from stages.asr.transcription import transcribe_window

        window = self.segmenter.under_way()
        return "" if window is None else transcribe_window(self.model, window).text


@dataclass
class Speaker:
    """Whoever speaks: one piece of audio at a time, the first of which has the model loaded."""

    client: str
    rate: int
    transcription: LiveTranscription | None = None
    heard: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class LiveSpeakers:
    """All who speak now, by a random id; safe to use from several threads. turns: of those who wait for a file's text.

    Whoever waits comes first: while the queue is not empty, nobody begins to speak here, and texts come at the end.
    """

    models: Models
    turns: Turns
    max_seconds: float
    speakers: dict[str, Speaker] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE))

    def hear(self, id: str, audio: str, rate: int, model: str, last: bool, client: str) -> dict[str, str]:
        """Take a piece of audio, base64 of 16-bit samples of one channel; the text that is settled, and the newest.

        id: "" of whoever begins, who gets one. Raises UserError, and QueueFullError where too many speak.
        """
        samples = read_samples(audio)
        if id:
            speaker = self.find(id, client)
        else:
            id, speaker = self.begin(rate, client)
        if not speaker.lock.acquire(blocking=False):  # whoever waited here would hold one of the server's threads
            raise UserError("one piece of audio at a time")
        try:
            return {"id": id, **self.hear_piece(speaker, samples, model, last)}
        except BaseException:
            last = True
            raise
        finally:
            speaker.lock.release()
            if last:
                with self.lock:
                    self.speakers.pop(id, None)

    def hear_piece(self, speaker: Speaker, samples: np.ndarray, model: str, last: bool) -> dict[str, str]:
        seconds = len(samples) / speaker.rate
        live = speaker.transcription or LiveTranscription(self.models.load(model), speaker.rate)
        if seconds > MAX_SECONDS or live.segmenter.seconds + seconds > self.max_seconds:
            raise UserError("this is more audio than may come at once, or than a recording may last")
        speaker.transcription, speaker.heard = live, time.monotonic()
        with self.slots:
            live.feed(samples, last)
            newest = "" if last else live.hear_on()
        return {"settled": " ".join(each.text for each in live.settled), "newest": newest}

    def find(self, id: str, client: str) -> Speaker:
        with self.lock:
            speaker = self.speakers.get(id)
        if speaker is None or speaker.client != client:
            raise UserError("nobody speaks under this id: begin anew")
        return speaker

    def begin(self, rate: int, client: str) -> tuple[str, Speaker]:
        """A new speaker, who has a place before there is a model to load."""
        if rate not in RATES:
            raise UserError(f"audio may have {RATES.start} to {RATES.stop - 1} samples a second")
        if self.turns.waiting():
            raise QueueFullError
        id, speaker, now = secrets.token_hex(8), Speaker(client, rate), time.monotonic()
        with self.lock:
            for old in [old for old, each in self.speakers.items() if now - each.heard > SILENT_SECONDS]:
                del self.speakers[old]
            theirs = sum(each.client == client for each in self.speakers.values())
            if len(self.speakers) >= SPEAKERS or (client not in OWN_COMPUTER and theirs >= SPEAKERS_OF_ONE):
                raise QueueFullError
            self.speakers[id] = speaker
        return id, speaker


def read_samples(audio: str) -> np.ndarray:
    """(n,) float32 of base64 of 16-bit samples, the lower byte first; raises UserError."""
    try:
        data = base64.b64decode(audio, validate=True)
        return np.frombuffer(data, "<i2").astype(np.float32) / 2**15
    except (binascii.Error, ValueError):
        raise UserError("the audio is no base64 of 16-bit samples") from None
