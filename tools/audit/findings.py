"""What is likely wrong with which clips, and by what bound: one rule a kind, worst clips first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from stages.asr.audio import AudioError, read_audio
from stages.asr.clips import SPLITS, UNKNOWN_SPEAKER, Clip
from stages.asr.mel import SAMPLE_RATE
from stages.asr.text import normalise
from stages.corpora.selection import sentence_key
from stages.runtime.progress import ProgressBar
from tools.audit.duplicates import SAME, SHORTER, find_candidates, likeness
from tools.audit.kinds import KINDS
from tools.audit.likelihood import Likelihood
from tools.audit.sounds import Sound
from tools.audit.texts import odd_characters, odd_languages

FAINT_DB = -60  # loudest frames below this are nothing that a microphone meant
STEADY_DB = 10  # between the loudest and the softest frames: syllables rise and fall by 20 dB and more, noise by 2
CROWDED = 0.03  # of loud samples, more near one amplitude than near a smaller one: 1 % of speech at most
CUT_DB, ABOVE_SOFT_DB = 20, 15  # a clip's last 20 ms: so near its loudest frames, so far above its softest
BAND_SHARE, NARROW_HZ = 0.6, 4000  # of the corpus's median band, and what a telephone has
FILTERED_DB = -60  # beyond the band: a filter leaves less, a voice without hisses more
RATE_Z, RATE_FACTOR = 5.0, 1.5  # robust deviations of the logarithm, and how many times as fast or slow at least
FASTEST = 35  # letters a second: twice as fast as quick speech in any language
SPEAKER_CLIPS = 10  # of a speaker, from which on their own pace is known
NATS = 7.0  # the model finds its own text a thousand times likelier
USUAL = 0.05  # of the clips: what more of them have is how the corpus is, and no fault of a clip
WORDS = 6  # of sentences that differ in one
PAIRS = 2000  # of clips, from which a pace is told


@dataclass(frozen=True)
class AuditedClip:
    """A clip of a split with what was measured of it: its Sound, or why there is none; what a model makes of it."""

    split: str
    clip: Clip
    path: Path
    sound: Sound | str
    likelihood: Likelihood | None = None


@dataclass(frozen=True)
class Finding:
    """One clip and what is likely wrong with it. severity: the larger the worse, within a kind. partner: of a pair.

    drop: whether leaving out this clip mends it.
    """

    kind: str
    number: int
    detail: str
    severity: float
    partner: int | None = None
    drop: bool = True


def find_faults(clips: Sequence[AuditedClip]) -> tuple[list[Finding], list[str]]:
    """All findings, by kind and severity, and what is no fault of single clips but how the corpus is."""
    notes: list[str] = []
    found = [
        *audio_findings(clips, notes),
        *duplicate_findings(clips),
        *text_findings(clips),
        *rate_findings(clips),
        *model_findings(clips),
        *sentence_findings(clips, notes),
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda one: (order[one.kind], -one.severity, one.number)), notes


def sounds_of(clips: Sequence[AuditedClip]) -> list[tuple[int, Sound]]:
    """The clips that can be heard, by number."""
    return [(number, one.sound) for number, one in enumerate(clips) if isinstance(one.sound, Sound)]


def spoken(clips: Sequence[AuditedClip]) -> list[tuple[int, Sound]]:
    """Those in which there is something to hear."""
    return [(number, sound) for number, sound in sounds_of(clips) if not is_silent(sound)]


def is_silent(sound: Sound) -> bool:
    return sound.loud < FAINT_DB or sound.loud - sound.soft < STEADY_DB


def audio_findings(clips: Sequence[AuditedClip], notes: list[str]) -> Iterator[Finding]:
    """What one clip's sound tells, some of it beside the others'."""
    for number, one in enumerate(clips):
        if isinstance(one.sound, str):
            yield Finding("unreadable", number, one.sound, 0)
    heard = spoken(clips)
    for number, sound in sounds_of(clips):
        if is_silent(sound):
            detail = f"loudest {sound.loud:.0f} dB, softest {sound.soft:.0f} dB"
            yield Finding("silence", number, detail, -sound.loud)
        elif sound.crowded > CROWDED:
            detail = f"{100 * sound.crowded:.0f} % of its loud samples crowd at one amplitude"
            yield Finding("clipping", number, detail, sound.crowded)
    median = float(np.median([sound.band for _, sound in heard])) if heard else 0.0
    for number, sound in heard:
        if sound.band <= min(BAND_SHARE * median, NARROW_HZ) and sound.beyond < FILTERED_DB:
            detail = f"nothing above {sound.band:,.0f} Hz, {median:,.0f} Hz are usual"
            yield Finding("narrow band", number, detail, median - sound.band)
    yield from cut_findings(heard, notes)


def cut_findings(heard: Sequence[tuple[int, Sound]], notes: list[str]) -> list[Finding]:
    """Clips whose first or last 20 ms are loud; none where the corpus is cut so."""
    found = []
    for number, sound in heard:
        edge, level = max(("begins", sound.start), ("ends", sound.end), key=lambda one: one[1])
        if level > sound.loud - CUT_DB and level > sound.soft + ABOVE_SOFT_DB:
            below = max(sound.loud - level, 0)
            found.append(Finding("cut off", number, f"{edge} {below:.0f} dB below its loudest moments", -below))
    if len(found) > USUAL * len(heard):
        notes.append(f"{share(len(found), len(heard))} begin or end in the middle of a sound: they are cut tightly.")
        return []
    return found


def duplicate_findings(clips: Sequence[AuditedClip]) -> Iterator[Finding]:
    """Pairs of clips with one recording, where they stand in two splits or their texts differ.

    Of a pair in two splits the one in train goes, else that in validation; of two texts both, for one is wrong.
    """
    heard = spoken(clips)
    texts = [sentence_key(one.clip.text) for one in clips]
    numbers = [number for number, _ in heard]
    lengths = {number: sound.speech_seconds for number, sound in heard}
    pairs = [(numbers[one], numbers[other]) for one, other in find_candidates([sound.landmarks for _, sound in heard])]
    pairs = [
        (one, other)
        for one, other in pairs
        if (clips[one].split != clips[other].split or texts[one] != texts[other])
        and min(lengths[one], lengths[other]) >= SHORTER * max(lengths[one], lengths[other])
    ]
    for one, other in ProgressBar(pairs, unit="pair", desc="duplicates"):
        try:
            alike = likeness(*(read_audio(clips[number].path, SAMPLE_RATE) for number in (one, other)))
        except (AudioError, OSError):
            continue
        if alike < SAME:
            continue
        across = clips[one].split != clips[other].split
        for number, partner in ((one, other), (other, one)):
            beside = clips[partner]
            detail = f"as {beside.clip.id} in {beside.split}"
            detail += "" if texts[one] == texts[other] else f", whose text is {beside.clip.text!r}"
            first = SPLITS.index(clips[number].split) < SPLITS.index(beside.split)
            yield Finding("duplicate audio", number, detail, alike, partner, drop=first if across else True)


def text_findings(clips: Sequence[AuditedClip]) -> Iterator[Finding]:
    texts = [one.clip.text for one in clips]
    for number, what in odd_characters(texts).items():
        yield Finding("odd characters", number, what, 0)
    for number, nats in odd_languages(texts).items():
        yield Finding("other language", number, f"{nats:.1f} nats a letter less likely than usual", nats)


def rate_findings(clips: Sequence[AuditedClip]) -> Iterator[Finding]:
    """Clips whose speech lasts far longer or shorter than speech of as many letters by the same speaker.

    Seconds are told from letters by the median slope between pairs (Theil 1950, Sen 1968), which a third of wrong clips
    does not move, and a speaker's pace by the median of their clips.
    """
    heard = [(number, sound) for number, sound in spoken(clips) if normalise(clips[number].clip.text)]
    if len(heard) < SPEAKER_CLIPS:
        return
    letters = np.array([len(normalise(clips[number].clip.text, apart=False)) for number, _ in heard], float)
    seconds = np.array([max(sound.speech_seconds, 0.01) for _, sound in heard])
    usual = expected_seconds(letters, seconds)
    residuals = np.log(seconds / usual)
    by_speaker: dict[str, list[int]] = {}
    for place, (number, _) in enumerate(heard):
        by_speaker.setdefault(clips[number].clip.speaker, []).append(place)
    for speaker, places in by_speaker.items():
        if speaker != UNKNOWN_SPEAKER and len(places) >= SPEAKER_CLIPS:
            pace = np.median(residuals[places])
            residuals[places] -= pace
            usual[places] *= np.exp(pace)
    residuals -= np.median(residuals)
    spread = 1.4826 * np.median(np.abs(residuals))
    for place, (number, _) in enumerate(heard):
        beyond = abs(residuals[place])
        rate = letters[place] / seconds[place]
        if beyond > max(RATE_Z * spread, np.log(RATE_FACTOR)) or rate > FASTEST:
            detail = f"{letters[place]:.0f} letters in {seconds[place]:.1f} s of speech, {usual[place]:.1f} s are usual"
            yield Finding("speaking rate", number, detail, float(beyond))


def expected_seconds(letters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The seconds that so many letters usually take, (n_clips,) each, by a line that outliers do not move."""
    draw = np.random.default_rng(1)
    one, other = draw.integers(len(letters), size=(2, PAIRS))
    differ = letters[one] != letters[other]
    steps = (seconds[one] - seconds[other])[differ] / (letters[one] - letters[other])[differ]
    slope = float(np.median(steps)) if len(steps) else 0.0
    line: np.ndarray = np.maximum(np.median(seconds - slope * letters) + slope * letters, seconds.min())
    return line


