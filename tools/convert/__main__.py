"""``python -m tools.convert ctranslate2|ggml|onnx``: a version of the model for another engine, and its WER there."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.runtime.progress import note

FORMATS = {  # the precisions whose texts hold (bench/README.md), the usual one first
    "ctranslate2": ("float32", "float16"),
    "ggml": ("float16",),
    "onnx": ("float32",),
}


@click.command()
@click.argument("form", metavar="ctranslate2|ggml|onnx", type=click.Choice(list(FORMATS)))
@click.option("--model", "name", metavar="NAME", help="tuned@v1.0.0, or tuned, the workspace's; else the newest pin.")
@click.option("--precision", help="Of the weights, for ctranslate2 float32 or float16.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write, a new one.  [default: build/convert/…]")
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test", show_default=True)
@click.option("--clips", type=click.IntRange(0), default=100, show_default=True, help="Of those, to measure WER on.")
def main(form: str, name: str | None, precision: str | None, out: Path | None, raw: Path, clips: int) -> None:
    """Convert a version of the model for faster-whisper (ctranslate2), whisper.cpp (ggml) or transformers.js (onnx).

    Its WER in that engine is measured on test clips, beside its own on the same windows of 30 s.
    """
    precision = precision or FORMATS[form][0]
    if precision not in FORMATS[form]:
        raise UserError(f"--precision {precision}: {form} has {', '.join(FORMATS[form])}")
    if out and out.exists():
        raise UserError(f"{out} exists: give a new folder with --out")

    from stages.asr.model import load_model  # seconds to import
    from stages.versioning.pins import Repository
    from tools.convert.engines import ENGINES, draw_sample, measure
    from tools.publish.release import choose_version

    engine = ENGINES[form]
    measured = clips > 0 and (raw / "clips.tsv").exists()
    engine.check_installed(measured)
    repository = Repository(Path().resolve())
    version = choose_version(repository.versions(), name)
    model = load_model(repository.folder(version))
    engine.check_window(model)
    out = out or Path("build/convert", form)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as aside:
        engine.write(model, Path(aside, "new"), precision)
        shutil.rmtree(out, ignore_errors=True)  # ours, of an earlier time
        Path(aside, "new").replace(out)
    click.echo(f"{out}: {version.name} for {engine.name}, {precision}, {folder_size(out) / 1e6:.1f} MB")
    if measured:
        click.echo(str(measure(model, engine, out, draw_sample(model, raw, clips))))
    elif clips:
        note(f"{raw} is not here: the WER in {engine.name} was not measured")


def folder_size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
