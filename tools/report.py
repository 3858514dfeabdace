"""``python -m tools.report``: the test scores before and after, as a table, and what they rest on."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from stages.asr.clips import SPLITS
from stages.runtime.command import run
from stages.runtime.errors import UserError

Numbers = Mapping[str, Any]  # a stage's, by name

ROWS = {
    "WER": "wer",
    "WER, full window": "wer_full_window",
    "WER, stressed": "wer_stressed",
    "WER, known voices": "wer_known_speakers",
    "WER, new voices": "wer_new_speakers",
    "WER, raw text": "wer_raw",
    "CER": "cer",
}
SPEAKERS = {"wer": "speakers", "wer_known_speakers": "known_speakers", "wer_new_speakers": "new_speakers"}
EDIT_COUNTS = ("substitutions", "deletions", "insertions")
NEXT = """
Next: dvc plots show --open · dvc metrics diff · data/transcripts/tuned.tsv, clip by clip
      dvc exp run -S train.learning_rate=1e-3
      dvc exp show --only-changed --keep 'wer$|wer_s' --drop 'Created|State|Exec|wer_|cer|best|val|.*/'"""


@click.command()
@click.option("--metrics", type=click.Path(path_type=Path), default="metrics", help="Folder of what stages measured.")
def main(metrics: Path) -> None:
    """Print the test scores of the pretrained and the tuned model, what they rest on, and what was left out."""
    before, after = (read(metrics, f"evaluate/{model}") for model in ("pretrained", "tuned"))
    train, found = read(metrics, "train"), read(metrics, "download")
    splits = {split: read(metrics, f"featurize/{split}") for split in SPLITS}
    dropped = [found[split]["dropped"] for split in SPLITS]
    dropped += [stage["dropped"] for stage in (*splits.values(), train, after)]
    click.echo(f"{table(before, after)}\n{training(train, splits['train'])}\n{drops(dropped)}\n{NEXT}")


def read(metrics: Path, name: str) -> Numbers:
    """What stands of ``name`` among the metrics and among their details; raises UserError where neither is there."""
    paths = [path for folder in (metrics, metrics / "details") if (path := folder / f"{name}.json").exists()]
    if not paths:
        raise UserError(f"{metrics / name}.json is missing: run `make repro`")
    return {key: value for path in paths for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


def table(before: Numbers, after: Numbers) -> str:
    """The rows that the tuned model has, in percent, with their intervals."""
    heading = "untrained" if before.get("untrained") else "pretrained"
    lines = [f"{'Test, %':<20}{heading:>12}{'tuned':>8}   95 % interval"]
    for name, key in ROWS.items():
        if key in after:
            base = f"{before[key]:.1f}" if key in before else ""
            note = interval_text(after, key)
            lines.append(f"{name:<20}{base:>12}{after[key]:>8.1f}{f'   {note}' if note else ''}")
    edits = ", ".join(f"{kind} {after[kind]}" for kind in EDIT_COUNTS)
    lines.append(f"{after['clips']} clips, {after['words']} words: {edits}")
    return "\n".join(lines)


def interval_text(scores: Numbers, key: str) -> str:
    """``1.0 to 4.3 by speaker, 4 speakers``: a rate's interval, what was drawn for it, and whose speech it rests on.

    Of the stressed rate, which has none, what it is the mean of. Older versions have that of ``wer`` alone, by clip.
    """
    if key == "wer_stressed":
        return f"mean of {scores['conditions']} conditions, {scores['condition_clips']:,} clips"
    if f"{key}_low" not in scores:
        return ""
    text = f"{scores[f'{key}_low']:.1f} to {scores[f'{key}_high']:.1f}"
    if by := scores.get(f"{key}_by"):
        text += f" by {by}"
    if speakers := scores.get(SPEAKERS.get(key, "")):
        text += f", {speakers} speaker{'s' * (speakers != 1)}"
    return text


def training(end: Numbers, clips: Numbers) -> str:
    """What the tuned model learned from, and which weights it has."""
    heard = f"Trained on {clips['clips']} clips, {clips['seconds'] / 60:.0f} min"
    which = f"({end['weights']})" if "weights" in end else f"at step {end['best_step']} of {end['steps']}"
    return f"{heard}: validation WER {end['validation_wer']:.1f} % {which}"


def drops(dropped: list[Mapping[str, int]]) -> str:
    """How many clips were dropped by any stage, by reason."""
    counts = sum(map(Counter, dropped), Counter[str]())
    return "Dropped: " + (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none")


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
