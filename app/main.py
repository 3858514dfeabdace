"""``python -m app.main``: the demo, as a page on this computer."""

import ctypes
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run

if TYPE_CHECKING:
    from app.models import Models
    from stages.corpora.examples import Example

# Before gradio and Hugging Face's libraries are imported: the demo tells nobody that it runs.
NO_TELEMETRY = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
NO_TELEMETRY |= {"GRADIO_ANALYTICS_MAX_EVENTS": "100"}  # which it keeps for itself, and goes through at each call
M_ARENA_MAX = -8  # of glibc's malloc.h


@click.command()
@click.option("--model", metavar="NAME", help="The version chosen first, such as tuned@v1.0.0.")
@click.option(
    "--models", type=click.Path(path_type=Path), help="A plain model folder, instead of the repository's versions."
)
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    default="data/raw/test",
    show_default=True,
    help="Clips to click on: a folder with clips.tsv and audio.",
)
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other computers connect.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--share", is_flag=True, help="Make a public link through gradio's servers, for a week.")
def main(
    model: str | None, models: Path | None, examples: Path, params: Path, host: str, port: int, share: bool
) -> int:
    """Open a page that turns speech into text, until Ctrl-C.

    With --models, as in a Space, there is no "Improve it": what people say there would not be kept.
    """
    os.environ.update(NO_TELEMETRY)
    limit_malloc_arenas()
    from app import page, server
    from app.models import folder_models, repository_models
    from stages.corpora.local import data_folder
    from stages.params import load_params

    settings = load_params(params).app
    load_models = folder_models if models else repository_models
    available = load_models(models or Path(), settings.models_in_memory)
    if model:
        available.wanted = [available.version(model).name]
    corpus = None if models or settings.recordings is None else data_folder() / Path(settings.recordings).expanduser()
    with server.private_folder(), tempfile.TemporaryDirectory(prefix="viska-examples-") as folder:
        sounds = find_examples(examples, None if models else params, Path(folder))
        blocks = page.build_page(available, settings, corpus, params, sounds)
        with server.serve_page(blocks, settings, host, port, share) as address:
            click.echo(f"The page is at {address} until Ctrl-C; {available.first} is being loaded.")
            click.echo(f"{load_first_model(available)} is loaded.")
            threading.Event().wait()
    return 0


def limit_malloc_arenas() -> None:
    """Have the threads share their memory: glibc else gives each an arena of its own, which only grows."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 2)


def load_first_model(models: "Models") -> str:
    """Load the first model while people come, so that few wait for it: of those that are wanted the first available.

    The page begins with it from then on. Raises UserError where all are unavailable.
    """
    from stages.runtime.errors import UserError

    for name in models.wanted:
        try:
            models.load(name)
        except UserError as error:
            if name == models.wanted[-1]:
                raise
            models.failed[name] = str(error)
            click.echo(f"{name} is unavailable: {error}", err=True)
        else:
            return name
    raise AssertionError("Models has versions")


def find_examples(split: Path, params: Path | None, spare: Path) -> "list[Example]":
    """The examples in a split's folder; where it is missing, as in a clone whose model was pulled, those that the
    built-in corpus of ``params`` speaks into ``spare``; of another corpus there are none.
    """
    from stages.corpora.examples import read_examples, write_examples
    from stages.params import load_params
    from stages.runtime.errors import UserError

    if found := read_examples(split):
        return found
    download = load_params(params).download if params else None
    if download is None or download.corpora or download.corpus != "synthetic":
        return []
    try:
        write_examples(download.synthetic.seed, spare)
    except UserError as error:
        click.echo(f"there are no examples to click on: {error}", err=True)
    return read_examples(spare)


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])
