"""``python -m bench.shares``: how many steps must see full windows (``train.full_context_share``)?

They cost several times as much as the others. A model is trained from scratch with each share, as the recipe has it but
for its steps, and read on validation and on test: at its clips' own length and on the full window. Differences to the
first share are paired by clip over all seeds. Wants the features of a `make repro`, of whatever recipe is set.
"""

import tempfile
from pathlib import Path

import click
import numpy as np

from bench.context import compare, read, schedule, tune, words
from stages.params import load_params
from stages.pretrained import pretrained
from stages.runtime.files import write_json

SPLITS = ("validation", "test")
SHARES = (0.1, 0.05, 0.02, 0.0)


@click.command()
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--recipe", type=click.Path(path_type=Path), default="params.yaml", help="A whole params.yaml.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--shares", multiple=True, type=float, default=SHARES, show_default=True, help="Against the first.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to keep the edits by clip in.")
def main(features: Path, recipe: Path, steps: int, seeds: int, shares: tuple[float, ...], out: Path | None) -> None:
    """Train with several shares of full windows, and compare."""
    found: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {split: {} for split in SPLITS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pretrained(load_params(recipe).whisper, features / "train", folder / "fresh")
        for seed in range(1, seeds + 1):
            for share in shares:
                place = folder / f"{share:g}-{seed}"
                at_end = {"log_every": steps, "eval_every": steps, "save_every": steps}
                settings = schedule(steps) | at_end | {"full_context_share": share, "seed": seed}
                tune(place, recipe, settings, features, folder / "fresh")
                for split, runs in found.items():
                    edits = read(place / "tuned", features / split)
                    runs.setdefault(f"{share:g}", []).append(edits)
                    own, full = (100 * each.sum() / words(features / split).sum() for each in edits)
                    click.echo(f"{share:g}, seed {seed}, {split}: {own:.2f} %, full window {full:.2f} %", err=True)
                if out:
                    keep_edits(out, found)
    for split, runs in found.items():
        click.echo(f"{split}:")
        compare(runs, f"{shares[0]:g}", words(features / split))


def keep_edits(out: Path, found: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]]) -> None:
    """Write each split's edits by clip, as far as there are any."""
    for split, runs in found.items():
        values = {share: [[edits.tolist() for edits in run] for run in of_share] for share, of_share in runs.items()}
        write_json(out / f"{split}.json", values)


if __name__ == "__main__":
    main()
