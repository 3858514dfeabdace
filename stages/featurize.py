"""One split of raw clips, or all probes -> zipped log-mel shards.

The features of each audio file are kept by its bytes, so that a later run decodes only what is new: of more clips, of
other tables, with other texts. Where they came from shows in no byte.
"""

import hashlib
import json
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import soundfile

from stages.asr.audio import AudioError, TooLongError, read_audio
from stages.asr.clips import Clip, Drop, iterate_clips, write_rows
from stages.asr.mel import SAMPLE_RATE, log_mel
from stages.asr.probes import holds_probes, read_probes, write_probes
from stages.asr.shards import DTYPES, Entry, pack_mel, write_shard
from stages.params import Featurize, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest, repository, write_json
from stages.runtime.imports import reached_modules
from stages.runtime.packs import Packs
from stages.runtime.pool import Workers, parallel_map
from stages.runtime.progress import ProgressBar, note, warn

LIBRARIES = ("av", "numpy", "soundfile", "soxr")  # whose versions may shape features
MEASURES = struct.Struct("<dd")  # of what is kept: seconds and peak; the packed log-mel follows


class Features(NamedTuple):
    """A clip as a shard takes it; digest: of its audio file, where features are kept; taken: from those kept before."""

    entry: Entry
    data: bytes
    digest: bytes
    taken: bool


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option(
    "--clips", type=click.Path(path_type=Path), required=True, help="Folder of a split's raw clips, or of probes."
)
@click.option("--kept", type=click.Path(path_type=Path), help="Store for later runs, below DVC_ROOT; no out.")
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Folder for the zips.")
@click.option("--details", type=click.Path(path_type=Path), required=True, help="File for the counts.")
def main(params: Path, clips: Path, kept: Path | None, shards: Path, details: Path) -> None:
    """Turn a split's audio, or that of each probe, into log-mel shards."""
    values = load_params(params)
    workers = Workers(values.compute.processes, values.compute.backend, values.compute.address)
    packs, most = None, round(values.compute.kept_gigabytes * 1e9)
    if kept and most:
        packs = Packs(repository() / kept / describe_features(values.featurize), most)
    if holds_probes(clips):
        found = featurize_probes(values.featurize, clips, shards, details, workers, packs)
        click.echo(f"{len(found)} probes in {shards}")
        return
    counts = featurize(values.featurize, clips, shards, details, workers, packs)
    click.echo(f"{counts['clips']} clips, {counts['bytes'] / 1e6:.1f} MB in {shards}")


