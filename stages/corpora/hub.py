"""Any speech data set of the Hugging Face Hub, at one commit: its own splits, its audio as it came.

Where a split has a limit, all are streamed: what is not wanted is not fetched. Else they come through Hugging Face's
cache.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop, clean_text
from stages.corpora.archive import MAX_CLIP_BYTES
from stages.corpora.local import Rejection, copy_stream
from stages.corpora.selection import (
    Selection,
    SplitIndex,
    TableRow,
    drop_row,
    filter_rows,
    random_rank,
    sentence_key,
    suffix,
)
from stages.params import Hub
from stages.runtime.errors import UserError, one_line
from stages.runtime.progress import ProgressBar

SEED = 1  # of the shares
ZIP = "zip://"
Audio = dict[str, Any]  # undecoded, as ``datasets`` gives it: bytes, and the path where they came from, or one of them


def collect(settings: Hub, folder: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """Bring a data set's clips to ``folder/<split>/audio``, as they came; its clips by split, and the drops.

    A limit takes the first clips that can be used, in the data set's order, so that a raised one keeps them, and lists
    none beyond those that were fetched. Clips whose speaker or sentence test has stay out of validation, and those that
    either has out of train, as far as they were read. Where validation or test has no splits of its own, it is a share
    of train's speakers, or of its sentences where speakers are not known: the same ones whatever the limits.
    Raises UserError where the data set, its commit, configuration, a split or a column cannot be had, or where a share
    comes to nothing.
    """
    builder = open_dataset(settings)
    limits: dict[str, int | None] = {split: getattr(settings, split).limit for split in SPLITS}
    rejected: dict[str, Rejection] = {}
    selection = Selection(folder, processes, settings.min_seconds, settings.max_seconds, lambda _: rejected)
    guards: dict[str, SplitIndex] = {}
    for split in reversed(SPLITS):
        place = folder / split / "audio"
        place.mkdir(parents=True, exist_ok=True)
        read: list[TableRow] = []
        usable = keep_apart(read_rows(builder, settings, split), split, guards, read, selection.drops)
        brought = bring_rows(usable, settings, place, rejected)
        while batch := list(islice(brought, selection.n_to_try(split, limits[split]))):
            selection.fetch_batch([(split, row, place / row.path) for row in batch])
        guards[split] = SplitIndex(read, clips_alone=False)
    clips, drops = selection.finish(limits)
    for split in SPLITS:
        if not clips[split] and shares(settings) and limits[split] != 0:
            raise UserError(
                f"download.hub: of {settings.id}'s speakers or sentences the shares give none to {split}: change"
                " validation.share and test.share, or set speaker to null, so that sentences are shared out"
            )
    return clips, drops


def shares(settings: Hub) -> dict[str, float]:
    """The share of train that each split takes which has none of its own."""
    return {split: share for split in ("test", "validation") if (share := getattr(settings, split).share) is not None}


def sharer(settings: Hub, row: TableRow) -> str:
    """The split that a row of train's goes to, by its speaker alone, or its sentence where that is not known."""
    key = sentence_key(row.text) if row.speaker == UNKNOWN_SPEAKER else row.speaker
    place = int.from_bytes(random_rank(key, SEED)[:8]) / 2**64
    for split, share in shares(settings).items():
        if place < share:
            return split
        place -= share
    return "train"


def read_rows(builder: Any, settings: Hub, split: str) -> Iterator[tuple[TableRow, Audio]]:
    """The rows of a split, the Hub's splits one after another, each with its audio; or a share of them."""
    number, section = 0, getattr(settings, split)
    shared = split == "train" or not section.splits
    with ProgressBar(unit="clip", desc=f"fetch {split}", total=section.limit) as bar:
        for name in section.splits or settings.train.splits:
            for at, example in enumerate(read_examples(builder, settings, name)):
                audio = as_audio(example[settings.audio])
                path = f"{split}-{number:06}{suffix(as_text(audio.get('path')).partition('::')[0])}"
                speaker = clean_text(as_text(example.get(settings.speaker or "")))
                text = clean_text(as_text(example[settings.text]))
                row = TableRow(path, text, speaker or UNKNOWN_SPEAKER, f"{name} row {at}")
                number += 1
                if not shared or sharer(settings, row) == split:
                    yield row, audio
                bar.update()


def keep_apart(
    rows: Iterator[tuple[TableRow, Audio]],
    split: str,
    guards: dict[str, SplitIndex],
    read: list[TableRow],
    drops: list[Drop],
) -> Iterator[tuple[TableRow, Audio]]:
    """The rows that have a text and share nothing with the guarding splits; all with a text go to ``read``."""
    for row, audio in rows:
        kept, found = filter_rows(split, [row])
        drops += found
        read += kept
        shared = [f"{what} in {guard}" for guard, index in guards.items() if (what := index.shared(row))]
        if kept and shared:
            drops.append(drop_row(split, row, shared[0]))
        elif kept:
            yield row, audio


