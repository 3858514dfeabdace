"""``python -m bench.context``: may the encoder see a clip's own length, where the base knows full windows only?

That is the case of OpenAI's models. A base is first trained from scratch on full windows, with another seed's changes
to the clips; then it is fine-tuned on full windows, on full windows most of which several clips fill, and at the clips'
own length with margins of silence after them or with fewer full windows between, each with several seeds. Each result
is read at the context that it was trained for and on the full window; the difference to the first way is paired by clip
over all seeds. A step that is not on full windows with a clip each takes whisper-small a fraction of the time, which
`bench.train` says: ``--way full 400 --way "clip, filled" 2400`` gives both as much. Wants the features of a `make
repro`, of whatever recipe is set.
"""

import tempfile
from pathlib import Path

import click
import numpy as np

from bench.mirror import train, with_values
from stages.asr.decoding import decode
from stages.asr.model import load_model
from stages.asr.scoring import clip_edits, word_errors
from stages.asr.shards import Shards
from stages.asr.significance import percentile_interval, resampled_sums, sign_flip_p
from stages.asr.text import normalise
from stages.params import load_params
from stages.pretrained import pretrained
from stages.runtime.files import write_json

BATCH = 32
MARGINS = (0.0, 0.5, 1.0)  # seconds
WAYS: dict[str, dict[str, object]] = {
    "full": {"context": "full", "filled_window_share": 0.0},
    "full, filled": {"context": "full", "filled_window_share": 0.9},
    **{f"clip + {margin:g} s": {"context": "clip", "margin_seconds": margin} for margin in MARGINS},
    "clip, few full": {"context": "clip", "full_context_share": 0.05, "filled_window_share": 0.5},
    "clip, filled": {"context": "clip", "full_context_share": 0.1, "filled_window_share": 1.0},
}
RATE = 3e-4  # of fine-tuning
SAMPLES, SEED = 2000, 1  # of the bootstrap


@click.command()
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--recipe", type=click.Path(path_type=Path), default="params.yaml", help="A whole params.yaml.")
@click.option("--base-steps", default=1000, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=(click.Choice(list(WAYS)), int),
    default=[(way, 500) for way in WAYS],
    help="One way to fine-tune and its steps; each against the first.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to keep the edits by clip in.")
def main(
    features: Path,
    recipe: Path,
    base_steps: int,
    seeds: int,
    ways: tuple[tuple[str, int], ...],
    out: Path | None,
) -> None:
    """Fine-tune one base at several contexts, and compare."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = train_base(folder, recipe, features, base_steps)
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {way: [] for way, _ in ways}
        for seed in range(1, seeds + 1):
            for way, steps in ways:
                settings = schedule(steps) | WAYS[way] | {"seed": seed, "learning_rate": RATE, "optimizer": "adamw"}
                place = folder / f"{way}-{seed}"
                tune(place, recipe, settings, features, base)
                found[way].append(read(place / "tuned", features / "test"))
                own, full = (100 * edits.sum() / words(features / "test").sum() for edits in found[way][-1])
                click.echo(f"{way}, seed {seed}: {own:.2f} %, on the full window {full:.2f} %", err=True)
    compare(found, ways[0][0], words(features / "test"))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "edits.json", {way: [run[0].tolist() for run in runs] for way, runs in found.items()})


def schedule(steps: int) -> dict[str, object]:
    """Settings of a run that is read at its end."""
    quarter = max(steps // 4, 1)
    every = {"log_every": quarter, "eval_every": quarter, "save_every": steps // quarter * quarter}
    return {"max_steps": steps, "warmup_steps": steps // 10, "patience": None} | every


def train_base(folder: Path, recipe: Path, features: Path, steps: int) -> Path:
    """A model from scratch that has seen full windows only, each with one clip, and knows it."""
    values = load_params(recipe)
    pretrained(values.whisper, features / "train", folder / "fresh")
    settings = schedule(steps) | {"context": "full", "filled_window_share": 0.0, "seed": 101}
    tune(folder / "base", recipe, settings, features, folder / "fresh")
    return folder / "base" / "tuned"


def tune(place: Path, recipe: Path, settings: dict[str, object], features: Path, base: Path) -> None:
    """Train from a base into place/tuned."""
    place.mkdir(parents=True)
    train(place, with_values(recipe, place, "train", settings), features, base, Path())


def read(model: Path, test: Path) -> tuple[np.ndarray, np.ndarray]:
    """Word edits of each clip: at the context that the model was trained for, and on the full window."""
    speech, shards = load_model(model), Shards(test)
    references = [normalise(entry.text) for entry in shards.entries]
    found = []
    for context in (speech.context, "full"):
        speech.context = context
        heard = [normalise(text) for text in decode(speech, shards, BATCH)]
        found.append(clip_edits(word_errors(references, heard)))
    return found[0], found[1]


def compare(found: dict[str, list[tuple[np.ndarray, np.ndarray]]], against: str, said: np.ndarray) -> None:
    """Print each way's WER over its runs, as ``read`` gives their edits, and its difference to one of them."""
    for way, runs in found.items():
        for at, context in enumerate(("its own context", "the full window")):
            edits, others = (np.sum([run[at] for run in each], axis=0) for each in (runs, found[against]))
            sums = resampled_sums(np.stack([edits - others, len(runs) * said], axis=1), SAMPLES, SEED)
            low, high = percentile_interval(100 * sums[:, 0] / sums[:, 1])
            rate, difference = (100 * each.sum() / (len(runs) * said.sum()) for each in (edits, edits - others))
            click.echo(
                f"{way:14} on {context}: WER {rate:6.2f} %, against {against} {difference:+.2f} ({low:+.2f} to"
                f" {high:+.2f}), p = {sign_flip_p(edits - others):.3f}"
            )


def words(test: Path) -> np.ndarray:
    """Words of each clip's text."""
    return np.array([len(normalise(entry.text).split()) for entry in Shards(test).entries])


if __name__ == "__main__":
    main()
