"""``python -m tools.report``: the test scores before and after, as a table."""

import json
import sys
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError

ROWS = {
    "WER": "wer",
    "WER, known voices": "wer_known_speakers",
    "WER, new voices": "wer_new_speakers",
    "WER, raw text": "wer_raw",
    "CER": "cer",
}
NEXT = """
Next: dvc plots show --open · dvc metrics diff · data/transcripts/tuned.tsv, clip by clip
      dvc exp run -S train.learning_rate=1e-3 · dvc exp show"""


@click.command()
@click.option("--metrics", type=click.Path(path_type=Path), default="metrics/evaluate", help="Folder of the scores.")
def main(metrics: Path) -> None:
    """Print the test scores of the pretrained and the tuned model."""
    click.echo(table(*(read(metrics / f"{model}.json") for model in ("pretrained", "tuned"))) + "\n" + NEXT)


def read(path: Path) -> dict:
    """One model's scores; raises UserError where evaluate has not written them."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `make repro`") from None


def table(before: dict, after: dict) -> str:
    """The rows that both models have, in percent, with the interval of the first."""
    heading = "untrained" if before.get("untrained") else "pretrained"
    lines = [f"{'Test, %':<20}{heading:>12}{'tuned':>8}   95 % interval"]
    for name, key in ROWS.items():
        if key in after and key in before:
            interval = f"   {after['wer_low']:.1f} to {after['wer_high']:.1f}" if key == "wer" else ""
            lines.append(f"{name:<20}{before[key]:>12.1f}{after[key]:>8.1f}{interval}")
    lines.append(f"{after['clips']} clips, {after['words']} words")
    return "\n".join(lines)


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
