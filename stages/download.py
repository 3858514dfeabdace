"""A corpus -> data/raw/{train,validation,test}: a clip list and the audio as it came."""

import difflib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stages.asr.clips import SPLITS, Clip, Drop, write_clips, write_rows
from stages.corpora import common_voice, folder, hub, synthetic
from stages.corpora.selection import possible_ids
from stages.params import Download, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json


@click.command()
@click.option("--params", type=click.Path(path_type=Path), required=True)
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="Folder for the three splits.")
@click.option("--dropped", type=click.Path(path_type=Path), required=True, help="Table of what was left out.")
@click.option("--details", type=click.Path(path_type=Path), required=True, help="File for the counts.")
def main(params: Path, raw: Path, dropped: Path, details: Path) -> None:
    """Bring one corpus into the pipeline's own layout."""
    values = load_params(params)
    counts = download(values.download, raw, dropped, details, values.compute.processes or os.cpu_count() or 1)
    click.echo(", ".join(f"{counts[split]['clips']} {split}" for split in SPLITS) + f" clips in {raw}")


def download(settings: Download, raw: Path, dropped: Path, details: Path, processes: int) -> dict[str, Any]:
    """Collect the corpus into ``raw``; returns the counts that ``details`` holds.

    Raises UserError where a split ends up empty, or a clip is to be left out that the corpus does not have.
    """
    shutil.rmtree(raw, ignore_errors=True)
    for split in SPLITS:
        (raw / split / "audio").mkdir(parents=True)
    clips, drops = collect_corpus(settings, raw, processes)
    drops += drop_clips(settings.drop, clips, drops, raw)
    clips["test"] = mark_known_speakers(clips["test"], {clip.speaker for clip in clips["train"]})
    write_rows(dropped, Drop, sorted(drops, key=lambda drop: (drop.split, drop.id, drop.reason)))
    for split in SPLITS:
        if not clips[split]:
            raise UserError(f"no clips are left in {split}: {dropped} lists why; change download in params.yaml")
        write_clips(raw / split, clips[split])
    counts = {split: count_clips(clips[split], drops, split) for split in SPLITS}
    write_json(details, counts)
    return counts


def collect_corpus(settings: Download, raw: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """The clips of the chosen corpus by split, their audio in ``raw/<split>/audio``, and what was left out."""
    if settings.corpus == "synthetic":
        return synthetic.collect(settings.synthetic, raw, processes)
    if settings.corpus == "common_voice":
        return common_voice.collect(settings.common_voice, raw, processes)
    if settings.corpus == "hub":
        return hub.collect(settings.hub, raw, processes)
    return folder.collect(settings.folder, raw, processes)


def drop_clips(
    reasons: dict[str, list[str]], clips: dict[str, list[Clip]], dropped: Sequence[Drop], raw: Path
) -> list[Drop]:
    """Take out the clips that are named, by reason, and their audio; returns what was dropped.

    All others stay as they are: none takes the place of one in a limit. A clip that is dropped already may be named, as
    after a change of limits or tables. Raises UserError where the corpus has no clip of a name.
    """
    reason_of = {name: reason for reason, names in reasons.items() for name in names}
    drops = []
    for split in SPLITS:
        for clip in clips[split]:
            if clip.id in reason_of:
                drops.append(Drop(split, clip.id, reason_of[clip.id], "download.drop"))
                (raw / split / "audio" / clip.audio).unlink()
        clips[split] = [clip for clip in clips[split] if clip.id not in reason_of]
    if unknown := reason_of.keys() - {drop.id for drop in drops}:
        unknown -= {name for drop in dropped for name in possible_ids(drop.id)}
    if unknown:
        name = min(unknown)
        near = difflib.get_close_matches(name, [clip.id for split in SPLITS for clip in clips[split]], n=1)
        raise UserError(
            f"download.drop.{reason_of[name]}: the corpus has no clip {name}"
            f"{f'; did you mean {near[0]}?' if near else ''} ({len(unknown):,} unknown in all): name clips by id, as"
            " clips.tsv in data/raw has them"
        )
    return drops


def mark_known_speakers(clips: list[Clip], known: set[str]) -> list[Clip]:
    """Say of each clip whether train hears its speaker."""
    return [replace(clip, known_speaker="yes" if clip.speaker in known else "no") for clip in clips]


def count_clips(clips: list[Clip], drops: list[Drop], split: str) -> dict[str, Any]:
    """Clips, speakers and what was dropped, by reason."""
    dropped = Counter(drop.reason for drop in drops if drop.split == split)
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "dropped": dict(sorted(dropped.items())),
    }
