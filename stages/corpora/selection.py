"""Which rows of a corpus's tables become clips: filtered, put in a fixed random order, fetched, decoded, counted.

Every row ends as a clip or as a Drop, so that rows in = clips out + drops.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from stages.asr.audio import AudioError, TooLongError, decode_audio
from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop, clean_text
from stages.asr.text import normalise
from stages.corpora.local import Rejection
from stages.runtime.pool import parallel_map
from stages.runtime.progress import ProgressBar

MAX_LINE = 1_000_000  # bytes of a table's line; sentences have hundreds
MAX_NAME = 100  # characters of an id that stem from the file's name

BadLine = tuple[int, str]  # the number of a table's line that cannot be read, and why


@dataclass(frozen=True)
class TableRow:
    """A row of a table. path: of the audio, as the table has it; place: the table and line, for a person."""

    path: str
    text: str
    speaker: str
    place: str


def drop_row(split: str, row: TableRow, reason: str, detail: str = "") -> Drop:
    """The row as left out, with its place where there is no better detail."""
    return Drop(split, clean_text(row.path) or row.place, reason, clean_text(detail) or row.place)


def read_tsv(file: IO[bytes]) -> tuple[list[str], Iterator[tuple[int, list[str] | str]]]:
    """An unquoted TSV: its columns in lower case, and of each line its number with its values, or why it is no row.

    Lines are read as they are asked for: the largest of Common Voice's tables would take gigabytes.
    """
    lines = read_lines(file)
    header = (next(lines, None) or b"").removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    columns = [name.strip().lower() for name in header.split("\t")]

    def rows() -> Iterator[tuple[int, list[str] | str]]:
        for number, line in enumerate(lines, start=2):
            if line is None:
                yield number, f"longer than {MAX_LINE:,} bytes"
            elif line.strip():
                try:
                    values = line.decode().removesuffix("\r").split("\t")
                except UnicodeDecodeError:
                    yield number, "not in UTF-8"
                    continue
                yield (
                    number,
                    values if len(values) == len(columns) else f"{len(values)} columns, expected {len(columns)}",
                )

    return columns, rows()


def read_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends; None in place of one longer than MAX_LINE, of which no more is kept."""
    while line := file.readline(MAX_LINE):
        whole = line.endswith(b"\n") or len(line) < MAX_LINE
        yield line.removesuffix(b"\n") if whole else None
        while not whole and (rest := file.readline(MAX_LINE)):
            whole = rest.endswith(b"\n")


def filter_rows(split: str, rows: Iterable[TableRow]) -> tuple[list[TableRow], list[Drop]]:
    """Leave out rows whose path leads out of the corpus, that have no text, or whose path an earlier row has."""
    kept: dict[str, TableRow] = {}
    drops = []
    for row in rows:
        if not row.path:
            drops.append(drop_row(split, row, "malformed row", f"{row.place}: no path"))
        elif not is_below(row.path):
            drops.append(drop_row(split, row, "outside the archive", f"{row.place}: {row.path!r}"))
        elif not row.text:
            drops.append(drop_row(split, row, "empty sentence"))
        elif row.path in kept:
            drops.append(drop_row(split, row, "repeated row", f"{row.place}, as {kept[row.path].place}"))
        else:
            kept[row.path] = row
    return list(kept.values()), drops


def is_below(path: str) -> bool:
    """Whether a table's path stays in the folder that it is relative to."""
    pure = PurePosixPath(path)
    return bool(pure.name) and not pure.is_absolute() and ".." not in pure.parts and not re.search(r"[\\\0]", path)


def sentence_key(text: str) -> str:
    """What two spellings of one sentence share: case, punctuation and Unicode form aside, as WER compares them."""
    folded = clean_text(text).casefold()
    return normalise(folded) or clean_text(folded)  # of "…" and "(skratt)" normalising leaves nothing


class SplitIndex:
    """The clips, and where they count the speakers and sentences, of a split."""

    def __init__(self, rows: Iterable[TableRow], clips_alone: bool):
        rows = list(rows)
        self.clips = {row.path for row in rows}
        self.speakers = set() if clips_alone else {row.speaker for row in rows} - {UNKNOWN_SPEAKER}
        self.sentences = set() if clips_alone else {sentence_key(row.text) for row in rows}

    def shared(self, row: TableRow) -> str | None:
        """What the row has in common with the split."""
        if row.path in self.clips:
            return "clip"
        if row.speaker in self.speakers:
            return "speaker"
        return "sentence" if sentence_key(row.text) in self.sentences else None


def random_rank(key: str, seed: int) -> bytes:
    """A key's place in the random order of a seed: the same whatever else stands beside it."""
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def shuffle(rows: Iterable[TableRow], seed: int) -> list[TableRow]:
    """Rows in the random order of a seed."""
    return sorted(rows, key=lambda row: random_rank(row.path, seed))


