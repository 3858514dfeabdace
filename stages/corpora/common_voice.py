"""Common Voice, releases 5.1 to 27 in any locale: chosen tables as splits that share no speaker and no sentence."""

import re
from functools import partial
from pathlib import Path
from typing import IO

from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop, clean_text
from stages.corpora.archive import PackedRelease, UnpackedRelease, verify_checksum
from stages.corpora.data_collective import fetch_release
from stages.corpora.local import locate
from stages.corpora.selection import (
    BadLine,
    Selection,
    SplitIndex,
    TableRow,
    drop_row,
    filter_rows,
    random_rank,
    read_tsv,
    shuffle,
)
from stages.params import CommonVoice, Tables, ValidationTables
from stages.runtime.errors import UserError

REQUIRED_COLUMNS = ("client_id", "path", "sentence")  # that every release has
QUOTED_FIELD = re.compile(r'"((?:[^"]|"")*)"')  # of a CSV: quotation marks within it are doubled
Table = tuple[list[TableRow], list[BadLine]]
ADVICE = (
    "At https://mozilladatacollective.com choose Common Voice Scripted Speech in your language, accept its terms,"
    " download the .tar.gz and put it there; or set download.common_voice.release, and it is fetched"
)


def collect(settings: CommonVoice, folder: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """Bring the clips of a release to ``folder/<split>/audio``, as they came; its clips by split, and the drops.

    The same settings choose the same clips, and a raised limit keeps those that were chosen before.
    Raises UserError where the archive is missing, cannot be fetched, is none, is another one or lacks a table.
    """
    path = find_archive(settings)
    if settings.sha256:
        verify_checksum(path, settings.sha256)
    archive = (UnpackedRelease if path.is_dir() else PackedRelease)(path, settings.locale)
    sections: dict[str, Tables | ValidationTables]
    sections = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    wanted = {split: [table_name(table) for table in section.tables] for split, section in sections.items()}
    tables = archive.tables({table for tables in wanted.values() for table in tables}, partial(read_table, path))
    rows: dict[str, list[TableRow]] = {}
    drops: list[Drop] = []
    for split in SPLITS:
        rows[split], found = join_tables(split, {table: tables[table] for table in wanted[split]})
        drops += found
    drops += remove_overlap(rows, bool(settings.allow_overlap))
    if settings.held_out_speakers is not None:  # else validation has tables of its own
        hold_out_speakers(rows, settings.held_out_speakers, settings.seed)
    shuffled = {split: shuffle(rows[split], settings.seed) for split in SPLITS}
    limits = {split: section.limit for split, section in sections.items()}
    selection = Selection(folder, processes, settings.min_seconds, settings.max_seconds, archive.fetch)
    clips, found = selection.fill(shuffled, limits)
    return clips, drops + found


def find_archive(settings: CommonVoice) -> Path:
    """The archive, or the folder that it was unpacked to; a release is fetched where it is not here yet."""
    if settings.archive is not None:
        return locate(settings.archive, ADVICE)
    assert settings.release and settings.locale  # params.py's own check
    return fetch_release(settings.release, settings.locale)


def table_name(table: str) -> str:
    """A table as its file is called."""
    return "dev" if table == "validation" else table


def read_table(archive: Path, name: str, file: IO[bytes]) -> Table:
    """A table's rows, and its lines that are none."""
    header, lines = read_tsv(file)
    if missing := [column for column in REQUIRED_COLUMNS if column not in header]:
        raise UserError(
            f"{name}.tsv of {archive} lacks the column {missing[0]}; it has {', '.join(header)[:200]}: is it a"
            " table of Common Voice?"
        )
    client_id, path, sentence = (header.index(column) for column in REQUIRED_COLUMNS)
    rows, bad_lines = list[TableRow](), list[BadLine]()
    for number, values in lines:
        if isinstance(values, str):
            bad_lines.append((number, values))
            continue
        rows.append(
            TableRow(
                path=values[path].strip(),
                text=clean_text(unescape_quotes(values[sentence].strip())),
                speaker=clean_text(values[client_id]) or UNKNOWN_SPEAKER,
                place=f"{name}.tsv line {number}",
            )
        )
    return rows, bad_lines


def join_tables(split: str, tables: dict[str, Table]) -> tuple[list[TableRow], list[Drop]]:
    """The rows of a split's tables, and those that cannot be used."""
    drops = [
        Drop(split, f"{name}.tsv line {number}", "malformed row", why)
        for name, (_, bad_lines) in tables.items()
        for number, why in bad_lines
    ]
    kept, found = filter_rows(split, (row for rows, _ in tables.values() for row in rows))
    return kept, drops + found


def unescape_quotes(sentence: str) -> str:
    """A sentence without the quoting of the CSV that it once stood in: ``"Hon sa ""ja""."`` is ``Hon sa "ja".``

    Tables are unquoted, yet some sentences came from quoted ones, so this belongs to how a table is read and not to
    style: references too are what was to be read aloud. A sentence in quotation marks of its own has none doubled.
    """
    quoted = QUOTED_FIELD.fullmatch(sentence)
    return quoted[1].replace('""', '"') if quoted and '""' in quoted[1] else sentence


def remove_overlap(rows: dict[str, list[TableRow]], clips_alone: bool) -> list[Drop]:
    """Take from validation what test has, and from train what either has: clips, and speakers and sentences too.

    All rows of test's tables count, whatever its limit, so that a limit changes no other split.
    clips_alone: let them share speakers and sentences.
    """
    drops = []
    for split, guarded in (("validation", "test"), ("train", "test"), ("train", "validation")):
        kept = []
        index = SplitIndex(rows[guarded], clips_alone)
        for row in rows[split]:
            if what := index.shared(row):
                drops.append(drop_row(split, row, f"{what} in {guarded}"))
            else:
                kept.append(row)
        rows[split] = kept
    return drops


def hold_out_speakers(rows: dict[str, list[TableRow]], share: float, seed: int) -> None:
    """Move a share of train's speakers, at least one, to validation; raises UserError where there are too few."""
    speakers = {row.speaker for row in rows["train"]} - {UNKNOWN_SPEAKER}
    if len(speakers) < 2:
        raise UserError(
            f"held_out_speakers needs two speakers that test does not have, found {len(speakers)}: set"
            " validation.tables, or give a reason in allow_overlap"
        )
    n_held = min(max(1, round(share * len(speakers))), len(speakers) - 1)
    held = set(sorted(speakers, key=lambda speaker: random_rank(speaker, seed))[:n_held])
    rows["validation"] = [row for row in rows["train"] if row.speaker in held]
    rows["train"] = [row for row in rows["train"] if row.speaker not in held]
