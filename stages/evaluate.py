"""One model + the test shards -> transcripts, scores, and the tables of its plots. The only stage that reads test.

Probes, test sets of other corpora, are scored beside it.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from stages.asr.augmentation import AugmentOptions, Change
from stages.asr.decoding import decode_mels, token_limit
from stages.asr.device import best_device, explain_out_of_memory, quick_precision
from stages.asr.mel import FRAMES_PER_SECOND, HOP_LENGTH, log_mel
from stages.asr.model import SpeechModel, check_fit, load_model
from stages.asr.probes import Probe, read_probes
from stages.asr.scoring import clip_edits, normal_errors, score
from stages.asr.shards import Entry, Shards
from stages.asr.significance import error_interval
from stages.asr.text import normalise
from stages.params import Compute, Conditions, Evaluate, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json, write_table
from stages.runtime.progress import ProgressBar, warn

# What people compare: each is a column of `dvc exp show`.
COMPARED = ("wer", "wer_low", "wer_high", "wer_full_window", "wer_stressed", "cer", "untrained", "probes")
OF_PROBES = ("wer", "wer_low", "wer_high", "cer")  # by its name
MOST_CONFUSED = 20  # rows of that table
SPEAKER_LETTERS = 12  # of a name in a plot
FOLDER = click.Path(path_type=Path)

Rows = list[tuple[str, float, float, float, int]]


@click.command()
@click.option("--params", type=FOLDER, required=True)
@click.option("--model", type=FOLDER, required=True)
@click.option("--test", type=FOLDER, required=True, help="Test shards.")
@click.option("--probes", type=FOLDER, required=True, help="Folder of the probes' shards.")
@click.option("--transcripts", type=FOLDER, required=True, help="Table of what was said and what was heard.")
@click.option("--tables", type=FOLDER, required=True, help="Folder for the tables of the plots.")
@click.option("--metrics", type=FOLDER, required=True, help="File for the scores that people compare.")
@click.option("--details", type=FOLDER, required=True, help="File for the other scores, and the counts.")
def main(params: Path, model: Path, test: Path, probes: Path, **results: Path) -> None:
    """Measure one model on the test split, and on the probes."""
    values = load_params(params)
    scores = evaluate(values.evaluate, values.compute, model, test, Results(**results), probes)
    label = " (untrained)" if scores.get("untrained") else ""
    interval = f"{scores['wer_low']:.1f} to {scores['wer_high']:.1f} by {scores['wer_by']}"
    probed = "".join(f", {name} {found['wer']:.1f} %" for name, found in scores.get("probes", {}).items())
    click.echo(f"{model}{label}: WER {scores['wer']:.1f} % ({interval}){probed}")


@dataclass(frozen=True)
class Results:
    """What evaluate writes, as the options above."""

    transcripts: Path
    tables: Path
    metrics: Path
    details: Path


def evaluate(
    settings: Evaluate, compute: Compute, model: Path, test: Path, results: Results, probes: Path | None = None
) -> dict:
    """Decode and score test, and each probe below ``probes``; returns what ``metrics`` and ``details`` hold.

    Clips whose reference has no words cannot be scored: they are counted under ``dropped``. A trained model is also
    measured on the full window and under conditions; of an untrained one these would tell nothing. Raises UserError
    where no clip is left, where the features do not fit the model, where it does not know a probe's language, or where
    memory runs out.
    """
    device = best_device()
    speech = load_model(model, device)
    size = compute.decode_batch_size
    recogniser = open_test(speech, test, size, model.name)
    others = open_probes(speech, probes, size, model.name) if probes else {}
    with quick_precision(device), explain_out_of_memory(f"lower compute.decode_batch_size ({size})"):
        scores, heard, errors = measure(recogniser, settings)
        rows: Rows = []
        if speech.untrained:
            scores["untrained"] = True
        else:
            scores |= full_window_scores(recogniser, settings)
            rows = condition_rows(recogniser, heard, settings)
            scores |= stressed_score(rows)
        probed = {}
        for probe, other in others.items():
            with spoken(speech, probe.language):
                probed[probe.name], _, _ = measure(other, settings)
    if probed:
        scores["probes"] = {name: {key: found.pop(key) for key in OF_PROBES} for name, found in probed.items()}
        scores["probe_details"] = probed
    write_transcripts(results.transcripts, recogniser.entries, heard, errors)
    write_plot_tables(results.tables, model.name, recogniser.entries, scores, errors)
    columns = ["model", "condition", "wer", "low", "high", "clips"]
    write_table(results.tables / "conditions.tsv", columns, [(model.name, *row) for row in rows])
    compared = {name: scores[name] for name in COMPARED if name in scores}
    write_json(results.metrics, compared)
    write_json(results.details, {name: value for name, value in scores.items() if name not in compared})
    return scores


@dataclass(frozen=True)
class Recogniser:
    """A model over the clips that can be scored; read: a clip's features by its place among them; wordless: others."""

    speech: SpeechModel
    entries: list[Entry]
    read: Callable[[int], np.ndarray]
    batch_size: int
    name: str
    wordless: int = 0

    def decode(self) -> list[str]:
        """Every clip as it is trained: at its own length, or on the full window."""
        return self._decode(self.speech, [entry.n_frames for entry in self.entries], self.read, self.name)

    def decode_full_windows(self, places: Sequence[int]) -> list[str]:
        """Some of the clips as transformers' ``pipeline`` decodes: on the full window, however long the text gets."""
        lengths = [self.entries[place].n_frames for place in places]
        most = self.speech.whisper.generation_config.max_length
        speech = replace(self.speech, context="full")
        label = f"{self.name}, full window"
        return self._decode(speech, lengths, lambda at: self.read(places[at]), label, lambda n_frames: most)

    def decode_changed(self, changes: list[tuple[int, Change]], noise: np.ndarray) -> list[str]:
        """Clips by their places, each changed; where that adds noise, some part of this one.

        noise: (n_mels, window) float32 scaled log-mel.
        """
        lengths = [change.length(self.entries[place].n_frames) for place, change in changes]

        def read(at: int) -> np.ndarray:
            place, change = changes[at]
            mel = self.read(place)
            start = change.seed % max(noise.shape[1] - mel.shape[1], 1)
            return change.apply(mel, noise[:, start:])

        return self._decode(self.speech, lengths, read, f"{self.name}, conditions")

    def _decode(
        self,
        speech: SpeechModel,
        lengths: list[int],
        read: Callable[[int], np.ndarray],
        label: str,
        limit: Callable[[int], int] = token_limit,
    ) -> list[str]:
        return decode_mels(
            speech,
            lengths,
            read,
            self.batch_size,
            lambda batches, total: ProgressBar(batches, total=total, unit="batch", desc=label),
            limit,
        )


