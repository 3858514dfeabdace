"""One model + the test shards -> transcripts, scores, and the tables of its plots. The only stage that reads test."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from stages.asr.decoding import decode
from stages.asr.device import autocast, best_device, explain_out_of_memory, half_precision
from stages.asr.model import check_fit, load_model
from stages.asr.scoring import clip_edits, score
from stages.asr.shards import Entry, Shards
from stages.asr.text import normalise
from stages.params import Compute, Evaluate, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_json, write_table
from stages.runtime.progress import ProgressBar

COMPARED = ("wer", "wer_low", "wer_high", "cer")  # what people compare: each is a column of `dvc exp show`
MOST_CONFUSED = 20  # rows of that table
FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--params", type=FOLDER, required=True)
@click.option("--model", type=FOLDER, required=True)
@click.option("--test", type=FOLDER, required=True, help="Test shards.")
@click.option("--transcripts", type=FOLDER, required=True, help="Table of what was said and what was heard.")
@click.option("--tables", type=FOLDER, required=True, help="Folder for the tables of the plots.")
@click.option("--metrics", type=FOLDER, required=True, help="File for the scores that people compare.")
@click.option("--details", type=FOLDER, required=True, help="File for the other scores, and the counts.")
def main(params: Path, model: Path, test: Path, **results: Path) -> None:
    """Measure one model on the test split."""
    values = load_params(params)
    scores = evaluate(values.evaluate, values.compute, model, test, Results(**results))
    label = " (untrained)" if scores.get("untrained") else ""
    click.echo(f"{model}{label}: WER {scores['wer']:.1f} % ({scores['wer_low']:.1f} to {scores['wer_high']:.1f})")


@dataclass(frozen=True)
class Results:
    """What evaluate writes, as the options above."""

    transcripts: Path
    tables: Path
    metrics: Path
    details: Path


def evaluate(settings: Evaluate, compute: Compute, model: Path, test: Path, results: Results) -> dict:
    """Decode and score test; returns what ``metrics`` and ``details`` hold.

    Clips whose reference has no words cannot be scored: they are counted under ``dropped``. Raises UserError where no
    other is left, where the features do not fit the model, or where memory runs out.
    """
    device = best_device()
    speech, shards = load_model(model, device), Shards(test)
    check_fit(speech, shards, test)
    size = compute.decode_batch_size
    with autocast(device, half_precision(device)), explain_out_of_memory(f"lower compute.decode_batch_size ({size})"):
        heard = decode(
            speech, shards, size, lambda of, total: ProgressBar(of, total=total, unit="batch", desc=model.name)
        )
    pairs = [(entry, text) for entry, text in zip(shards.entries, heard, strict=True) if normalise(entry.text)]
    if not pairs:
        raise UserError(f"no text in {test} holds a word: look into the corpus")
    entries, heard = map(list, zip(*pairs, strict=True))
    known = [entry.known_speaker for entry in entries]
    scores, errors = score([e.text for e in entries], heard, known, settings.bootstrap_samples, settings.seed)
    scores["dropped"] = {"no words": len(shards) - len(pairs)} if len(shards) > len(pairs) else {}
    if speech.untrained:
        scores["untrained"] = True
    write_transcripts(results.transcripts, entries, heard, errors)
    write_plot_tables(results.tables, model.name, entries, scores, errors)
    compared = {name: value for name, value in scores.items() if name in (*COMPARED, "untrained")}
    write_json(results.metrics, compared)
    write_json(results.details, {name: value for name, value in scores.items() if name not in compared})
    return scores


def write_transcripts(path: Path, entries: list[Entry], heard: list[str], errors: dict) -> None:
    """What was said and heard, clip by clip, with the clip's WER in percent."""
    rates = 100 * clip_edits(errors) / np.array(errors["words"])
    rows = ((e.id, e.text, text, f"{rate:.1f}") for e, text, rate in zip(entries, heard, rates, strict=True))
    write_table(path, ["clip", "reference", "hypothesis", "wer"], rows)


def write_plot_tables(folder: Path, model: str, entries: list[Entry], scores: dict, errors: dict) -> None:
    """The rows behind the plots, each naming its model, so that one chart can show two."""
    lengths = grouped(errors, [f"{int(entry.seconds):02}–{int(entry.seconds) + 1:02} s" for entry in entries])
    names = {"yes": "known", "no": "new", "": "unknown"}
    speakers = grouped(errors, [f"{entry.speaker[:12]} ({names[entry.known_speaker]})" for entry in entries])
    pairs = Counter(f"{said or '∅'} → {text or '∅'}" for _, said, text in errors["confusions"])
    most = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CONFUSED]
    for name, columns, rows in (
        ("wer", ["wer", "low", "high"], [(scores["wer"], scores["wer_low"], scores["wer_high"])]),
        ("lengths", ["length", "wer", "clips"], lengths),
        ("speakers", ["speaker", "wer", "clips"], speakers),
        ("confusions", ["confusion", "count"], most),
    ):
        write_table(folder / f"{name}.tsv", ["model", *columns], [(model, *row) for row in rows])


def grouped(errors: dict, keys: list[str]) -> list[tuple[str, float, int]]:
    """(key, WER in percent, clips) of each group of clips, by key."""
    edits: dict[str, int] = defaultdict(int)
    words: dict[str, int] = defaultdict(int)
    clips = Counter(keys)
    for key, edit, word in zip(keys, clip_edits(errors), errors["words"], strict=True):
        edits[key] += edit
        words[key] += word
    return [(key, round(100 * edits[key] / words[key], 2), clips[key]) for key in sorted(clips)]
