"""What was said and what was heard, word by word, and how it sounded."""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile

from stages.asr.audio import AudioError, read_audio
from stages.asr.clips import read_clips
from stages.asr.mel import SAMPLE_RATE
from stages.asr.text import normalise
from stages.runtime.errors import UserError
from stages.runtime.progress import ProgressBar
from tools.compare.transcripts import System, TestSet

MOST = 2_000  # sentences on a page, so that a browser stays quick
MOST_WORDS = 50_000  # in all alignments: an edit takes some 120 bytes
MOST_HEARD = 200  # of them with audio
AUDIO_BYTES = 7 * 2**20  # of all audio as text: with Plotly's 5 MB and the sentences below 20 MB
COMPRESSION = 0.8  # of libsndfile's scale from 0 to 1: about 34 kbit/s of speech at 16 kHz


@dataclass(frozen=True)
class Piece:
    """A word that was said, "" where none was, and what was heard in its place; kind: equal, or jiwer's of an edit."""

    kind: str
    said: str
    heard: str


@dataclass(frozen=True)
class Alignment:
    """What one system heard of a sentence; edits: its word errors."""

    pieces: list[Piece]
    heard: str
    edits: int


@dataclass(frozen=True)
class Spoken:
    """A clip of the test set, its texts normalised; alignments: of each system; audio: a data URI, or ""."""

    clip: str
    speaker: str
    seconds: float | None
    reference: str
    alignments: list[Alignment]
    audio: str = ""

    @property
    def errors(self) -> int:
        """Of the last system."""
        return self.alignments[-1].edits

    @property
    def change(self) -> int:
        """Word errors of the last system less those of the first."""
        return self.errors - self.alignments[0].edits


def align(references: list[str], hypotheses: list[str]) -> list[Alignment]:
    """Minimal word edits of each sentence, as scores count them; texts are normalised, references hold words."""
    output = jiwer.process_words(references, hypotheses)
    found = []
    for said, heard, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pieces: list[Piece] = []
        for chunk in chunks:
            left, right = said[chunk.ref_start_idx : chunk.ref_end_idx], heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            size = max(len(left), len(right))
            pairs = zip(left or [""] * size, right or [""] * size, strict=True)
            pieces += [Piece(chunk.type, *pair) for pair in pairs]
        found.append(Alignment(pieces, " ".join(heard), sum(piece.kind != "equal" for piece in pieces)))
    return found


def spoken_clips(systems: Sequence[System], test: TestSet) -> list[Spoken]:
    """The whole test set, those clips first of which the last system has most wrong."""
    heard = [align(test.references, system.hypotheses) for system in systems]
    clips = [
        Spoken(
            clip,
            test.speakers[at] if test.speakers else "",
            test.seconds[at] if test.seconds else None,
            test.references[at],
            [alignments[at] for alignments in heard],
        )
        for at, clip in enumerate(test.clips)
    ]
    return sorted(clips, key=lambda clip: (-clip.errors, -abs(clip.change), clip.clip))


def fitting(clips: Sequence[Spoken]) -> list[Spoken]:
    """As many of the first as a page holds."""
    words = itertools.accumulate(sum(len(one.pieces) for one in clip.alignments) for clip in clips)
    return [clip for clip, total in zip(clips[:MOST], words, strict=False) if total <= MOST_WORDS]


def raw_audio(folder: Path, clips: Sequence[Spoken]) -> dict[str, str]:
    """Audio by clip, as data URIs, of as many as a page holds, in the order given: mono mp3, which browsers play.

    folder: the test split as download leaves it, which no revision keeps: only clips whose text is still the same are
    taken. Empty where there is no such folder.
    """
    try:
        raw = {clip.id: clip for clip in read_clips(folder)}
    except UserError:
        return {}
    found: dict[str, str] = {}
    left = AUDIO_BYTES
    wanted = [clip for clip in clips if clip.clip in raw and normalise(raw[clip.clip].text) == clip.reference]
    for clip in ProgressBar(wanted[:MOST_HEARD], unit="clip", desc="audio", leave=False):
        try:
            samples = read_audio(folder / "audio" / raw[clip.clip].audio, SAMPLE_RATE)
        except (AudioError, OSError):
            continue  # a page without one clip's sound is better than none
        uri = encode(samples)
        left -= len(uri)
        if left < 0:
            break
        found[clip.clip] = uri
    return found


def encode(samples: np.ndarray) -> str:
    """Speech, (n_samples,) float32 at 16 kHz, as a data URI."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3", compression_level=COMPRESSION, bitrate_mode="VARIABLE")
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