def open_test(speech: SpeechModel, folder: Path, batch_size: int, name: str) -> Recogniser:
    """A model over the shards of a folder; raises UserError where they do not fit it, or no text holds a word."""
    shards = Shards(folder)
    check_fit(speech, shards, folder)
    numbers = [number for number, entry in enumerate(shards.entries) if normalise(entry.text)]
    if not numbers:
        raise UserError(f"no text in {folder} holds a word: look into the corpus")
    entries = [shards.entries[number] for number in numbers]
    return Recogniser(speech, entries, lambda at: shards.mel(numbers[at]), batch_size, name, len(shards) - len(numbers))


def open_probes(speech: SpeechModel, folder: Path, batch_size: int, name: str) -> dict[Probe, Recogniser]:
    """The same of each probe; raises UserError where the model does not know a language too."""
    known = vars(speech.whisper.generation_config)["lang_to_id"]
    probes = read_probes(folder)
    for probe in probes:
        if probe.language and f"<|{probe.language}|>" not in known:
            raise UserError(f"download.probes.{probe.name}.language: the model does not know {probe.language!r}")
    return {probe: open_test(speech, folder / probe.name, batch_size, f"{name}, {probe.name}") for probe in probes}


@contextmanager
def spoken(speech: SpeechModel, language: str) -> Iterator[None]:
    """Have the model hear and write another language, where one is named."""
    config = vars(speech.whisper.generation_config)
    before = config["language"]
    config["language"] = language or before
    try:
        yield
    finally:
        config["language"] = before


def measure(recogniser: Recogniser, settings: Evaluate) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """The scores of some clips as they are trained, what was heard of each, and the errors behind the scores."""
    heard = recogniser.decode()
    scores, errors = score([entry.text for entry in recogniser.entries], heard)
    scores |= speaker_scores(recogniser.entries, word_counts(errors), settings)
    scores["dropped"] = {"no words": recogniser.wordless} if recogniser.wordless else {}
    return scores, heard, errors


