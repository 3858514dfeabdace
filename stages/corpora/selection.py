"""Which rows of a corpus's tables become clips: sifted, put in a fixed random order, fetched, decoded, counted.

Every row ends as a clip or as a Drop, so that rows in = clips out + drops.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from stages.asr.audio import AudioError, decode_audio
from stages.asr.clips import SPLITS, Clip, Drop, clean_text
from stages.runtime.pool import spread
from stages.runtime.progress import ProgressBar

UNKNOWN = "unknown"  # the speaker of a clip where the table names none
CHUNK = 32  # clips a task: enough to hide the cost of handing it over
MAX_NAME = 100  # characters of an id that stem from the file's name

Problem = tuple[str, str]  # a Drop's reason and detail


@dataclass(frozen=True)
class Row:
    """A line of a table. path: of the audio, as the table has it; place: the table and line, for a person."""

    path: str
    text: str
    speaker: str
    place: str


def drop(split: str, row: Row, reason: str, detail: str = "") -> Drop:
    """The row as left out, with its place where there is no better detail."""
    return Drop(split, clean_text(row.path) or row.place, reason, clean_text(detail) or row.place)


def read_tsv(data: bytes) -> tuple[list[str], list[tuple[int, list[str]]], list[tuple[int, str]]]:
    """An unquoted TSV: its columns in lower case, its rows with their line numbers, and what is wrong with others."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    header = [name.strip().lower() for name in lines[0].decode(errors="replace").split("\t")]
    rows, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            values = line.decode().removesuffix("\r").split("\t")
        except UnicodeDecodeError:
            problems.append((number, "not in UTF-8"))
            continue
        if len(values) == len(header):
            rows.append((number, values))
        else:
            problems.append((number, f"{len(values)} columns, expected {len(header)}"))
    return header, rows, problems


def sift(split: str, rows: Iterable[Row], is_safe: Callable[[str], bool]) -> tuple[list[Row], list[Drop]]:
    """Leave out rows whose path leads elsewhere, that say nothing, or whose path an earlier row has."""
    kept, drops = {}, []
    for row in rows:
        if not row.path:
            drops.append(drop(split, row, "malformed row", f"{row.place}: no path"))
        elif not is_safe(row.path):
            drops.append(drop(split, row, "outside the archive", f"{row.place}: {row.path!r}"))
        elif not row.text:
            drops.append(drop(split, row, "empty sentence"))
        elif row.path in kept:
            drops.append(drop(split, row, "repeated row", f"{row.place}, as {kept[row.path].place}"))
        else:
            kept[row.path] = row
    return list(kept.values()), drops


def is_below(path: str) -> bool:
    """Whether a table's path stays in the folder that it is relative to."""
    pure = PurePosixPath(path)
    return bool(pure.name) and not pure.is_absolute() and ".." not in pure.parts and not re.search(r"[\\\0]", path)


def fold(text: str) -> str:
    """A sentence as compared: case and Unicode form aside."""
    return clean_text(clean_text(text).casefold())


def draw(key: str, seed: int) -> bytes:
    """A key's place in the random order of a seed: the same whatever else stands beside it."""
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def shuffle(rows: Iterable[Row], seed: int) -> list[Row]:
    """Rows in the random order of a seed."""
    return sorted(rows, key=lambda row: draw(row.path, seed))


def name_clips(paths: Iterable[str]) -> dict[str, str]:
    """A clip id for each path: the file's name, and a hash behind it where that is taken or holds other signs."""
    stems = {path: PurePosixPath(path).stem for path in paths}
    taken = Counter(stem.casefold() for stem in stems.values())
    ids = {}
    for path, stem in stems.items():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:MAX_NAME]
        plain = name == stem and taken[stem.casefold()] == 1
        ids[path] = name if plain else f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    return ids


def check(min_seconds: float, max_seconds: float, paths: list[Path]) -> list[Problem | None]:
    """What is wrong with each of a chunk of audio files."""
    return [check_clip(path, min_seconds, max_seconds) for path in paths]


def check_clip(path: Path, min_seconds: float, max_seconds: float) -> Problem | None:
    """What is wrong with an audio file: it is empty, cannot be decoded, or its length in seconds is out of bounds."""
    if not path.stat().st_size:
        return "empty", "0 bytes"
    try:
        samples, sample_rate = decode_audio(path)
    except AudioError as error:
        return "corrupt", str(error).replace(str(path), path.name)  # no folder's name in what is tracked
    seconds = len(samples) / sample_rate
    if not seconds:
        return "empty", "no samples"
    if seconds < min_seconds:
        return "too short", f"{seconds:.2f} s, min_seconds is {min_seconds}"
    if seconds > max_seconds:
        return "too long", f"{seconds:.2f} s, max_seconds is {max_seconds}"
    return None


class Selection:
    """Fills each split's folder from its rows, in their order, up to its limit."""

    def __init__(self, settings, folder: Path, processes: int, fetch: Callable[[dict[str, Path]], dict[str, Problem]]):
        """Clips are fetched with ``fetch``, into ``folder/<split>/audio``, and decoded in ``processes``.

        settings: has ``min_seconds`` and ``max_seconds`` of a clip.
        fetch: is given where each path's file shall lie, and returns the problems of those that cannot be had.
        """
        self.settings, self.folder, self.processes, self.fetch = settings, folder, processes, fetch
        self.kept: dict[str, list[tuple[Row, Path]]] = {split: [] for split in SPLITS}
        self.drops: list[Drop] = []

    def fill(self, rows: dict[str, list[Row]], limits: dict[str, int | None]) -> tuple[dict[str, list[Clip]], list]:
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
            for row in islice(waiting[split], self.lacking(split, limits[split]))
        ]:
            self.admit(batch)
        for split in SPLITS:
            for row, target in self.kept[split][limits[split] :] if limits[split] else []:
                target.unlink()
                self.drops.append(drop(split, row, "beyond the limit"))
            self.drops += [drop(split, row, "beyond the limit") for row in waiting[split]]
        clips = {
            split: [Clip(ids[row.path], path.name, row.text, row.speaker) for row, path in kept[: limits[split]]]
            for split, kept in self.kept.items()
        }
        return clips, self.drops

    def lacking(self, split: str, limit: int | None) -> int | None:
        """How many rows to try next; None is all."""
        if limit is None:
            return None
        count = limit - len(self.kept[split])
        return count + 20 + count // 20 if count > 0 else 0

    def admit(self, batch: list[tuple[str, Row, Path]]) -> None:
        """Fetch and decode a batch, and keep what is sound."""
        problems = self.fetch({row.path: target for _, row, target in batch})
        paths = [target for _, row, target in batch if row.path not in problems]
        chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
        task = partial(check, self.settings.min_seconds, self.settings.max_seconds)
        results: list[Problem | None] = []
        with ProgressBar(total=len(paths), unit="clip", desc="decode") as bar:
            for chunk in spread(task, chunks, self.processes):
                results += chunk
                bar.update(len(chunk))
        found = dict(zip(paths, results, strict=True))
        for split, row, target in batch:
            if problem := problems.get(row.path) or found[target]:
                target.unlink(missing_ok=True)
                self.drops.append(drop(split, row, problem[0], f"{row.place}: {problem[1]}"))
            else:
                self.kept[split].append((row, target))


def suffix(path: str) -> str:
    """A file's suffix in lower case, and no other signs than letters and digits."""
    return re.sub(r"[^a-z0-9.]", "", PurePosixPath(path).suffix.lower())
