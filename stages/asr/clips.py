"""Clips as every corpus hands them over, and the table that lists a split's."""

import csv
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.files import write_table

SPLITS = ("train", "validation", "test")
UNKNOWN_SPEAKER = "unknown"  # the speaker of a clip of which nobody knows who says it


@dataclass(frozen=True)
class Clip:
    """One utterance of one split.

    id: unique within the corpus, made of letters, digits, ``.``, ``_`` and ``-``.
    audio: name of its file in the split's ``audio`` folder, as it came.
    text: what is said, Unicode NFC, on one line, without tabs.
    speaker: who says it, any stable name, or UNKNOWN_SPEAKER.
    known_speaker: ``yes`` or ``no``, whether train hears this speaker; empty where nobody asked or knows.
    """

    id: str
    audio: str
    text: str
    speaker: str
    known_speaker: str = ""


@dataclass(frozen=True)
class Drop:
    """A clip that was left out: where it stood, what was wrong (the key of the counts), and in which way."""

    split: str
    id: str
    reason: str
    detail: str = ""


def clean_text(text: str) -> str:
    """Text as it enters the pipeline: NFC, one line, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_rows(path: Path, row_type: type[Clip] | type[Drop], rows: Iterable[Clip] | Iterable[Drop]) -> None:
    """Write Clips or Drops as a table, in the order given, each as it comes."""
    names = [field.name for field in fields(row_type)]
    write_table(path, names, ([clean_text(getattr(row, name)) for name in names] for row in rows))


def write_clips(folder: Path, clips: list[Clip]) -> None:
    """Write ``clips.tsv`` of a split's folder, sorted by id."""
    write_rows(folder / "clips.tsv", Clip, sorted(clips, key=lambda clip: clip.id))


def read_clips(folder: Path) -> list[Clip]:
    """The clips of a split's folder, sorted by id; raises UserError as ``iterate_clips`` does."""
    return list(iterate_clips(folder))


def iterate_clips(folder: Path) -> Iterator[Clip]:
    """The clips of a split's folder, sorted by id, one at a time: the list of a large corpus fills no memory.

    Raises UserError where the list is missing or not sorted, lacks a column or has a row of another width.
    """
    path = folder / "clips.tsv"
    names = [field.name for field in fields(Clip)]
    last = ""
    try:
        lines = path.open(encoding="utf-8", newline="")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the download stage") from None
    with lines:
        for number, row in enumerate(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
            if set(row) != set(names) or None in row.values():
                raise UserError(f"{path} line {number}: expected {', '.join(names)}: run the download stage again")
            if row["id"] <= last:
                raise UserError(f"{path} line {number}: {row['id']} after {last}: run the download stage again")
            last = row["id"]
            yield Clip(**row)