def word_counts(errors: dict[str, Any]) -> np.ndarray:
    """(n_clips, 2) int: word edits, and words of the reference."""
    return np.stack([clip_edits(errors), errors["words"]], axis=1)


def rate(name: str, counts: np.ndarray, speakers: Sequence[str], settings: Evaluate) -> dict[str, Any]:
    """WER of some clips in percent as ``name``, and its interval: ``name_low``, ``name_high``, ``name_by``."""
    edits, words = counts.T
    interval = error_interval(edits, words, speakers, settings.bootstrap_samples, settings.seed)
    return {
        name: round(float(100 * edits.sum() / words.sum()), 2),
        f"{name}_low": round(interval.low, 2),
        f"{name}_high": round(interval.high, 2),
        f"{name}_by": interval.by,
    }


def speaker_scores(entries: list[Entry], counts: np.ndarray, settings: Evaluate) -> dict[str, Any]:
    """WER of all clips, and of known and of new speakers where there are such, with how many speakers each rests on."""
    groups = {"": list(range(len(entries)))}
    for mark, kind in (("yes", "known_"), ("no", "new_")):
        groups[kind] = [place for place, entry in enumerate(entries) if entry.known_speaker == mark]
    scores: dict[str, Any] = {}
    for kind, places in groups.items():
        if places:
            speakers = [entries[place].speaker for place in places]
            name = f"wer_{kind}speakers" if kind else "wer"
            scores |= rate(name, counts[places], speakers, settings) | {f"{kind}speakers": len(set(speakers))}
    return scores


def full_window_scores(recogniser: Recogniser, settings: Evaluate) -> dict[str, Any]:
    """WER on the full window of all clips, or of those drawn; {} where none are asked for."""
    places = draw(range(len(recogniser.entries)), settings.full_window_clips, settings.seed)
    if not places:
        return {}
    entries = [recogniser.entries[place] for place in places]
    errors = normal_errors([entry.text for entry in entries], recogniser.decode_full_windows(places))
    scores = rate("wer_full_window", word_counts(errors), [entry.speaker for entry in entries], settings)
    return scores | {"full_window_clips": len(places)}


def draw(places: Sequence[int], n: int | None, seed: int) -> list[int]:
    """So many of them, in their order; all where n is None or more than there are."""
    return list(places) if n is None or n >= len(places) else sorted(random.Random(seed).sample(places, n))


def condition_changes(settings: Conditions) -> dict[str, Change]:
    """The change that each condition makes, by its name."""
    none = Change.draw(AugmentOptions(), "")
    leads, cuts = (
        [round(value * FRAMES_PER_SECOND) for value in seconds]
        for seconds in (settings.lead_seconds, settings.cut_seconds)
    )
    milliseconds = 1000 // FRAMES_PER_SECOND  # a frame
    return {
        **{f"lead {frames * milliseconds} ms": replace(none, lead=frames) for frames in leads},
        **{f"cut {frames * milliseconds} ms": replace(none, cut_start=frames) for frames in cuts},
        **{f"gain {gain:+g} dB": replace(none, gain=gain) for gain in settings.gain},
        **{f"noise at {snr:g} dB": replace(none, noisy=True, snr=snr) for snr in settings.snr},
        **{f"speed {speed:g}": replace(none, speed=speed) for speed in settings.speed},
    }