def describe_features(settings: Featurize) -> str:
    """16 hex digits of all but the audio that shapes a clip's features: settings, code, libraries."""
    code = reached_modules("stages.featurize", frozenset({"stages.params"}))  # whose values count instead
    parts = {
        "params": settings.model_dump(mode="json", exclude={"clips_per_shard"}),
        "code": {name: file_digest(path) for name, path in code.items()},
        "versions": {name: version(name) for name in LIBRARIES} | {"libsndfile": soundfile.__libsndfile_version__},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def featurize_probes(
    settings: Featurize,
    raw: Path,
    folder: Path,
    details: Path,
    workers: Workers | int | None,
    kept: Packs | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the shards of each probe below ``folder``, and the table of probes; returns the counts by probe.

    kept: as of ``write_features``. Raises UserError where nothing is left of one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    probes = read_probes(raw)
    counts = {
        probe.name: write_features(settings, raw / probe.name, folder / probe.name, workers, kept) for probe in probes
    }
    write_probes(folder, probes)
    write_json(details, counts)
    return counts


def featurize(
    settings: Featurize,
    raw: Path,
    folder: Path,
    details: Path,
    workers: Workers | int | None,
    kept: Packs | None = None,
) -> dict[str, Any]:
    """Write the shards of one split; returns the counts that ``details`` holds.

    kept: as of ``write_features``. Raises UserError where none is left.
    """
    counts = write_features(settings, raw, folder, workers, kept)
    write_json(details, counts)
    return counts


def write_features(
    settings: Featurize, raw: Path, folder: Path, workers: Workers | int | None, kept: Packs | None
) -> dict[str, Any]:
    """Write the shards of a folder of clips; returns how many clips, seconds and bytes, and what was dropped.

    What cannot be decoded or lasts too long is listed in ``dropped.tsv`` beside the shards and counted by reason.
    kept: features that are taken instead of decoding, and where new ones go. Memory does not grow with the clips.
    Raises UserError where nothing is left.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    n_clips = sum(1 for _ in iterate_clips(raw))
    results = parallel_map(
        partial(extract_features, settings, raw, kept),
        iterate_clips(raw),
        workers,
        doubtful=lambda result: isinstance(result, Drop),  # which a worker without the files would say of every clip
        proof=lambda result: result if isinstance(result, Drop) else (result.entry, result.data),
    )
    writer = ShardWriter(settings, folder, kept)
    drops = writer.write(ProgressBar(results, total=n_clips, unit="clip", desc=raw.name))
    write_rows(folder / "dropped.tsv", Drop, drops)
    if not writer.written:
        raise UserError(f"no clips of {raw} are left: {folder / 'dropped.tsv'} lists why")
    if writer.taken:
        note(f"{raw.name}: {writer.written:,} clips, {writer.taken:,} kept from before")
    return {
        "clips": writer.written,
        "seconds": round(writer.seconds, 2),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.zip")),
        "dropped": dict(sorted(writer.reasons.items())),
    }


class ShardWriter:
    """Features as shards in a folder, and new ones in packs beside. written: clips so far; taken: those not new."""

    def __init__(self, settings: Featurize, folder: Path, kept: Packs | None):
        self.settings, self.folder, self.kept = settings, folder, kept
        self.written, self.taken, self.seconds = 0, 0, 0.0
        self.reasons = Counter[str]()
        self.rows: list[Features] = []

    def write(self, results: Iterable[Features | Drop]) -> Iterator[Drop]:
        """Write what has features; yields what was dropped, each as it comes."""
        for result in results:
            if isinstance(result, Drop):
                self.reasons[result.reason] += 1
                yield result
                continue
            self.rows.append(result)
            self.seconds += result.entry.seconds
            if len(self.rows) == self.settings.clips_per_shard:
                self.write_shard()
        if self.rows:
            self.write_shard()

    def write_shard(self) -> None:
        """Write the collected clips as the next shard, keep what is new, and forget them."""
        path = self.folder / f"{self.written // self.settings.clips_per_shard:05}.zip"
        write_shard(path, self.settings.dtype, self.settings.n_mels, [(row.entry, row.data) for row in self.rows])
        self.keep([row for row in self.rows if not row.taken])
        self.written += len(self.rows)
        self.taken += sum(row.taken for row in self.rows)
        self.rows.clear()

    def keep(self, new: list[Features]) -> None:
        """Keep features for later runs; where that cannot be, this run goes on without."""
        if not self.kept or not new:
            return
        try:
            self.kept.keep((row.digest, MEASURES.pack(row.entry.seconds, row.entry.peak) + row.data) for row in new)
        except OSError as error:
            warn(f"{self.kept.folder} cannot be written ({error.strerror}): a later run decodes all these clips again")
            self.kept = None


def extract_features(settings: Featurize, raw: Path, kept: Packs | None, clip: Clip) -> Features | Drop:
    """A clip's features, those kept of the same audio, or else decoded, transformed and packed."""
    path = raw / "audio" / clip.audio
    if not path.is_file():
        return Drop(raw.name, clip.id, "missing", f"{path}: no such file")
    digest = bytes.fromhex(file_digest(path, "blake2b")) if kept else b""
    if found := kept and kept.find(digest):
        (seconds, peak), data = MEASURES.unpack_from(found), found[MEASURES.size :]
    else:
        try:
            samples = read_audio(path, SAMPLE_RATE, settings.max_seconds)
        except TooLongError as error:
            detail = f"{error.seconds:.1f} s, featurize.max_seconds is {settings.max_seconds}"
            return Drop(raw.name, clip.id, "too long", detail)
        except AudioError as error:
            return Drop(raw.name, clip.id, "corrupt", str(error))
        if not len(samples):
            return Drop(raw.name, clip.id, "empty", "no samples")
        seconds = round(len(samples) / SAMPLE_RATE, 3)
        data, peak = pack_mel(log_mel(samples, settings.n_mels), settings.dtype)
    n_frames = len(data) // (settings.n_mels * DTYPES[settings.dtype].itemsize)
    entry = Entry(clip.id, clip.text, clip.speaker, clip.known_speaker, seconds, n_frames, peak)
    return Features(entry, data, digest, bool(found))