def name_clips(paths: Iterable[str]) -> dict[str, str]:
    """A clip id for each path: the file's name, and a hash behind it where that is taken or holds other characters."""
    stems = {path: PurePosixPath(path).stem for path in paths}
    taken = Counter(stem.casefold() for stem in stems.values())
    ids = {}
    for path, stem in stems.items():
        name, longer = possible_ids(path)
        ids[path] = name if name == stem and taken[stem.casefold()] == 1 else longer
    return ids


def possible_ids(path: str) -> tuple[str, str]:
    """The clip ids that a path may get: the file's name, and that with a hash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(path).stem)[:MAX_NAME]
    return name, f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def check_clip(path: Path, min_seconds: float, max_seconds: float) -> Rejection | None:
    """What is wrong with an audio file: it is empty, cannot be decoded, or its length in seconds is out of bounds."""
    if not path.stat().st_size:
        return Rejection("empty", "0 bytes")
    try:
        samples, sample_rate = decode_audio(path, max_seconds)
    except TooLongError as error:
        return Rejection("too long", f"{error.seconds:.2f} s, max_seconds is {max_seconds}")
    except AudioError as error:
        return Rejection("corrupt", str(error).replace(str(path), path.name))  # no folder's name in what is tracked
    seconds = len(samples) / sample_rate
    if not seconds:
        return Rejection("empty", "no samples")
    if seconds < min_seconds:
        return Rejection("too short", f"{seconds:.2f} s, min_seconds is {min_seconds}")
    return None


@dataclass
class Selection:
    """Fills each split's folder from its rows, in their order, up to its limit.

    folder: clips go to ``folder/<split>/audio``.
    processes: that decode at once.
    min_seconds, max_seconds: of a clip; others are dropped.
    fetch: is given where each path's file shall lie, and returns why some cannot be had.
    """

    folder: Path
    processes: int
    min_seconds: float
    max_seconds: float
    fetch: Callable[[dict[str, Path]], dict[str, Rejection]]
    kept: dict[str, list[tuple[TableRow, Path]]] = field(
        init=False, default_factory=lambda: {split: [] for split in SPLITS}
    )
    drops: list[Drop] = field(init=False, default_factory=list)

    def fill(
        self, rows: dict[str, list[TableRow]], limits: dict[str, int | None]
    ) -> tuple[dict[str, list[Clip]], list[Drop]]:
        """The clips of each split, and what was dropped.

        A few more than the limit are fetched at once, because some may be damaged and each round reads the whole
        archive again; what is then too many goes. The clips that a lower limit kept, a higher one keeps.
        """
        for split in SPLITS:
            (self.folder / split / "audio").mkdir(parents=True, exist_ok=True)
        ids = name_clips(row.path for split in SPLITS for row in rows[split])
        waiting = {split: iter(rows[split]) for split in SPLITS}
        while batch := [
            (split, row, self.folder / split / "audio" / (ids[row.path] + suffix(row.path)))
            for split in SPLITS
            for row in islice(waiting[split], self.n_to_try(split, limits[split]))
        ]:
            self.fetch_batch(batch)
        self.drops += [drop_row(split, row, "beyond the limit") for split in SPLITS for row in waiting[split]]
        return self.finish(limits)

    def finish(self, limits: dict[str, int | None]) -> tuple[dict[str, list[Clip]], list[Drop]]:
        """The clips of each split up to its limit, the others deleted, and what was dropped in all."""
        for split in SPLITS:
            for row, target in self.kept[split][limits[split] :] if limits[split] else []:
                target.unlink()
                self.drops.append(drop_row(split, row, "beyond the limit"))
        clips = {
            split: [
                Clip(path.name.removesuffix(suffix(row.path)), path.name, row.text, row.speaker)
                for row, path in kept[: limits[split]]
            ]
            for split, kept in self.kept.items()
        }
        return clips, self.drops

    def n_to_try(self, split: str, limit: int | None) -> int | None:
        """How many rows to try next; None is all."""
        if limit is None:
            return None
        n_missing = limit - len(self.kept[split])
        return n_missing + 20 + n_missing // 20 if n_missing > 0 else 0

    def fetch_batch(self, batch: list[tuple[str, TableRow, Path]]) -> None:
        """Fetch and decode a batch, and keep what can be used."""
        not_fetched = self.fetch({row.path: target for _, row, target in batch})
        paths = [target for _, row, target in batch if row.path not in not_fetched]
        check = partial(check_clip, min_seconds=self.min_seconds, max_seconds=self.max_seconds)
        checked = ProgressBar(parallel_map(check, paths, self.processes), total=len(paths), unit="clip", desc="decode")
        found = dict(zip(paths, checked, strict=True))
        for split, row, target in batch:
            if rejection := not_fetched.get(row.path) or found[target]:
                target.unlink(missing_ok=True)
                self.drops.append(drop_row(split, row, rejection.reason, f"{row.place}: {rejection.detail}"))
            else:
                self.kept[split].append((row, target))


def suffix(path: str) -> str:
    """A file's suffix in lower case, and nothing but letters and digits."""
    return re.sub(r"[^a-z0-9.]", "", PurePosixPath(path).suffix.lower())
