"""Corpora -> data/raw/{train,validation,test}, and probes below it: a clip list and the audio as it came."""

import difflib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop, write_clips, write_rows
from stages.asr.probes import Probe, write_probes
from stages.corpora.sources import PROBES, collect, count_shared, source_ids
from stages.params import Download, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json
from stages.runtime.progress import warn


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="Folder for the three splits.")
@click.option("--dropped", type=click.Path(path_type=Path), required=True, help="Table of what was left out.")
@click.option("--details", type=click.Path(path_type=Path), required=True, help="File for the counts.")
def main(params: Path, raw: Path, dropped: Path, details: Path) -> None:
    """Bring a corpus, or several, into the pipeline's own layout."""
    values = load_params(params)
    counts = download(values.download, raw, dropped, details, values.compute.processes or os.cpu_count() or 1)
    click.echo(", ".join(f"{counts[split]['clips']} {split}" for split in SPLITS) + f" clips in {raw}")


def download(settings: Download, raw: Path, dropped: Path, details: Path, processes: int) -> dict[str, Any]:
    """Collect the corpus and the probes into ``raw``; returns the counts that ``details`` holds.

    Raises UserError where a split ends up empty, or a clip is to be left out that no corpus has.
    """
    shutil.rmtree(raw, ignore_errors=True)
    for split in (*(f"{split}/audio" for split in SPLITS), PROBES):
        (raw / split).mkdir(parents=True)
    clips, drops = collect(settings, raw, processes)
    drops += drop_clips(settings, clips, drops, raw)
    known = {clip.speaker for clip in clips["train"]}
    clips |= {
        split: mark_known_speakers(clips[split], known) for split in clips if split not in ("train", "validation")
    }
    write_rows(dropped, Drop, sorted(drops, key=lambda drop: (drop.split, drop.id, drop.reason)))
    for split in clips:
        if not clips[split]:
            raise UserError(f"no clips are left in {split}: {dropped} lists why; change download in params.yaml")
        write_clips(raw / split, clips[split])
    write_probes(raw / PROBES, [Probe(name, probe.language or "") for name, probe in settings.probes.items()])
    counts = {split: count_clips(clips[split], drops, split) for split in SPLITS}
    if settings.probes:
        counts[PROBES] = {name: count_probe(name, clips, drops, raw) for name in sorted(settings.probes)}
    write_json(details, counts)
    return counts


def drop_clips(settings: Download, clips: dict[str, list[Clip]], dropped: Sequence[Drop], raw: Path) -> list[Drop]:
    """Take out the clips that are named, by reason, and their audio; returns what was dropped.

    All others stay as they are: none takes the place of one in a limit. A clip that is dropped already may be named, as
    after a change of limits or tables. Raises UserError where the corpus has no clip of a name.
    """
    reason_of = {name: reason for reason, names in settings.drop.items() for name in names}
    drops = []
    for split in clips:
        for clip in clips[split]:
            if clip.id in reason_of:
                drops.append(Drop(split, clip.id, reason_of[clip.id], "download.drop"))
                (raw / split / "audio" / clip.audio).unlink()
        clips[split] = [clip for clip in clips[split] if clip.id not in reason_of]
    if unknown := reason_of.keys() - {drop.id for drop in drops}:
        unknown -= {name for drop in dropped for name in source_ids(settings, drop)}
    if unknown:
        name = min(unknown)
        near = difflib.get_close_matches(name, [clip.id for split in clips for clip in clips[split]], n=1)
        raise UserError(
            f"download.drop.{reason_of[name]}: the corpus has no clip {name}"
            f"{f'; did you mean {near[0]}?' if near else ''} ({len(unknown):,} unknown in all): name clips by id, as"
            " clips.tsv in data/raw has them"
        )
    return drops


def mark_known_speakers(clips: list[Clip], known: set[str]) -> list[Clip]:
    """Say of each clip whether train hears its speaker, where that is known."""
    marks = {True: "yes", False: "no"}
    return [
        clip if clip.speaker == UNKNOWN_SPEAKER else replace(clip, known_speaker=marks[clip.speaker in known])
        for clip in clips
    ]


def count_clips(clips: list[Clip], drops: list[Drop], split: str) -> dict[str, Any]:
    """Clips, speakers and what was dropped, by reason."""
    dropped = Counter(drop.reason for drop in drops if drop.split == split)
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "dropped": dict(sorted(dropped.items())),
    }


def count_probe(name: str, clips: dict[str, list[Clip]], drops: list[Drop], raw: Path) -> dict[str, Any]:
    """The same of a probe, and what of it stands in train too, which no split gives up for it; warns of that."""
    split = f"{PROBES}/{name}"
    shared = count_shared(clips[split], raw / split, clips["train"], raw / "train")
    if shared:
        told = " and ".join(f"the {what} of {count:,}" for what, count in shared.items())
        warn(f"probe {name}: {told} of its {len(clips[split]):,} clips stands in train too, so that its WER flatters")
    return count_clips(clips[split], drops, split) | {"in_train": shared}
