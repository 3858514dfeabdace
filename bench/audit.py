"""``python -m bench.audit``: which planted faults `tools.audit` finds in real speech, and what else it lists.

Forty clips of the archive of the recipe `digits` get faults of eight kinds, five each, drawn by a seed. The real
`download` reads the copy, and the real tool audits it. Found is a clip that is listed under a kind which names its
fault; false is one that is listed and has none.
"""

import csv
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import soundfile
import soxr

from stages.asr.mel import SAMPLE_RATE
from stages.corpora.local import locate
from stages.corpora.selection import sentence_key
from stages.params_file import ParamsFile
from tests.support.spoken import SENTENCES, spoken_sentences
from tools.audit.sounds import frame_levels
from tools.recipe import apply_values, recipe_values

RECIPE, ARCHIVE, SHA256 = "digits", "download.common_voice.archive", "download.common_voice.sha256"
EACH = 5
ODD = ("\u200b{}", "{} \N{GRINNING FACE}", "\N{CYRILLIC CAPITAL LETTER O}{}", "<b>{}</b>", "{}\u00c3\u00a5")
KINDS = {  # of fault, and what the audit may call them
    "swapped texts": {"unlikely text", "speaking rate"},
    "silence": {"silence"},
    "clipping": {"clipping"},
    "duplicate": {"duplicate audio"},
    "wrong language": {"other language"},
    "cut audio": {"cut off", "speaking rate", "unlikely text"},
    "band limit": {"narrow band"},
    "odd characters": {"odd characters"},
}


@dataclass
class Row:
    """A line of a release's table; values: by column."""

    table: str
    values: dict[str, str]

    @property
    def id(self) -> str:
        return Path(self.values["path"]).stem


