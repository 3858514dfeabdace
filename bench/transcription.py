"""``python -m bench.transcription``: how soon does text come, and is it the text that evaluate would get?

The test split's clips (data/raw must be there) are heard as the demo hears them, each alone, and joined to recordings
with pauses between them, over the faint noise of a quiet room.
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import psutil
import soundfile

from stages.asr.audio import read_audio
from stages.asr.clips import read_clips
from stages.asr.decoding import decode
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import SpeechModel, load_model
from stages.asr.recording import open_recording
from stages.asr.scoring import clip_edits, normal_errors, wer
from stages.asr.segments import Segment
from stages.asr.shards import Shards
from stages.asr.significance import percentile_interval, resampled_sums
from stages.asr.text import normalise
from stages.asr.transcription import transcribe

PAUSES = (0.3, 2.0)  # seconds
ROOM = 0.0003  # RMS of its noise: -70 dB of full scale


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/tuned")
@click.option("--test", type=click.Path(path_type=Path), default="data/features/test")
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test")
@click.option("--alone", is_flag=True, help="Only the clips, each alone: no recordings, no times.")
def main(model: Path, test: Path, raw: Path, alone: bool) -> None:
    """Time a short and a long recording, and compare transcribe's texts with decode's."""
    speech, shards = load_model(model), Shards(test)
    clips = {clip.id: clip for clip in read_clips(raw)}
    clips = [clips[entry.id] for entry in shards.entries]
    audio = [read_audio(raw / "audio" / clip.audio, SAMPLE_RATE) for clip in clips]
    texts, usual = [clip.text for clip in clips], decode(speech, shards, 32)
    click.echo(f"decode      WER {wer(texts, usual):5.2f} %   {len(clips)} clips")
    compare_alone(speech, texts, usual, audio)
    if not alone:
        compare_joined(speech, texts, usual, audio)


def compare_joined(speech: SpeechModel, texts: list[str], usual: list[str], audio: list[np.ndarray]) -> None:
    """The clips in recordings of 5 s and of 10 min: the time they take, and what the long one says."""
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.wav", Path(folder) / "long.wav"
        write_recording(short, audio, 5)
        said = write_recording(long, audio, 600)
        time_transcription(speech, short)  # warm
        for path in (short, long):
            before = psutil.Process().memory_info().rss
            segments, first, seconds, length = time_transcription(speech, path)
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            click.echo(
                f"{length:5.1f} s: first text after {first:.2f} s, all {len(segments)} segments after {seconds:.2f} s,"
                f" {length / seconds:.1f} times real time; {grown:.0f} MiB more memory"
            )
    joined = wer([" ".join(texts[:said])], [" ".join(segment.text for segment in segments)])
    times = times_text(joined, wer(texts[:said], usual[:said]))
    click.echo(f"joined      WER {joined:5.2f} %   {times}, {said} clips in {len(segments)} segments")


def write_recording(path: Path, audio: list[np.ndarray], seconds: float) -> int:
    """Write clips in turn with pauses until the recording is that long; returns how many whole ones it holds."""
    rng = np.random.default_rng(1)
    pieces, room = [], round(seconds * SAMPLE_RATE)
    for samples in audio:
        piece = np.pad(samples, (0, round(rng.uniform(*PAUSES) * SAMPLE_RATE)))
        if len(piece) > room:
            break
        pieces.append(piece)
        room -= len(piece)
    whole = np.pad(np.concatenate(pieces), (0, room))
    soundfile.write(path, whole + ROOM * rng.standard_normal(len(whole)), SAMPLE_RATE, "PCM_16")
    return len(pieces)


def time_transcription(model: SpeechModel, path: Path) -> tuple[list[Segment], float, float, float]:
    """A file's segments, the seconds until the first and until the end, and how many it lasts."""
    segments, first, started = [], float("nan"), time.perf_counter()
    with open_recording(path, 3600) as recording:
        for _, segment in transcribe(model, recording.blocks()):
            if segment:
                segments.append(segment)
                first = time.perf_counter() - started if len(segments) == 1 else first
    return segments, first, time.perf_counter() - started, soundfile.info(path).duration


def compare_alone(model: SpeechModel, texts: list[str], usual: list[str], audio: list[np.ndarray]) -> None:
    """Each clip as a recording of its own, against what decode heard."""
    runs = [[segment.text for _, segment in transcribe(model, [samples]) if segment] for samples in audio]
    heard = [" ".join(segments) for segments in runs]
    with_words = [at for at, text in enumerate(texts) if normalise(text)]
    said, *both = ([each[at] for at in with_words] for each in (texts, usual, heard))
    before, after = (normal_errors(said, each) for each in both)
    values = np.stack([clip_edits(before), clip_edits(after), before["words"]], axis=1)
    sums = resampled_sums(values, 2000, seed=1)
    low, high = percentile_interval(100 * (sums[:, 1] - sums[:, 0]) / sums[:, 2])
    changed = np.mean([one != other for one, other in zip(usual, heard, strict=True)])
    times = times_text(after["wer"], before["wer"])
    click.echo(
        f"transcribe  WER {100 * after['wer']:5.2f} %   {times} ({low:+.2f} to {high:+.2f} points),"
        f" texts that differ {100 * changed:.1f} %"
    )


def times_text(rate: float, usual: float) -> str:
    return f"{rate / usual:.2f} times decode's" if usual else "decode's is 0"


if __name__ == "__main__":
    main()