def condition_rows(recogniser: Recogniser, heard: list[str], settings: Evaluate) -> Rows:
    """(condition, wer, low, high, clips) of one sample of the clips, clean and under each condition.

    Drawn among those that still fit the model's window under every condition; [] where no condition is asked for.
    """
    changes = condition_changes(settings.conditions)
    if not changes or not settings.conditions.clips:
        return []
    window = range(1, recogniser.speech.window + 1)
    fitting = [
        place
        for place, entry in enumerate(recogniser.entries)
        if all(change.length(entry.n_frames) in window for change in changes.values())
    ]
    if not fitting:
        warn("no test clip leaves room in the model's window for evaluate.conditions: wer_stressed is not measured")
        return []
    places = draw(fitting, settings.conditions.clips, settings.seed)
    texts = [heard[place] for place in places]
    changed = [(place, replace(change, seed=settings.seed + place)) for change in changes.values() for place in places]
    n_mels = recogniser.speech.whisper.config.num_mel_bins
    texts += recogniser.decode_changed(changed, white_noise(n_mels, recogniser.speech.window, settings.seed))
    entries = [recogniser.entries[place] for place in places]
    references = [entry.text for entry in entries] * (1 + len(changes))
    counts = np.split(word_counts(normal_errors(references, texts)), 1 + len(changes))
    speakers = [entry.speaker for entry in entries]
    rates = (rate("wer", own, speakers, settings) for own in counts)
    return [
        (name, own["wer"], own["wer_low"], own["wer_high"], len(places))
        for name, own in zip(["clean", *changes], rates, strict=True)
    ]


def stressed_score(rows: Rows) -> dict[str, float]:
    """The mean of the conditions' WER, the clean clips' not among them, and of how many; {} where there are no rows."""
    if not rows:
        return {}
    _, *stressed = rows
    mean = float(np.mean([wer for _, wer, *_ in stressed]))
    return {"wer_stressed": round(mean, 2), "conditions": len(stressed), "condition_clips": stressed[0][-1]}


def white_noise(n_mels: int, n_frames: int, seed: int) -> np.ndarray:
    """The features of white noise: (n_mels, n_frames) float32 scaled log-mel."""
    samples = np.random.default_rng(seed).standard_normal(n_frames * HOP_LENGTH)
    return log_mel(samples, n_mels)[:, :n_frames].astype(np.float32)


def write_transcripts(path: Path, entries: list[Entry], heard: list[str], errors: dict) -> None:
    """What was said and heard, clip by clip, with the clip's WER in percent."""
    rates = 100 * clip_edits(errors) / np.array(errors["words"])
    rows = ((e.id, e.text, text, f"{rate:.1f}") for e, text, rate in zip(entries, heard, rates, strict=True))
    write_table(path, ["clip", "reference", "hypothesis", "wer"], rows)


def write_plot_tables(folder: Path, model: str, entries: list[Entry], scores: dict, errors: dict) -> None:
    """The rows behind the plots, each naming its model, so that one chart can show two."""
    lengths = grouped(errors, [f"{int(entry.seconds):02}–{int(entry.seconds) + 1:02} s" for entry in entries])
    names = {"yes": "known", "no": "new", "": "unknown"}
    voices = short_names({entry.speaker for entry in entries})
    speakers = grouped(errors, [f"{voices[entry.speaker]} ({names[entry.known_speaker]})" for entry in entries])
    pairs = Counter(f"{said or '∅'} → {text or '∅'}" for _, said, text in errors["confusions"])
    most = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CONFUSED]
    probes = [
        (name, found["wer"], found["wer_low"], found["wer_high"], scores["probe_details"][name]["clips"])
        for name, found in scores.get("probes", {}).items()
    ]
    for name, columns, rows in (
        ("wer", ["wer", "low", "high"], [(scores["wer"], scores["wer_low"], scores["wer_high"])]),
        ("probes", ["probe", "wer", "low", "high", "clips"], probes),
        ("lengths", ["length", "wer", "clips"], lengths),
        ("speakers", ["speaker", "wer", "clips"], speakers),
        ("confusions", ["confusion", "count"], most),
    ):
        write_table(folder / f"{name}.tsv", ["model", *columns], [(model, *row) for row in rows])


def short_names(names: set[str]) -> dict[str, str]:
    """The first letters of each: SPEAKER_LETTERS, or as many as tell them apart."""
    length = SPEAKER_LETTERS
    while len({name[:length] for name in names}) < len(names):
        length += 1
    return {name: name[:length] for name in names}


def grouped(errors: dict, keys: list[str]) -> list[tuple[str, float, int]]:
    """(key, WER in percent, clips) of each group of clips, by key."""
    edits: dict[str, int] = defaultdict(int)
    words: dict[str, int] = defaultdict(int)
    clips = Counter(keys)
    for key, edit, word in zip(keys, clip_edits(errors), errors["words"], strict=True):
        edits[key] += edit
        words[key] += word
    return [(key, round(100 * edits[key] / words[key], 2), clips[key]) for key in sorted(clips)]
