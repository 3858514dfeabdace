"""``python -m bench.conditions``: does the model hear through changes to the sound itself?

``evaluate.conditions`` changes stored features, which costs little; this changes the test split's waveforms (data/raw
must be there), computes their features anew, and decodes them at the clips' own length.
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import soxr

from stages.asr.audio import read_audio
from stages.asr.clips import read_clips
from stages.asr.decoding import decode_mels
from stages.asr.mel import SAMPLE_RATE, log_mel
from stages.asr.model import load_model
from stages.asr.scoring import wer
from stages.asr.shards import Shards

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def lead(seconds: float) -> Change:
    return lambda samples, _: np.pad(samples, (round(seconds * SAMPLE_RATE), 0))


def cut(seconds: float) -> Change:
    return lambda samples, _: samples[round(seconds * SAMPLE_RATE) :]


def gain(factor: float) -> Change:
    return lambda samples, _: np.clip(factor * samples, -1, 1)


def noise(snr: float) -> Change:
    def add(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        level = np.sqrt((samples**2).mean()) * 10 ** (-snr / 20)
        return (samples + level * draw.standard_normal(len(samples))).astype(samples.dtype)

    return add


def speed(factor: float) -> Change:
    return lambda samples, _: soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE / factor)


CHANGES: dict[str, Change] = {
    "as it is": lambda samples, _: samples,
    "50 ms of silence before": lead(0.05),
    "400 ms of silence before": lead(0.4),
    "20 ms cut off": cut(0.02),
    "gain 0.1": gain(0.1),
    "gain 3, clipped": gain(3),
    "white noise at 20 dB": noise(20),
    "white noise at 10 dB": noise(10),
    "speed 0.9": speed(0.9),
    "speed 1.1": speed(1.1),
}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/tuned")
@click.option("--test", type=click.Path(path_type=Path), default="data/features/test")
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test")
@click.option("--clips", "most", type=int, default=400, help="Of the test split, the first ones.")
def main(model: Path, test: Path, raw: Path, most: int) -> None:
    """WER of the test clips under each change, in percent."""
    speech, shards = load_model(model), Shards(test)
    entries = shards.entries[:most]
    files = {clip.id: raw / "audio" / clip.audio for clip in read_clips(raw)}
    audio = [read_audio(files[entry.id], SAMPLE_RATE) for entry in entries]
    texts, usual = [entry.text for entry in entries], 0.0
    for name, change in CHANGES.items():
        draw = np.random.default_rng(1)
        mels = [log_mel(change(samples, draw), shards.n_mels).astype(np.float32) for samples in audio]
        rate = wer(texts, decode_mels(speech, [mel.shape[1] for mel in mels], mels.__getitem__, 32))
        usual = rate if name == "as it is" else usual
        click.echo(f"{name:25} {rate:6.2f} %  {rate - usual:+6.2f}")


if __name__ == "__main__":
    main()
