"""What is compared: the test transcripts of revisions, checked to be of the same clips, and what made them."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.asr.shards import read_index
from stages.asr.text import normalise
from stages.runtime.errors import UserError, one_line
from stages.runtime.files import file_digest
from stages.runtime.progress import note
from stages.versioning.revisions import (
    LOCK,
    Provenance,
    Revision,
    check_current,
    find_revision,
    is_cached,
    provenance,
    read_lock,
    recorded_hash,
    tracked_file,
    tracked_folder,
)

if TYPE_CHECKING:
    from dvc.repo import Repo

TRANSCRIPTS, STAGE, FEATURES = "data/transcripts/{}.tsv", "evaluate@{}", "data/features/test"
NAMED = 5  # clips in a message

ClipTexts = dict[str, tuple[str, str]]  # what was said and what was heard, by clip


class OtherClipsError(UserError):
    """The test sets of two revisions differ, so that their scores do not compare."""


@dataclass(frozen=True)
class System:
    """What one revision heard: hypotheses, normalised, in the order of the test set's clips; and what made it."""

    name: str
    commit: str
    hypotheses: list[str]
    made_from: Provenance


@dataclass(frozen=True)
class TestSet:
    """The clips that all systems have heard; speakers, known ("yes", "no" or "") and seconds: None where unknown."""

    clips: list[str]
    references: list[str]  # normalised, each with words
    speakers: list[str] | None
    known: list[str] | None
    seconds: list[float] | None


def load_systems(root: Path, names: tuple[str, ...], model: str) -> tuple[list[System], TestSet, list[str]]:
    """What the revisions heard, their common test set, and notes for whoever reads the result.

    Transcripts come from DVC's cache, or its remote where they are missing. So do speakers and lengths, which stand in
    the index of the test features: a comparison does without where those are not available. Raises UserError where a
    revision or its transcripts are not to be had, are older than its model, or are of other clips.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.environ.setdefault("GDRIVE_NON_INTERACTIVE", "1")  # an expired sign-in is an error, not a wait
    revisions = [find_revision(root, name) for name in names]
    path, stage = TRANSCRIPTS.format(model), STAGE.format(model)
    try:
        with Repo(str(root)) as repo:
            texts, origins, notes = [], [], []
            features: dict[str, Revision] = {}  # one for each test features' hash
            for revision in revisions:
                lock = read_lock(root, revision)
                check_current(revision, lock, stage)
                file = tracked_file(repo, revision, path)
                if not revision.commit and file_digest(file, "md5") != recorded_hash(lock, path):
                    notes.append(f"{path} is not the file that {LOCK} names: what differs is told from {LOCK}")
                texts.append(read_transcripts(file, f"{path} of {revision.name}"))
                origins.append(provenance(lock, stage))
                features.setdefault(recorded_hash(lock, FEATURES), revision)
                check_same_clips(names[0], texts[0], revision.name, texts[-1])
            clips = [clip for clip, (reference, _) in sorted(texts[0].items()) if normalise(reference)]
            if not clips:
                raise UserError(f"{path} of {names[0]}: no reference holds a word: look into the corpus")
            entries, missing = read_entries(repo, list(features.values()), clips)
    except DvcException as error:
        raise UserError(f"{root.resolve()} is no repository of DVC's: {one_line(error)}") from None
    systems = [
        System(revision.name, revision.commit, [normalise(heard[clip][1]) for clip in clips], origin)
        for revision, heard, origin in zip(revisions, texts, origins, strict=True)
    ]
    references = [normalise(texts[0][clip][0]) for clip in clips]
    if entries is None:
        return systems, TestSet(clips, references, None, None, None), [*notes, f"no speakers and lengths: {missing}"]
    speakers, known, seconds = map(list, zip(*(entries[clip] for clip in clips), strict=True))
    return systems, TestSet(clips, references, speakers, known, seconds), notes


def read_transcripts(path: Path, name: str) -> ClipTexts:
    """The table that evaluate writes; name: what it is called in messages. Raises UserError where it is no such."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not {"clip", "reference", "hypothesis"} <= row.keys():
            raise UserError(f"{name}, line {number}: expected clip, reference, hypothesis and wer: run evaluate again")
    if not rows:
        raise UserError(f"{name} lists no clips: run evaluate again")
    return {row["clip"]: (row["reference"], row["hypothesis"]) for row in rows}


def check_same_clips(name: str, texts: ClipTexts, other_name: str, others: ClipTexts) -> None:
    """Raise OtherClipsError where two transcripts are of other clips, or of clips with another text."""
    changed = [clip for clip in texts if clip in others and texts[clip][0] != others[clip][0]]
    kinds = {
        f"only in {name}": sorted(texts.keys() - others.keys()),
        f"only in {other_name}": sorted(others.keys() - texts.keys()),
        "with another reference": sorted(changed),
    }
    if any(kinds.values()):
        listed = "; ".join(f"{len(clips):,} {kind} ({some(clips)})" for kind, clips in kinds.items() if clips)
        raise OtherClipsError(
            f"{name} and {other_name} have different test sets, which do not compare: {listed}: "
            f"evaluate both on the same data/features/test"
        )


def some(clips: list[str]) -> str:
    return ", ".join(clips[:NAMED]) + ", …" * (len(clips) > NAMED)


def read_entries(
    repo: "Repo", revisions: list[Revision], clips: list[str]
) -> tuple[dict[str, tuple[str, str, float]] | None, str]:
    """Each clip's speaker, known_speaker and seconds from the test features of a revision, or None and the reason.

    The clips are the same in all, so the first that has them in the cache serves; else they are fetched.
    """
    reasons = []
    for fetch in (False, True):
        for revision in revisions:
            try:
                if is_cached(repo, revision, FEATURES) == fetch:
                    continue
                if fetch:
                    note(f"fetching {FEATURES} of {revision.name}, which names the speakers")
                entries = dict(index_rows(tracked_folder(repo, revision, FEATURES)))
                if entries.keys() >= set(clips):
                    return entries, ""
                reasons.append(f"{FEATURES} of {revision.name} lacks some of the clips")
            except UserError as error:
                reasons.append(str(error))
    return None, reasons[0]


def index_rows(files: dict[str, Path]) -> Iterator[tuple[str, tuple[str, str, float]]]:
    """Of shards, which lie in the cache without their names."""
    for name, path in files.items():
        if name.endswith(".zip"):
            for row in read_index(path)["clips"]:
                yield row["id"], (row["speaker"], row["known_speaker"], float(row["seconds"]))
