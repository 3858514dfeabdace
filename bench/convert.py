"""``python -m bench.convert``: does a converted model hear in its own engine what it hears here?

The trained model from scratch gets a window of 30 s, learns it in some steps, and is converted; each engine and each
precision then hears the same test clips as the model itself on the full window. Wants the features, data/raw/test and
models/tuned of a `make repro`, and the extra ``convert``.
"""

import tempfile
from pathlib import Path

import click

from bench.mirror import train, with_values
from stages.asr.mel import MAX_SECONDS
from stages.asr.model import SpeechModel, load_model, save_model
from stages.params import load_params
from stages.pretrained import pretrained
from tools.convert.__main__ import FORMATS
from tools.convert.engines import ENGINES, measure


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/tuned", help="Of the recipe, from scratch.")
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test")
@click.option("--recipe", type=click.Path(path_type=Path), default="params.yaml", help="A whole params.yaml.")
@click.option("--steps", default=60, show_default=True, help="On windows of 30 s.")
@click.option("--clips", default=100, show_default=True)
@click.option(
    "--format", "forms", multiple=True, type=click.Choice(list(FORMATS)), help="Some of them; all without it."
)
def main(model: Path, features: Path, raw: Path, recipe: Path, steps: int, clips: int, forms: tuple[str, ...]) -> None:
    """Train a model with the full window, convert it to every format, and measure each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        speech = train_wide(folder, model, features, recipe, steps)
        for form in forms or FORMATS:
            for precision in FORMATS[form]:
                engine, place = ENGINES[form], folder / f"{form}-{precision}"
                engine.write(speech, place, precision)
                click.echo(f"{form}, {precision}: {measure(speech, engine, place, raw, clips)}")


def train_wide(folder: Path, model: Path, features: Path, recipe: Path, steps: int) -> SpeechModel:
    """The model with a window of 30 s: its weights as they are, the new timestamps' fresh, then trained on it."""
    scratch = load_params(recipe).whisper.scratch.model_dump() | {"seconds": MAX_SECONDS}
    values = load_params(with_values(recipe, folder, "whisper", {"scratch": scratch}))
    wide = pretrained(values.whisper, features / "train", folder / "fresh")
    state = wide.whisper.state_dict()
    for name, weights in load_model(model).whisper.state_dict().items():
        state[name][: len(weights)] = weights  # what a longer window has more of stands at the end
    save_model(wide, folder / "base")
    settings = {
        "full_context_share": 0.6,
        "filled_window_share": 0.7,
        "batch_size": 8,
        "learning_rate": 5e-4,
        "warmup_steps": steps // 6,
        "ctc_weight": 0.0,
        "max_steps": steps,
        "log_every": steps,
        "eval_every": steps,
        "save_every": steps,
    }
    train(folder, with_values(recipe, folder, "train", settings), features, folder / "base", Path())
    return load_model(folder / "tuned")


if __name__ == "__main__":
    main()
