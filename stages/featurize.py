"""One split of raw clips -> zipped log-mel shards."""

import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from stages.asr.audio import AudioError, read_audio
from stages.asr.clips import Clip, Drop, read_clips, write_rows
from stages.asr.mel import SAMPLE_RATE, log_mel
from stages.asr.shards import Entry, encode, write_shard
from stages.params import Featurize, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json
from stages.runtime.pool import spread
from stages.runtime.progress import ProgressBar

CHUNK = 32  # clips a task: enough to hide the cost of handing it over


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option("--clips", type=click.Path(path_type=Path), required=True, help="Folder of one split's raw clips.")
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Folder for the zips.")
@click.option("--details", type=click.Path(path_type=Path), required=True, help="File for the counts.")
def main(params: Path, clips: Path, shards: Path, details: Path) -> None:
    """Turn one split's audio into log-mel shards."""
    values = load_params(params)
    counts = featurize(values.featurize, clips, shards, details, values.compute.processes)
    click.echo(f"{counts['clips']} clips, {counts['bytes'] / 1e6:.1f} MB in {shards}")


def featurize(settings: Featurize, raw: Path, folder: Path, details: Path, processes: int | None) -> dict:
    """Write the shards of one split; returns the counts that ``details`` holds.

    What cannot be decoded or lasts too long is listed in ``dropped.tsv`` beside the shards and counted by reason.
    Raises UserError where nothing is left.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clips = read_clips(raw)
    rows, drops, written, seconds = [], [], 0, 0.0
    for result in ProgressBar(features(settings, raw, clips, processes), total=len(clips), unit="clip", desc=raw.name):
        if isinstance(result, Drop):
            drops.append(result)
            continue
        rows.append(result)
        seconds += result[0].seconds
        if len(rows) == settings.clips_per_shard:
            written += save(settings, folder, rows, written)
    written += save(settings, folder, rows, written)
    write_rows(folder / "dropped.tsv", Drop, drops)
    if not written:
        raise UserError(f"no clip of {raw} is left; {folder / 'dropped.tsv'} says why")
    counts = {
        "clips": written,
        "seconds": round(seconds, 2),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.zip")),
        "dropped": dict(sorted(Counter(drop.reason for drop in drops).items())),
    }
    write_json(details, counts)
    return counts


def save(settings: Featurize, folder: Path, rows: list[tuple[Entry, bytes]], written: int) -> int:
    """Write the collected clips as the next shard and forget them; returns how many there were."""
    if rows:
        write_shard(folder / f"{written // settings.clips_per_shard:05}.zip", settings.dtype, settings.n_mels, rows)
    count = len(rows)
    rows.clear()
    return count


def features(settings: Featurize, raw: Path, clips: list[Clip], processes: int | None) -> Iterator:
    """An (Entry, bytes) or a Drop for each clip, in order."""
    chunks = (clips[start : start + CHUNK] for start in range(0, len(clips), CHUNK))
    for results in spread(partial(features_of_chunk, settings, raw), chunks, processes):
        yield from results


def features_of_chunk(settings: Featurize, raw: Path, clips: list[Clip]) -> list:
    return [features_of_clip(settings, raw, clip) for clip in clips]


def features_of_clip(settings: Featurize, raw: Path, clip: Clip) -> tuple[Entry, bytes] | Drop:
    """Decode, transform and pack one clip."""
    try:
        samples = read_audio(raw / "audio" / clip.audio, SAMPLE_RATE)
    except AudioError as error:
        return Drop(raw.name, clip.id, "unreadable", str(error))
    seconds = len(samples) / SAMPLE_RATE
    if not len(samples):
        return Drop(raw.name, clip.id, "empty", "no samples")
    if seconds > settings.max_seconds:
        return Drop(raw.name, clip.id, "too long", f"{seconds:.1f} s, featurize.max_seconds is {settings.max_seconds}")
    mel = log_mel(samples, settings.n_mels)
    data, peak = encode(mel, settings.dtype)
    return Entry(clip.id, clip.text, clip.speaker, clip.known_speaker, round(seconds, 3), mel.shape[1], peak), data
