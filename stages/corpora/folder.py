"""One's own recordings: a folder of audio, and beside it a table of path, text and, where known, speaker and split."""

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop, clean_text
from stages.corpora.local import copy_clips, is_file, locate
from stages.corpora.selection import (
    BadLine,
    Selection,
    TableRow,
    drop_row,
    filter_rows,
    is_below,
    random_rank,
    read_tsv,
    sentence_key,
    shuffle,
)
from stages.params import Folder
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest
from stages.runtime.progress import ProgressBar

COLUMN_NAMES = {  # of a table, in lower case
    "path": ("path", "file", "audio", "audio_path", "audio_filepath", "file_name", "filename", "wav"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "split": ("split",),
    "index": ("index",),  # of a recording that clips/rec_<index>.wav holds, as mozilla-ai's recorder writes them
}
SPLIT_NAMES = {"": "train", **{split: split for split in SPLITS}, "dev": "validation", "valid": "validation"}
SPLIT_NAMES |= {"val": "validation", "eval": "validation"}
IGNORED_FILES = ("thumbs.db", "desktop.ini")  # that Windows leaves in folders; hidden files are ignored too

Line = tuple[int, dict[str, str]]  # its number and its values by column


def collect(settings: Folder, folder: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """Bring one's own recordings to ``folder/<split>/audio``, as they came; their clips by split, and the drops.

    A split that the table does not name gets its share of train: whole speakers where there are three or more, else
    whole sentences. ``limit`` bounds train alone, so that results for more and fewer clips compare.
    Raises UserError where the folder or its table is missing, or its content is not what the digest says.
    """
    root = locate(settings.path, "Put the folder of your recordings there")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: name one that contains a table and audio")
    verify_digest(root, settings.digest)
    table = find_table(root, settings.table)
    rows, drops = read_table(root, table)
    assign_splits(rows, {"test": settings.test, "validation": settings.validation}, settings.seed)
    shuffled = {split: shuffle(rows[split], settings.seed) for split in SPLITS}
    limits = {"train": settings.limit, "validation": None, "test": None}
    selection = Selection(folder, processes, settings.min_seconds, settings.max_seconds, partial(copy_clips, root))
    clips, found = selection.fill(shuffled, limits)
    return clips, drops + found


def recordings_digest(folder: Path) -> str:
    """A SHA-256, 64 hex digits, of a folder's files and their names: the same on every system."""
    paths = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.name.lower() not in IGNORED_FILES and not any(part[0] == "." for part in name.parts):
            try:
                name.as_posix().encode()
            except UnicodeEncodeError:  # one of another time or system, which no table can name
                raise UserError(f"{folder} holds a file whose name is not in UTF-8, {str(name)!r}: rename it") from None
            paths[unicodedata.normalize("NFC", name.as_posix())] = path
    size = sum(path.stat().st_size for path in paths.values())
    with ProgressBar(total=size, unit="B", unit_scale=True, desc="digest") as bar:
        lines = [f"{file_digest(path, advance=bar.update)} {name}\n" for name, path in sorted(paths.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_digest(folder: Path, expected: str | None) -> None:
    """Raises UserError where the folder is not pinned, or has changed since."""
    found = recordings_digest(folder)
    if expected is None or not found.startswith(expected):
        state = "is not pinned" if expected is None else f"has changed since it was pinned to {expected}"
        raise UserError(
            f"{folder} {state}: its digest is {found}. Set download.folder.digest to it, or let"
            " `python -m tools.recipe` write it"
        )


def find_table(root: Path, name: str | None) -> Path:
    """The table of that name, or the only one in the folder; raises UserError where there is none, or several."""
    if name is not None:
        if not is_below(name) or not (root / name).is_file():
            raise UserError(f"{root} does not contain the table {name}")
        return root / name
    tables = sorted(
        path for path in root.iterdir() if path.suffix.lower() in READERS and path.name[0] != "." and path.is_file()
    )
    if len(tables) == 1:
        return tables[0]
    found = ", ".join(path.name for path in tables) or "none"
    raise UserError(
        f"{root} must contain one table, .tsv, .csv or .jsonl, with the columns path and text; found: {found}."
        " Where it contains several, set download.folder.table to the name of one"
    )


def read_table(root: Path, table: Path) -> tuple[dict[str, list[TableRow]], list[Drop]]:
    """The rows of each split, and those that cannot be used; rows without a split stand in train."""
    header, lines, bad_lines = READERS[table.suffix.lower()](table)
    columns = {role: next((name for name in names if name in header), None) for role, names in COLUMN_NAMES.items()}
    recorder = columns["path"] is None and columns["index"] is not None
    if columns["text"] is None or (columns["path"] is None and not recorder):
        raise UserError(
            f"{table} has the columns {', '.join(header)[:200]}; expected one of {', '.join(COLUMN_NAMES['path'])}"
            f" and one of {', '.join(COLUMN_NAMES['text'])}"
        )
    drops = [Drop("train", f"{table.name} line {number}", "malformed row", why) for number, why in bad_lines]
    rows: dict[str, list[TableRow]] = {split: [] for split in SPLITS}
    for number, values in lines:
        fields = {role: values[name] if name else "" for role, name in columns.items()}
        path = recorder_path(root, fields["index"].strip()) if recorder else relative_path(root, fields["path"].strip())
        row = TableRow(
            path=path,
            text=clean_text(fields["text"]),
            speaker=clean_text(fields["speaker"]) or UNKNOWN_SPEAKER,
            place=f"{table.name} line {number}",
        )
        split = SPLIT_NAMES.get(fields["split"].strip().lower())
        if split is None:
            drops.append(drop_row("train", row, "unknown split", f"{row.place}: {fields['split']}"))
        else:
            rows[split].append(row)
    return filter_splits(rows, drops)


def filter_splits(rows: dict[str, list[TableRow]], drops: list[Drop]) -> tuple[dict[str, list[TableRow]], list[Drop]]:
    """Leave out unusable rows; test keeps a clip that more than one split names, and validation before train."""
    earlier: dict[str, TableRow] = {}
    for split in reversed(SPLITS):
        kept, found = filter_rows(split, rows[split])
        rows[split] = [row for row in kept if row.path not in earlier]
        drops += found
        drops += [
            drop_row(split, row, "repeated row", f"{row.place}, as {earlier[row.path].place}")
            for row in kept
            if row.path in earlier
        ]
        earlier |= {row.path: row for row in kept}
    return rows, drops


def relative_path(root: Path, path: str) -> str:
    """A path as relative to the folder, with slashes: tables are also written on Windows, or with whole paths."""
    path = path.replace("\\", "/")
    whole = str(root.absolute()) + "/"
    return os.path.normpath(path.removeprefix(whole)) if path else path


def recorder_path(root: Path, index: str) -> str:
    """Where the recorder put the recording of an index: by its number, for rec_10 sorts before rec_2."""
    names = [f"{place}rec_{index}{kind}" for place in ("clips/", "") for kind in (".wav", ".mp3")]
    return next((name for name in names if is_below(name) and is_file(root / name)), names[0])


def assign_splits(rows: dict[str, list[TableRow]], shares: dict[str, float], seed: int) -> None:
    """Give each split that the table does not name its share of train's clips, in groups that stay together.

    Groups with few clips go first, as in Common Voice, so that test hears many speakers and train many clips.
    """
    wanting = [split for split in shares if not rows[split]]
    speakers = Counter(row.speaker for row in rows["train"])
    by_speaker = len(speakers) >= len(SPLITS)
    group_of = {row: row.speaker if by_speaker else sentence_key(row.text) for row in rows["train"]}
    sizes = Counter(group_of.values())
    groups = sorted(sizes, key=lambda group: (sizes[group], random_rank(group, seed)))
    n_clips = len(rows["train"])
    for number, split in enumerate(wanting):
        held: set[str] = set()
        held_clips = 0
        wanted = max(1, round(shares[split] * n_clips)) if shares[split] else 0
        spare = len(groups) - (len(wanting) - number)  # at least one for each split that follows
        while len(held) < spare and held_clips < wanted:
            group = groups.pop(0)
            held.add(group)
            held_clips += sizes[group]
        rows[split] = [row for row in rows["train"] if group_of[row] in held]
        rows["train"] = [row for row in rows["train"] if group_of[row] not in held]


def read_utf8(table: Path) -> str:
    try:
        return table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{table} is not in UTF-8 (byte {error.start}): save it as UTF-8, in Excel as CSV UTF-8"
        ) from None


def read_tsv_table(table: Path) -> tuple[list[str], list[Line], list[BadLine]]:
    rows, bad_lines = list[Line](), list[BadLine]()
    with table.open("rb") as file:
        header, lines = read_tsv(file)
        for number, values in lines:
            if isinstance(values, str):
                bad_lines.append((number, values))
            else:
                rows.append((number, dict(zip(header, values, strict=True))))
    return header, rows, bad_lines


def read_csv_table(table: Path) -> tuple[list[str], list[Line], list[BadLine]]:
    """A quoted CSV with commas, or with semicolons as Excel writes it in Swedish."""
    text = read_utf8(table)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[Line] = []
    bad_lines: list[BadLine] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        number = reader.line_num
        for values in reader:
            first, number = number + 1, reader.line_num
            if not any(value.strip() for value in values):
                continue
            if number > first:  # a quote may be closed by another row's: then each line was a row
                bad_lines += [
                    (line, "a line break in a value: is a closing quote missing?") for line in range(first, number + 1)
                ]
            elif len(values) != len(header):
                bad_lines.append((number, f"{len(values)} columns, expected {len(header)}"))
            else:
                lines.append((number, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise UserError(f"{table} line {reader.line_num}: {error}: is a closing quote missing?") from None
    return header, lines, bad_lines


def read_jsonl_table(table: Path) -> tuple[list[str], list[Line], list[BadLine]]:
    """JSON-lines; what a line does not have is empty."""
    header: dict[str, None] = {}
    lines: list[tuple[int, dict[str, object]]] = []
    bad_lines: list[BadLine] = []
    for number, line in enumerate(read_utf8(table).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = {key.strip().lower(): value for key, value in json.loads(line).items()}
            "".join(map(str, values.values())).encode()  # JSON can spell half a character, which no file can hold
        except (ValueError, AttributeError, RecursionError) as error:
            bad_lines.append((number, f"not a JSON object: {error}"))
            continue
        header |= dict.fromkeys(values)
        lines.append((number, values))
    return list(header), list(as_strings(header, lines)), bad_lines


def as_strings(header: dict[str, None], lines: list[tuple[int, dict[str, object]]]) -> Iterator[Line]:
    for number, values in lines:
        row = {name: values.get(name) for name in header}
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}


READERS = {".tsv": read_tsv_table, ".csv": read_csv_table, ".jsonl": read_jsonl_table}
