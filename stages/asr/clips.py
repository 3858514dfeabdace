"""Utterances as every corpus hands them over, and the table that lists a split's."""

import csv
import unicodedata
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stages.asr.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Clip:
    """One utterance of one split.

    id: unique within the corpus, made of letters, digits, ``.``, ``_`` and ``-``.
    audio: name of its file in the split's ``audio`` folder, as it came.
    text: what is said, Unicode NFC, on one line, without tabs.
    speaker: who says it, any stable name.
    known_speaker: ``yes`` or ``no``, whether train hears this speaker; empty where nobody asked.
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


def write_table(path: Path, row_type: type, rows: list) -> None:
    """Write dataclass rows as an unquoted TSV, under a temporary name first.

    Values hold neither tabs nor line ends: text has gone through ``clean_text``.
    """
    part = path.with_name(path.name + ".part")
    lines = ["\t".join(field.name for field in fields(row_type))]
    lines += ["\t".join(asdict(row).values()) for row in rows]
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def write_clips(folder: Path, clips: list[Clip]) -> None:
    """Write ``clips.tsv`` of a split's folder, sorted by id."""
    write_table(folder / "clips.tsv", Clip, sorted(clips, key=lambda clip: clip.id))


def read_clips(folder: Path) -> list[Clip]:
    """The clips of a split's folder, sorted by id.

    Raises UserError where the list is missing, lacks a column or has a row of another width.
    """
    path = folder / "clips.tsv"
    names = [field.name for field in fields(Clip)]
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the download stage") from None
    for number, row in enumerate(rows, start=2):
        if set(row) != set(names) or None in row.values():
            raise UserError(f"{path} line {number}: expected {', '.join(names)}: run the download stage again")
    return sorted((Clip(**row) for row in rows), key=lambda clip: clip.id)
