"""``python -m bench.ablation``: what does each part of the training bring?

Trains the recipe of params.yaml as it is, and with one part taken away or put in at a time, and measures each on
validation as evaluate measures the test split: WER, on the full window, and under conditions. Wants the features of a
`make repro`.
"""

import csv
import tempfile
from pathlib import Path
from typing import Any

import click

from bench.mirror import train, with_values
from stages.evaluate import Results, evaluate
from stages.params import load_params
from stages.pretrained import pretrained

STILL = {"lead_seconds": 0.0, "cut_seconds": 0.0}
QUIET = {"noise": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without augmentation": {"augment": STILL | QUIET | {"gain": 0.0, "speed": 0.0}},
    "without shift": {"augment": STILL},
    "without gain": {"augment": {"gain": 0.0}},
    "without noise": {"augment": QUIET},
    "without speed": {"augment": {"speed": 0.0}},
    "tempo for speed": {"augment": {"speed": 0.0, "tempo": 0.12}},
    "with babble": {"augment": {"babble": 0.3}},
    "with reverberation": {"augment": {"reverberation": 0.3}},
    "without CTC": {"ctc_weight": 0.0},
    "without filled windows": {"filled_window_share": 0.0},
    "without full windows": {"full_context_share": 0.0},
    "without timestamps": {"timestamp_share": 0.0},
    "with texts before": {"prompt_share": 0.1},
    "mean of 5 evaluations": {"average": 5, "eval_every": 50, "save_every": 250},
    "AdamW": {"optimizer": "adamw", "learning_rate": 3e-3},
    "AdamW's beta2 of 0.999": {"optimizer": "adamw", "learning_rate": 3e-3, "adam_beta2": 0.999},
}


@click.command()
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--recipe", type=click.Path(path_type=Path), default="params.yaml", help="A whole params.yaml.")
@click.option("--variants", multiple=True, type=click.Choice([*VARIANTS]), help="Some of them; all without it.")
def main(features: Path, recipe: Path, variants: tuple[str, ...]) -> None:
    """Train each variant, and print a row of figures for it."""
    for name in variants or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            rows, scores = measure(Path(folder), recipe, features, VARIANTS[name])
        if name == (variants or [*VARIANTS])[0]:
            click.echo("| " + " | ".join(["variant", "WER", "full window", *list(rows)[1:]]) + " |")
        figures = [scores["wer"], scores.get("wer_full_window"), *list(rows.values())[1:]]
        click.echo("| " + " | ".join([name, *(f"{float(figure or 'nan'):.1f}" for figure in figures)]) + " |")


def measure(
    folder: Path, recipe: Path, features: Path, changes: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """WER by condition of a variant, and its other scores; on validation, for the parts are chosen by them."""
    values = load_params(recipe)
    augment = values.train.augment.model_dump() | changes.get("augment", {})
    params = with_values(recipe, folder, "train", changes | {"augment": augment})
    pretrained(values.whisper, features / "train", folder / "fresh")
    train(folder, params, features, folder / "fresh", Path())
    tables = folder / "tables"
    results = Results(folder / "transcripts.tsv", tables, folder / "scores.json", folder / "others.json")
    scores = evaluate(values.evaluate, values.compute, folder / "tuned", features / "validation", results)
    with (tables / "conditions.tsv").open(encoding="utf-8") as rows:
        return {row["condition"]: row["wer"] for row in csv.DictReader(rows, delimiter="\t")}, scores


if __name__ == "__main__":
    main()
