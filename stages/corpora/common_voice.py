"""Common Voice, releases 5.1 to 27 in any locale: chosen tables as splits that share no speaker and no sentence."""

from collections.abc import Iterable
from pathlib import Path

from stages.asr.clips import SPLITS, Clip, Drop, clean_text
from stages.corpora.archive import Packed, Unpacked, locate, verify
from stages.corpora.selection import UNKNOWN, Row, Selection, draw, drop, fold, is_below, read_tsv, shuffle, sift
from stages.runtime.errors import UserError

COLUMNS = ("client_id", "path", "sentence")  # that every release has
ADVICE = (
    "Common Voice is fetched in a browser: at https://mozilladatacollective.com choose Common Voice Scripted Speech in"
    " your language, accept its terms, download the .tar.gz and put it there"
)


def collect(settings, folder: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """Bring the clips of a release to ``folder/<split>/audio``, as they came; its clips by split, and the drops.

    The same settings choose the same clips, and a raised limit keeps those that were chosen before.
    settings: the section ``download.common_voice`` of params.yaml.
    Raises UserError where the archive is missing, is none, is another one or lacks a table.
    """
    path = locate(settings.archive, ADVICE)
    if settings.sha256:
        verify(path, settings.sha256)
    archive = (Unpacked if path.is_dir() else Packed)(path, settings.locale)
    wanted = {split: [table_name(table) for table in getattr(settings, split).tables] for split in SPLITS}
    tables = archive.tables({table for tables in wanted.values() for table in tables})
    rows, drops = {}, []
    for split in SPLITS:
        rows[split], found = read_tables(path, split, {table: tables[table] for table in wanted[split]})
        drops += found
    drops += separate(rows, bool(settings.allow_overlap))
    if not wanted["validation"]:
        hold_out(rows, settings.held_out_speakers, settings.seed)
    shuffled = {split: shuffle(rows[split], settings.seed) for split in SPLITS}
    limits = {split: getattr(settings, split).limit for split in SPLITS}
    clips, found = Selection(settings, folder, processes, archive.fetch).fill(shuffled, limits)
    return clips, drops + found


def table_name(table: str) -> str:
    """A table as its file is called."""
    return "dev" if table == "validation" else table


def read_tables(archive: Path, split: str, tables: dict[str, bytes]) -> tuple[list[Row], list[Drop]]:
    """The rows of a split's tables, and those that cannot be used."""
    rows, drops = [], []
    for table, data in tables.items():
        header, lines, problems = read_tsv(data)
        if missing := [column for column in COLUMNS if column not in header]:
            raise UserError(
                f"{table}.tsv of {archive} lacks the column {missing[0]}; it has {', '.join(header)[:200]}: is it a"
                " table of Common Voice?"
            )
        drops += [Drop(split, f"{table}.tsv line {number}", "malformed row", detail) for number, detail in problems]
        client_id, path, sentence = (header.index(column) for column in COLUMNS)
        rows += [
            Row(
                path=values[path].strip(),
                text=clean_text(values[sentence]),
                speaker=clean_text(values[client_id]) or UNKNOWN,
                place=f"{table}.tsv line {number}",
            )
            for number, values in lines
        ]
    kept, found = sift(split, rows, is_below)
    return kept, drops + found


def separate(rows: dict[str, list[Row]], allow_overlap: bool) -> list[Drop]:
    """Take from validation what test has, and from train what either has: clips, and speakers and sentences too.

    All rows of test's tables count, whatever its limit, so that a limit changes no other split.
    """
    drops = []
    for split, guarded in (("validation", "test"), ("train", "test"), ("train", "validation")):
        kept = []
        known = Known(rows[guarded], allow_overlap)
        for row in rows[split]:
            if what := known.shared(row):
                drops.append(drop(split, row, f"{what} in {guarded}"))
            else:
                kept.append(row)
        rows[split] = kept
    return drops


class Known:
    """The clips, and where they count the speakers and sentences, of a split."""

    def __init__(self, rows: Iterable[Row], clips_alone: bool):
        self.clips = {row.path for row in rows}
        self.speakers = set() if clips_alone else {row.speaker for row in rows} - {UNKNOWN}
        self.sentences = set() if clips_alone else {fold(row.text) for row in rows}

    def shared(self, row: Row) -> str | None:
        """What the row has in common with the split."""
        if row.path in self.clips:
            return "clip"
        if row.speaker in self.speakers:
            return "speaker"
        return "sentence" if fold(row.text) in self.sentences else None


def hold_out(rows: dict[str, list[Row]], share: float, seed: int) -> None:
    """Move a share of train's speakers, at least one, to validation; raises UserError where there are too few."""
    speakers = sorted({row.speaker for row in rows["train"]} - {UNKNOWN}, key=lambda speaker: draw(speaker, seed))
    if len(speakers) < 2:
        raise UserError(
            f"held_out_speakers needs two speakers that test has not, found {len(speakers)}: give validation tables of"
            " its own, or allow_overlap a reason"
        )
    count = min(max(1, round(share * len(speakers))), len(speakers) - 1)
    held = set(speakers[:count])
    rows["validation"] = [row for row in rows["train"] if row.speaker in held]
    rows["train"] = [row for row in rows["train"] if row.speaker not in held]
