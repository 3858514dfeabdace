"""``python -m bench.decoding``: does a transcript depend on how it is decoded?

One model over the test split: in batches as evaluate does, each clip alone, on the full window, and through
transformers' own ``pipeline``, which knows nothing of our code and reads the raw audio (data/raw must be there).
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from transformers import pipeline

from stages.asr.audio import read_audio
from stages.asr.clips import read_clips
from stages.asr.decoding import decode
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import load_model
from stages.asr.scoring import wer
from stages.asr.shards import Shards


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/tuned")
@click.option("--test", type=click.Path(path_type=Path), default="data/features/test")
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test")
def main(model: Path, test: Path, raw: Path) -> None:
    """Compare four ways to decode the test split."""
    speech, shards = load_model(model), Shards(test)
    references = [entry.text for entry in shards.entries]
    texts = {
        "in batches of 32": decode(speech, shards, 32),
        "each clip alone": decode(speech, shards, 1),
        "on the full window": decode(replace(speech, context="full"), shards, 32),
        "by pipeline()": by_pipeline(model, raw, [entry.id for entry in shards.entries]),
    }
    usual = texts["in batches of 32"]
    for name, heard in texts.items():
        changed = np.mean([one != other for one, other in zip(usual, heard, strict=True)])
        click.echo(f"{name:<20} WER {wer(references, heard):5.2f} %   texts that differ {100 * changed:4.1f} %")


def by_pipeline(model: Path, raw: Path, ids: list[str]) -> list[str]:
    clips = {clip.id: clip for clip in read_clips(raw)}
    recognise = pipeline("automatic-speech-recognition", model=str(model))
    audio = (read_audio(raw / "audio" / clips[name].audio, SAMPLE_RATE) for name in ids)
    return [recognise({"raw": samples, "sampling_rate": SAMPLE_RATE})["text"] for samples in audio]


if __name__ == "__main__":
    main()
