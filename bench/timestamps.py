"""``python -m bench.timestamps``: how far are a model's timestamps from where the demo's detector hears speech?

Each test clip, after half a second of silence, is decoded with timestamps; its first start and its last end stand
against those of the detector on the clip's own audio (data/raw must be there).
"""

from pathlib import Path

import click
import numpy as np
import torch

from stages.asr.audio import read_audio
from stages.asr.clips import read_clips
from stages.asr.decoding import context_frames, greedy_search, token_limit
from stages.asr.mel import SAMPLE_RATE, log_mel, pad_or_trim
from stages.asr.model import SpeechModel, load_model
from stages.asr.timestamps import read_timestamps
from stages.asr.vad import CHUNK_SAMPLES, SpeechSegmenter, VadOptions

LEAD = 0.5  # seconds
DETECTOR = VadOptions(speech_pad_ms=0, min_silence_duration_ms=500)


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test")
@click.option("--clips", default=100, show_default=True)
def main(models: tuple[Path, ...], raw: Path, clips: int) -> None:
    """Median errors of each model (models/tuned without an argument), and how often it gives timestamps."""
    audio = [read_audio(raw / "audio" / clip.audio, SAMPLE_RATE) for clip in read_clips(raw)[:clips]]
    heard = [(samples, detect(samples)) for samples in audio]
    heard = [(samples, bounds) for samples, bounds in heard if bounds]
    for folder in models or (Path("models/tuned"),):
        model = load_model(folder)
        found = [(stamped_bounds(model, samples), bounds) for samples, bounds in heard]
        errors = np.array([np.abs(np.subtract(own, bounds)) for own, bounds in found if own and bounds])
        start, end = np.median(errors, axis=0) if len(errors) else (np.nan, np.nan)
        click.echo(
            f"{folder}: median error of the start {start:.2f} s, of the end {end:.2f} s;"
            f" {len(errors)} of {len(found)} clips have timestamps"
        )


def detect(samples: np.ndarray) -> tuple[float, float] | None:
    """Where the detector hears the first speech begin and the last end, in seconds."""
    segmenter = SpeechSegmenter(DETECTOR)
    starts = range(0, len(samples), CHUNK_SAMPLES)
    segments = [found for at in starts for found in segmenter.feed(samples[at : at + CHUNK_SAMPLES])]
    segments += segmenter.flush()
    if not segments:
        return None
    start, last = segments[-1]
    return segments[0][0], start + len(last) / SAMPLE_RATE


def stamped_bounds(model: SpeechModel, samples: np.ndarray) -> tuple[float, float] | None:
    """The same by the model's timestamps, of the clip after a lead that is taken off again."""
    led = np.concatenate([np.zeros(round(LEAD * SAMPLE_RATE)), samples])
    mel = log_mel(led, model.whisper.config.num_mel_bins).astype(np.float32)
    mels = torch.from_numpy(pad_or_trim(mel, context_frames(model, mel.shape[1])))[None]
    (row,) = greedy_search(model, mels, token_limit(mel.shape[1]), timestamps=True)
    pieces = read_timestamps(model, row)
    return (pieces[0].start - LEAD, pieces[-1].end - LEAD) if pieces else None


if __name__ == "__main__":
    main()
