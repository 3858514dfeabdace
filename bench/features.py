"""``python -m bench.features``: features by the notebooks' recipe and by ours, in one run.

The recipe is the one that Whisper notebooks share: ``datasets.map`` with WhisperFeatureExtractor over two processes,
then ``save_to_disk``. Decoding alone, by librosa, is the bound of what any features can cost. Each is timed twice and
the better one counts; compare the ratios, not the seconds of different machines.
"""

import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import datasets
import librosa
from transformers import WhisperFeatureExtractor

from stages.asr.clips import read_clips
from stages.asr.mel import SAMPLE_RATE
from stages.featurize import featurize
from stages.params import Featurize, load_params
from stages.runtime.packs import Packs
from stages.runtime.pool import parallel_map

PROCESSES = 2


@click.command()
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--clips", type=click.Path(path_type=Path), default="data/raw/train", help="A split's raw clips.")
def main(params: Path, clips: Path) -> None:
    """Time three ways through one split."""
    settings = load_params(params).featurize
    rows = read_clips(clips)
    paths = [str(clips / "audio" / clip.audio) for clip in rows]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        seconds = {
            "decoding alone": best_of_two(lambda: decode_only(paths)),
            "ours": best_of_two(lambda: our_features(settings, clips, ours)),
            "notebook": best_of_two(lambda: notebook(paths, theirs)),
        }
        audio = sum(librosa.get_duration(path=path) for path in paths)
        sizes = {"ours": size(ours), "notebook": size(theirs)}
    click.echo(f"\n{len(rows)} clips, {audio / len(rows):.2f} s on average, {PROCESSES} processes")
    click.echo(f"{'':<16}{'s':>8}{'clips/s':>10}{'bytes/s of audio':>18}{'bytes/clip':>12}")
    for name, spent in seconds.items():
        stored = f"{sizes[name] / audio:>18,.0f}{sizes[name] / len(rows):>12,.0f}" if name in sizes else ""
        click.echo(f"{name:<16}{spent:>8.2f}{len(rows) / spent:>10.0f}{stored}")
    click.echo(f"ours is {seconds['notebook'] / seconds['ours']:.1f} times as fast as the notebook's way,")
    click.echo(f"and takes {seconds['ours'] / seconds['decoding alone']:.2f} times as long as decoding alone")


def best_of_two(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)


def decode_only(paths: list[str]) -> None:
    for _ in parallel_map(decode_one, paths, PROCESSES):
        pass


def decode_one(path: str) -> None:
    librosa.load(path, sr=SAMPLE_RATE)


def our_features(settings: Featurize, clips: Path, folder: Path) -> None:
    """The stage, with nothing kept from before."""
    kept = Packs(Path(tempfile.mkdtemp(dir=folder.parent)) / "kept", 10**12)
    featurize(settings, clips, folder, folder.with_suffix(".json"), PROCESSES, kept)


def notebook(paths: list[str], folder: Path) -> None:
    """Padded float32 features of every clip, as an Arrow dataset on disk."""
    rows = datasets.Dataset.from_dict({"path": paths})
    datasets.disable_caching()  # a second run must compute too
    mapped = rows.map(notebook_features, remove_columns=["path"], num_proc=PROCESSES)
    mapped.save_to_disk(folder, num_proc=PROCESSES)


def notebook_features(row: dict) -> dict:
    samples, sample_rate = librosa.load(row["path"], sr=SAMPLE_RATE)
    return {"input_features": extractor()(samples, sampling_rate=sample_rate).input_features[0]}


@cache
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
