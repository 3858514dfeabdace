"""One corpus, or several that are kept apart from one another, as splits; and the probes beside them."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip, Drop
from stages.corpora import common_voice, folder, hub, synthetic
from stages.corpora.selection import possible_ids, random_rank, sentence_key
from stages.params import Download, Probe, Source, TrainSource
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest

PROBES = "probes"  # the folder of raw clips below which each probe has its own
SOURCES = "sources"  # that of what is not yet kept apart
SEED = 1  # of the choice of a share
GUARDS = {"validation": ("test",), "train": ("test", "validation")}  # the splits of which a split may hold nothing

Clips = dict[str, list[Clip]]  # by split


class Placed(NamedTuple):
    """A clip of a source, and where its audio lies."""

    source: str
    clip: Clip
    path: Path


def collect(settings: Download, raw: Path, processes: int) -> tuple[Clips, list[Drop]]:
    """The clips of ``corpus``, or of ``corpora``, by split, of each probe by ``probes/<name>``, and what was left out.

    Audio lies in ``raw/<split>/audio``, as it came. The same settings choose the same clips. Raises UserError where a
    corpus cannot be had, with the name of its source where there are several, or where a probe has no clips.
    """
    clips, drops = (collect_corpora if settings.corpora else collect_corpus)(settings, raw, processes)
    for name, probe in sorted(settings.probes.items()):
        clips[f"{PROBES}/{name}"], found = collect_probe(settings, name, probe, raw, processes)
        drops += found
    shutil.rmtree(raw / SOURCES, ignore_errors=True)
    return clips, drops


def collect_corpus(settings: Download, raw: Path, processes: int) -> tuple[Clips, list[Drop]]:
    """The clips of the corpus that ``corpus`` names."""
    if settings.corpus == "synthetic":
        return synthetic.collect(settings.synthetic, raw, processes)
    if settings.corpus == "common_voice":
        return common_voice.collect(settings.common_voice, raw, processes)
    if settings.corpus == "hub":
        return hub.collect(settings.hub, raw, processes)
    return folder.collect(settings.folder, raw, processes)


def collect_corpora(settings: Download, raw: Path, processes: int) -> tuple[Clips, list[Drop]]:
    """The clips of all ``corpora``; ids and file names begin with the source's name and a full stop.

    What test or validation holds stays out of train, and what test holds out of validation: speakers and sentences of
    other sources, for within its own each corpus has its rule, and audio of the same bytes of any.
    """
    placed: dict[str, list[Placed]] = {split: [] for split in SPLITS}
    drops: list[Drop] = []
    for name, source in sorted(settings.corpora.items()):
        wanted = ("train",) if source.train_only else SPLITS
        clips, found = collect_source(settings, f"corpora.{name}", source, wanted, raw, processes)
        drops += found
        for split in wanted:
            placed[split] += clips[split]
    for split, guards in GUARDS.items():
        placed[split], found = keep_apart(split, placed[split], {guard: Holdings(placed[guard]) for guard in guards})
        drops += found
    placed["train"], found = keep_shares(placed["train"], settings.corpora)
    return {split: [bring(one, raw / split) for one in placed[split]] for split in SPLITS}, drops + found


def collect_probe(
    settings: Download, name: str, probe: Probe, raw: Path, processes: int
) -> tuple[list[Clip], list[Drop]]:
    """The test clips of a probe; of a folder whose table names no test they are all clips."""
    clips, drops = collect_source(settings, f"probes.{name}", probe, ("test",), raw, processes)
    chosen = (clips["test"] or clips["train"])[: probe.limit]
    if not chosen:
        why = f": {drops[0].id}: {drops[0].reason}" if drops else ""
        raise UserError(f"download.probes.{name} gives no clips{why}")
    split = f"{PROBES}/{name}"
    return [bring(one, raw / split) for one in chosen], [replace(drop, split=split) for drop in drops]


def collect_source(
    settings: Download, place: str, source: Source, wanted: Sequence[str], raw: Path, processes: int
) -> tuple[dict[str, list[Placed]], list[Drop]]:
    """What a source gives to the wanted splits, to lie where nothing else does; place: of it in ``settings``."""
    name = place.rpartition(".")[2]
    with named(place, source.corpus):
        alone = narrow(settings.alone(source), wanted, source.limit)
        clips, drops = collect_corpus(alone, raw / SOURCES / name, processes)
    placed = {
        split: [
            Placed(
                name,
                replace(clip, id=f"{name}.{clip.id}", audio=f"{name}.{clip.audio}"),
                raw / SOURCES / name / split / "audio" / clip.audio,
            )
            for clip in clips[split]
        ]
        for split in SPLITS
    }
    heard = [drop for drop in drops if drop.split in wanted or source.corpus == "folder"]
    return placed, [replace(drop, id=f"{name}.{drop.id}") for drop in heard]


@contextmanager
def named(place: str, corpus: str) -> Iterator[None]:
    """Tell errors by the source that they are of."""
    try:
        yield
    except UserError as error:
        text = str(error).replace(f"download.{corpus}", f"download.{place}.set")
        raise UserError(text if text.startswith(f"download.{place}") else f"download.{place}: {text}") from None


def narrow(settings: Download, wanted: Sequence[str], limit: int | None) -> Download:
    """The section of one corpus for those splits alone, as far as that spares work, and the limit of their first."""
    corpus = settings.corpus
    limits = {split: 0 for split in SPLITS if split not in wanted} | ({wanted[0]: limit} if limit else {})
    changes: dict[str, Any]
    if corpus == "synthetic":
        changes = limits
    elif corpus == "folder":
        changes = {"limit": limits.get("train") or settings.folder.limit}
        changes |= {} if set(wanted) == set(SPLITS) else {"validation": 0.0, "test": 0.0}
    else:
        section = getattr(settings, corpus)
        changes = {split: getattr(section, split).model_copy(update={"limit": n}) for split, n in limits.items()}
        if corpus == "common_voice" and "validation" not in wanted:
            changes["held_out_speakers"] = None
    return settings.model_copy(update={corpus: getattr(settings, corpus).model_copy(update=changes)})


class Holdings:
    """Whose speech, which sentences and which audio some clips hold."""

    def __init__(self, clips: Iterable[Placed]):
        self.speakers: dict[str, dict[str, str]] = defaultdict(dict)  # of each the sources, with the id of a clip
        self.sentences: dict[str, dict[str, str]] = defaultdict(dict)
        self.sizes: dict[int, list[Placed]] = defaultdict(list)
        self.digests: dict[Path, str] = {}
        for one in clips:
            if one.clip.speaker != UNKNOWN_SPEAKER:
                self.speakers[one.clip.speaker].setdefault(one.source, one.clip.id)
            self.sentences[sentence_key(one.clip.text)].setdefault(one.source, one.clip.id)
            self.sizes[one.path.stat().st_size].append(one)

    def shared(self, one: Placed) -> dict[str, str]:
        """What they have in common with a clip, the audio of any source and the rest of others: ids of theirs."""
        same = self.same_audio(one)
        found = {"audio": [same] if same else []}
        for what, sources in (
            ("speaker", self.speakers.get(one.clip.speaker, {})),
            ("sentence", self.sentences.get(sentence_key(one.clip.text), {})),
        ):
            found[what] = [clip for source, clip in sources.items() if source != one.source]
        return {what: clips[0] for what, clips in found.items() if clips}

    def same_audio(self, one: Placed) -> str | None:
        """The id of a clip whose file has the same bytes; only files of one size are read."""
        for other in self.sizes.get(one.path.stat().st_size, []):
            if self.digest(other.path) == self.digest(one.path):
                return other.clip.id
        return None

    def digest(self, path: Path) -> str:
        if path not in self.digests:
            self.digests[path] = file_digest(path)
        return self.digests[path]


def keep_apart(split: str, clips: list[Placed], guards: dict[str, Holdings]) -> tuple[list[Placed], list[Drop]]:
    """The clips of a split that have nothing in common with the guarding ones, and the others, each with a clip that
    it is like."""
    kept, drops = [], []
    for one in clips:
        found = ((guard, *first) for guard, held in guards.items() for first in held.shared(one).items())
        if (shared := next(found, None)) is None:
            kept.append(one)
        else:
            guard, what, other = shared
            drops.append(Drop(split, one.clip.id, f"{what} in {guard}", other))
    return kept, drops


def keep_shares(clips: list[Placed], sources: dict[str, TrainSource]) -> tuple[list[Placed], list[Drop]]:
    """Of each source its share of the clips, a greater one with those of a smaller; and the others."""
    beyond: set[str] = set()
    for name, source in sources.items():
        if source.share is not None:
            ids = sorted((one.clip.id for one in clips if one.source == name), key=lambda clip: random_rank(clip, SEED))
            beyond |= set(ids[max(1, round(source.share * len(ids))) :])
    drops = [
        Drop("train", one.clip.id, "beyond the share", f"of {one.source}") for one in clips if one.clip.id in beyond
    ]
    return [one for one in clips if one.clip.id not in beyond], drops


def bring(one: Placed, split: Path) -> Clip:
    """Move a clip's audio to its place."""
    (split / "audio").mkdir(parents=True, exist_ok=True)
    one.path.replace(split / "audio" / one.clip.audio)
    return one.clip


def source_ids(settings: Download, drop: Drop) -> set[str]:
    """The ids that a clip which was left out may have had."""
    name, _, path = drop.id.partition(".")
    if name in settings.corpora or name in settings.probes:
        return {drop.id, *(f"{name}.{one}" for one in possible_ids(path))}
    return {*possible_ids(drop.id)}


def count_shared(clips: list[Clip], folder: Path, train: list[Clip], train_folder: Path) -> dict[str, int]:
    """How many clips of a probe have a sentence, and how many the audio, of some clip of train; only what there is."""
    held = Holdings(Placed("", clip, train_folder / "audio" / clip.audio) for clip in train)
    shared = [held.shared(Placed(folder.name, clip, folder / "audio" / clip.audio)) for clip in clips]
    counts = {what: sum(what in found for found in shared) for what in ("audio", "sentence")}
    return {what: count for what, count in counts.items() if count}