def model_findings(clips: Sequence[AuditedClip]) -> Iterator[Finding]:
    """Clips of which the model hears something else, and is sure."""
    for number, one in enumerate(clips):
        found = one.likelihood
        if found and found.nats > NATS and normalise(found.heard) != normalise(one.clip.text):
            yield Finding("unlikely text", number, f"heard {found.heard!r}, by {found.nats:.0f} nats", found.nats)


def sentence_findings(clips: Sequence[AuditedClip], notes: list[str]) -> list[Finding]:
    """Clips of validation and test whose sentence train has, as it is or but for a word; none where most are so."""
    words = [sentence_key(one.clip.text).split() for one in clips]
    in_train = [number for number, one in enumerate(clips) if one.split == "train"]
    guarded = [number for number, one in enumerate(clips) if one.split != "train"]
    found: list[Finding] = []
    for what, keys in (("the sentence", whole), ("all but a word of the sentence", all_but_a_word)):
        known = {key: number for number in in_train for key in keys(words[number])}
        pairs = [
            (number, next((known[key] for key in keys(words[number]) if key in known), None)) for number in guarded
        ]
        shared = [(number, partner) for number, partner in pairs if partner is not None]
        if len(shared) > USUAL * len(guarded):
            notes.append(f"{share(len(shared), len(guarded))} of validation and test have {what} of one in train.")
            break
        seen = {one.number for one in found}
        for number, partner in shared:
            if number not in seen:
                detail = f"{what} of {clips[partner].clip.id} in train: {clips[partner].clip.text!r}"
                found.append(Finding("shared sentence", number, detail, len(words[number]), partner, drop=False))
    return found


def whole(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return [tuple(words)] if words else []


def all_but_a_word(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """A sentence without each of its words in turn: two that differ in one have such a part in common."""
    return combinations(words, len(words) - 1) if len(words) >= WORDS else []


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} clips ({100 * part / whole:.0f} %)"
