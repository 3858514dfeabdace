"""One split of raw clips -> zipped log-mel shards."""

import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from stages.asr.audio import AudioError, TooLongError, read_audio
from stages.asr.clips import Clip, Drop, read_clips, write_rows
from stages.asr.mel import SAMPLE_RATE, log_mel
from stages.asr.shards import Entry, pack_mel, write_shard
from stages.params import Featurize, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json
from stages.runtime.pool import Workers, parallel_map
from stages.runtime.progress import ProgressBar

Features = tuple[Entry, bytes]  # of a clip, as a shard takes them


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option("--clips", type=click.Path(path_type=Path), required=True, help="Folder of one split's raw clips.")
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Folder for the zips.")
@click.option("--details", type=click.Path(path_type=Path), required=True, help="File for the counts.")
def main(params: Path, clips: Path, shards: Path, details: Path) -> None:
    """Turn one split's audio into log-mel shards."""
    values = load_params(params)
    workers = Workers(values.compute.processes, values.compute.backend, values.compute.address)
    counts = featurize(values.featurize, clips, shards, details, workers)
    click.echo(f"{counts['clips']} clips, {counts['bytes'] / 1e6:.1f} MB in {shards}")


def featurize(
    settings: Featurize, raw: Path, folder: Path, details: Path, workers: Workers | int | None
) -> dict[str, Any]:
    """Write the shards of one split; returns the counts that ``details`` holds.

    What cannot be decoded or lasts too long is listed in ``dropped.tsv`` beside the shards and counted by reason.
    Raises UserError where nothing is left.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clips = read_clips(raw)
    rows: list[Features] = []
    drops: list[Drop] = []
    written, seconds = 0, 0.0
    results = parallel_map(
        partial(extract_features, settings, raw),
        clips,
        workers,
        doubtful=lambda result: isinstance(result, Drop),  # which a worker without the files would say of every clip
    )
    for result in ProgressBar(results, total=len(clips), unit="clip", desc=raw.name):
        if isinstance(result, Drop):
            drops.append(result)
            continue
        rows.append(result)
        seconds += result[0].seconds
        if len(rows) == settings.clips_per_shard:
            written += write_next_shard(settings, folder, rows, written)
    written += write_next_shard(settings, folder, rows, written)
    write_rows(folder / "dropped.tsv", Drop, drops)
    if not written:
        raise UserError(f"no clips of {raw} are left: {folder / 'dropped.tsv'} lists why")
    counts = {
        "clips": written,
        "seconds": round(seconds, 2),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.zip")),
        "dropped": dict(sorted(Counter(drop.reason for drop in drops).items())),
    }
    write_json(details, counts)
    return counts


def write_next_shard(settings: Featurize, folder: Path, rows: list[Features], written: int) -> int:
    """Write the collected clips as the next shard and forget them; returns how many there were."""
    if rows:
        write_shard(folder / f"{written // settings.clips_per_shard:05}.zip", settings.dtype, settings.n_mels, rows)
    n_clips = len(rows)
    rows.clear()
    return n_clips


def extract_features(settings: Featurize, raw: Path, clip: Clip) -> Features | Drop:
    """Decode, transform and pack one clip."""
    path = raw / "audio" / clip.audio
    if not path.is_file():
        return Drop(raw.name, clip.id, "missing", f"{path}: no such file")
    try:
        samples = read_audio(path, SAMPLE_RATE, settings.max_seconds)
    except TooLongError as error:
        return Drop(
            raw.name, clip.id, "too long", f"{error.seconds:.1f} s, featurize.max_seconds is {settings.max_seconds}"
        )
    except AudioError as error:
        return Drop(raw.name, clip.id, "corrupt", str(error))
    seconds = len(samples) / SAMPLE_RATE
    if not len(samples):
        return Drop(raw.name, clip.id, "empty", "no samples")
    mel = log_mel(samples, settings.n_mels)
    data, peak = pack_mel(mel, settings.dtype)
    return Entry(clip.id, clip.text, clip.speaker, clip.known_speaker, round(seconds, 3), mel.shape[1], peak), data