def bring_rows(
    rows: Iterator[tuple[TableRow, Audio]], settings: Hub, place: Path, rejected: dict[str, Rejection]
) -> Iterator[TableRow]:
    """The rows, each as soon as its audio lies at its path below place; why it does not, ``rejected`` says."""
    for row, audio in rows:
        if problem := write_audio(audio, place / row.path, settings):
            rejected[row.path] = problem
        yield row


@contextmanager
def told(settings: Hub, what: str) -> Iterator[None]:
    """Tell what keeps the Hub from giving something, as UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of datasets, huggingface_hub, pyarrow, fsspec and their HTTP library
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # of what went wrong in preparing
        place = f"{settings.id} at {settings.revision}"
        text = one_line(cause)
        lacking = what.startswith("split ") and "split" in text  # which is told by datasets in several ways
        remedy = "; where there is no such split, set its splits to [] and share to 0.1, of train" * lacking
        raise UserError(f"download.hub: {what} of {place} cannot be had: {text}{remedy}") from None


def open_dataset(settings: Hub) -> Any:
    """The data set at its commit, of which nothing has been fetched but its description."""
    from datasets import load_dataset_builder

    with told(settings, f"configuration {settings.config}" if settings.config else "the only configuration"):
        builder = load_dataset_builder(settings.id, settings.config, revision=settings.revision)
        if builder.hash != settings.revision:  # where the Hub does not answer, datasets takes any commit from its cache
            raise ConnectionError(f"the Hub does not answer, and the cache has only {builder.hash}")
    if is_folder(builder):
        builder.BASE_FEATURE = named_audio()
    return builder


def is_folder(builder: Any) -> bool:
    """Whether the data set is a folder of audio files and a table."""
    return hasattr(builder, "BASE_FEATURE")


def read_examples(builder: Any, settings: Hub, name: str) -> Iterator[dict[str, Any]]:
    """The examples of one of the Hub's splits in their order, audio undecoded; raises UserError as ``collect`` does."""
    import datasets

    wanted = [column for column in (settings.audio, settings.text, settings.speaker) if column]
    limits = (settings.train.limit, settings.validation.limit, settings.test.limit)
    with told(settings, f"split {name}"):
        if is_folder(builder) or any(limit is not None for limit in limits):
            data = builder.as_streaming_dataset(name).decode(False)
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(name)
            for column in {settings.audio} & set(data.column_names):
                data = data.cast_column(column, datasets.Audio(decode=False))
        for example in data:
            if missing := [column for column in wanted if column not in example]:
                there = ", ".join(example)
                raise UserError(f"download.hub: {settings.id} has no column {missing[0]}; split {name} has {there}")
            yield example


def named_audio() -> type:
    """The kind of column that names an audio file; ``datasets``'s own wants a decoder only to write the name down."""
    import datasets

    class NamedAudio(datasets.Audio):
        def encode_example(self, value: object) -> Audio:
            return {"bytes": None, "path": as_text(value)}

    return NamedAudio


def as_audio(value: object) -> Audio:
    """Audio, in whichever way a data set stores it."""
    if isinstance(value, dict):
        return value
    return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": value}


def as_text(value: object) -> str:
    return "" if value is None else str(value)


def write_audio(audio: Audio, target: Path, settings: Hub) -> Rejection | None:
    """Put a clip's bytes, or the file of the data set that it names, at target; returns why it cannot be had."""
    data, path = audio.get("bytes"), as_text(audio.get("path"))
    if data is None:
        root = f"hf://datasets/{settings.id}@{settings.revision}/"
        if not path:
            return Rejection("missing", "neither bytes nor a path")
        member, _, place = path.rpartition("::")  # of a zip archive among its files: zip://<member>::<place>
        if not place.startswith(root) or (member and not member.startswith(ZIP)):  # a table could name any file
            return Rejection("outside the archive", f"{path!r} is no file of the data set")
        data = read_file(settings, place.removeprefix(root), member.removeprefix(ZIP))
    if len(data) > MAX_CLIP_BYTES:
        return Rejection("too large", f"{len(data):,} bytes")
    copy_stream(io.BytesIO(data), target)
    return None


def read_file(settings: Hub, name: str, member: str = "") -> bytes:
    """A file of the data set, or a member of such a zip archive, through Hugging Face's cache.

    Of a member no more than a clip may have and a byte. Raises UserError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    with told(settings, name):
        path = Path(hf_hub_download(settings.id, name, repo_type="dataset", revision=settings.revision))
        if not member:
            return path.read_bytes()
        with open_zip(path).open(member) as stream:
            return stream.read(MAX_CLIP_BYTES + 1)


@lru_cache(maxsize=4)
def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive, whose list of members is read once."""
    return zipfile.ZipFile(path)