class Planter:
    """A copy of a release that faults are planted into."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random = root, np.random.default_rng(seed)
        self.tables = {name: read_table(root / f"{name}.tsv") for name in ("train", "dev", "test")}
        self.free = [row for rows in self.tables.values() for row in rows]
        self.planted: dict[str, str] = {}
        self.sources: set[str] = set()  # of duplicates, which have no fault themselves

    def plant(self) -> None:
        """All kinds, in their order."""
        self.swap_texts()
        self.each("silence", self.silence)
        self.each("clipping", lambda audio, number: clipped(audio, 10 + 3 * number))
        self.duplicate()
        self.wrong_language()
        self.each("cut audio", self.cut, lambda row: len(row.values["sentence"].split()) > 1)
        self.each("band limit", lambda audio, number: narrowed(audio))
        for number, row in enumerate(self.draw("odd characters")):
            row.values["sentence"] = ODD[number].format(row.values["sentence"])
        for name, rows in self.tables.items():
            write_table(self.root / f"{name}.tsv", rows)

    def draw(self, kind: str, fits: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        """Five clips without a fault."""
        fitting = [row for row in self.free if fits(row)]
        rows = [fitting[at] for at in self.random.choice(len(fitting), EACH, replace=False)]
        self.planted |= {row.id: kind for row in rows}
        self.free = [row for row in self.free if row.id not in self.planted]
        return rows

    def each(
        self, kind: str, change: Callable[[np.ndarray, int], np.ndarray], fits: Callable[[Row], bool] = lambda row: True
    ) -> None:
        """Change the audio of five clips."""
        for number, row in enumerate(self.draw(kind, fits)):
            self.write(row, change(self.read(row), number))

    def read(self, row: Row) -> np.ndarray:
        samples, self.rate = soundfile.read(self.root / "clips" / row.values["path"], dtype="float32")
        return samples

    def write(self, row: Row, samples: np.ndarray) -> None:
        soundfile.write(self.root / "clips" / row.values["path"], samples, self.rate, format="MP3")

    def swap_texts(self) -> None:
        """Each gets the next one's, all of them different."""
        rows = self.draw("swapped texts")
        texts = [row.values["sentence"] for row in rows]
        while len({sentence_key(text) for text in texts}) < EACH:
            for row in rows:
                del self.planted[row.id]
            rows = self.draw("swapped texts")
            texts = [row.values["sentence"] for row in rows]
        for row, text in zip(rows, [*texts[1:], texts[0]], strict=True):
            row.values["sentence"] = text

    def silence(self, audio: np.ndarray, number: int) -> np.ndarray:
        """Digital silence once, then noise from -80 to -35 dB."""
        level = 0.0 if number == 0 else 10 ** ((-95 + 15 * number) / 20)
        return (level * self.random.standard_normal(len(audio))).astype(np.float32)

    def duplicate(self) -> None:
        """Clips of validation and test become clips of train, encoded anew, later and louder or softer."""
        train = {id(row) for row in self.tables["train"]}
        for row in self.draw("duplicate", lambda row: id(row) not in train):
            sources = [one for one in self.tables["train"] if one.id not in self.planted]
            source = sources[self.random.integers(len(sources))]
            lead = np.zeros(self.random.integers(self.rate // 2))
            gain = 10 ** (self.random.uniform(-8, 3) / 20)
            self.write(row, gain * np.concatenate([lead, self.read(source)]))
            row.values["sentence"] = source.values["sentence"]
            self.sources.add(source.id)
        self.free = [row for row in self.free if row.id not in self.sources]

    def wrong_language(self) -> None:
        """Swedish, spoken by espeak-ng."""
        rows = self.draw("wrong language")
        for row, text, audio in zip(rows, SENTENCES, spoken_sentences(), strict=True):
            row.values["sentence"] = text
            self.write(row, soxr.resample(audio, SAMPLE_RATE, self.rate))

    def cut(self, audio: np.ndarray, number: int) -> np.ndarray:
        """Its beginning, up to a loud moment in the middle."""
        levels = frame_levels(audio, self.rate)
        loud = np.flatnonzero(levels > np.percentile(levels, 95) - 10)
        middle = loud[np.argmin(np.abs(loud - (loud[0] + loud[-1]) / 2))]
        return audio[: (middle + 1) * self.rate // 100]


def clipped(audio: np.ndarray, gain: float) -> np.ndarray:
    """As recorded so many dB too loud."""
    return 0.9 * np.clip(audio / np.abs(audio).max() * 10 ** (gain / 20), -1, 1)


def narrowed(audio: np.ndarray) -> np.ndarray:
    """As recorded at an eighth of the rate, 4 kHz of 32."""
    return soxr.resample(soxr.resample(audio, 8, 1), 1, 8)[: len(audio)]


def read_table(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Row(path.stem, row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def write_table(path: Path, rows: list[Row]) -> None:
    lines = ["\t".join(rows[0].values), *("\t".join(row.values.values()) for row in rows), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


@click.command()
@click.option("--model", help="A model that knows the speech: models/tuned, or a pin.")
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Leave the audited corpus and its page there.")
def main(model: str | None, seed: int, keep: Path | None) -> None:
    """Plant faults, audit, count."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        params = folder / "params.yaml"
        params.write_bytes(Path("params.yaml").read_bytes())
        values = recipe_values(Path("recipes"), RECIPE)
        archive = locate(str(values[ARCHIVE]), "It is real speech, for the recipe digits: put it there")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "release", filter="data")
        (table,) = (folder / "release").glob("*/*/train.tsv")
        planter = Planter(table.parent, seed)
        planter.plant()
        apply_values(params, values | {ARCHIVE: "release", SHA256: None})
        click.echo(f"{ParamsFile(params).path}: {len(planter.planted)} faults planted with seed {seed}", err=True)
        raw = folder / "raw"
        command = [sys.executable, "-m", "stages", "download", "--params", params, "--raw", raw]
        command += ["--dropped", folder / "dropped.tsv", "--details", folder / "download.json"]
        subprocess.run(command, check=True, env=os.environ | {"VISKA_DATA": str(folder)}, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "tools.audit", "--raw", raw, "--params", params, "--json"]
        command += ["--model", model] if model else []
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if keep:
            (folder / "audit.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
            (folder / "planted.json").write_text(json.dumps(planter.planted, indent=1))
    report(planter, found["findings"])


def report(planter: Planter, findings: list[dict]) -> None:
    """Found and missed by kind of fault, and what was listed for nothing."""
    kinds: dict[str, set[str]] = {}
    for one in findings:
        kinds.setdefault(one["clip"], set()).add(one["kind"])
    named = Counter(kind for clip, kind in planter.planted.items() if kinds.get(clip, set()) & KINDS[kind])
    for kind in KINDS:
        faulty = [clip for clip, fault in planter.planted.items() if fault == kind]
        missed = ", ".join(clip for clip in faulty if not kinds.get(clip, set()) & KINDS[kind])
        click.echo(f"{kind:<16}{named[kind]} of {EACH} found{f'; missed {missed}' if missed else ''}")
    false = {clip: what for clip, what in kinds.items() if clip not in planter.planted and clip not in planter.sources}
    click.echo(
        f"all: {named.total()} of {len(planter.planted)} found; {len(kinds)} clips listed, {len(false)} of them false"
    )
    for clip, what in sorted(false.items()):
        click.echo(f"  false: {clip} ({', '.join(sorted(what))})")


if __name__ == "__main__":
    main()
