"""Small releases of Common Voice: tables and clips as files, and what collect makes of them."""

import io
import tarfile
from collections import Counter
from functools import cache
from pathlib import Path

import soundfile

from stages.asr.clips import SPLITS
from stages.corpora import common_voice
from stages.params import CommonVoice, Tables, ValidationTables
from tests.support.tones import sound

COLUMNS = [
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
]
OLD_COLUMNS = [
    name.replace("accents", "accent") for name in COLUMNS if name not in ("sentence_id", "sentence_domain", "variant")
]
NAME = "cv-corpus-25.0-2026-03-09-sv-SE.tar.gz"
ROOT = "cv-corpus-25.0-2026-03-09/sv-SE"


@cache
def tone(number: int, seconds: float = 0.5) -> bytes:
    """An mp3 whose pitch tells its number."""
    file = io.BytesIO()
    soundfile.write(file, sound(number, seconds), 16_000, format="MP3")
    return file.getvalue()


def row(number: int, speaker: str, **values: str) -> dict[str, str]:
    return {"client_id": speaker, "path": f"cv_{number}.mp3", "sentence": f"Mening nummer {number}."} | values


class Release:
    """Tables and clips, to be written as Common Voice has them."""

    def __init__(self, **tables: list[dict]):
        self.tables = {"train": [], "dev": [], "test": []} | tables
        rows = [row for table in self.tables.values() for row in table]
        self.clips = {row["path"]: tone(int(row["path"][3:-4])) for row in rows}
        self.columns, self.line_end, self.extra = COLUMNS, "\n", {}

    def files(self) -> dict[str, bytes]:
        tables = {
            f"{ROOT}/{name}.tsv": self.line_end.join(
                ["\t".join(self.columns)]
                + [row.get("line") or "\t".join(row.get(name, "") for name in self.columns) for row in rows]
                + [""]
            ).encode()
            for name, rows in self.tables.items()
        }
        return tables | {f"{ROOT}/clips/{name}": data for name, data in self.clips.items()}

    def pack(self, data: Path, backwards: bool = False) -> Path:
        """Write it as a .tar.gz into the user's data folder."""
        path = data / NAME
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name, content in sorted(self.files().items(), reverse=backwards):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for name, target in self.extra.items():
                member = tarfile.TarInfo(f"{ROOT}/clips/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
        return path

    def unpack(self, folder: Path) -> Path:
        """Write it as a folder."""
        for name, content in self.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder / ROOT


def plain(n_train: int = 6, **tables: list[dict]) -> Release:
    """Clips 0 to 5 and so on in train, 100 and 101 in dev, 200 and 201 in test, with speakers of their own."""
    train = [row(number, f"speaker {number % 3}") for number in range(n_train)]
    dev = [row(number, f"dev {number}") for number in (100, 101)]
    test = [row(number, f"test {number}") for number in (200, 201)]
    return Release(**({"train": train, "dev": dev, "test": test} | tables))


def settings(**values) -> CommonVoice:
    """The section of params.yaml, with ``train=["other"]`` for tables and ``train_limit=5``."""
    tables = {split: values.pop(split, [split]) for split in SPLITS}
    types = {"train": Tables, "validation": ValidationTables, "test": Tables}
    parts = {
        split: section(tables=tables[split], limit=values.pop(f"{split}_limit", None))
        for split, section in types.items()
    }
    rest = {
        "archive": NAME,
        "release": None,
        "sha256": None,
        "locale": None,
        "held_out_speakers": None,
        "allow_overlap": None,
        "min_seconds": 0.2,
        "max_seconds": 1.5,
        "seed": 1,
    }
    return CommonVoice(**parts, **(rest | values))


def collect(data: Path, **values) -> tuple[dict[str, list], Counter, Path]:
    """Clips by split, drops by split and reason, and the folder; checks what always holds."""
    folder = data.parent / f"raw-{len(list(data.parent.glob('raw-*')))}"
    clips, drops = common_voice.collect(settings(**values), folder, 1)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {f"{split}/audio/{clip.audio}" for split in SPLITS for clip in clips[split]}
    ids = [clip.id for split in SPLITS for clip in clips[split]]
    assert len(ids) == len(set(ids))
    assert all(drop.split in SPLITS and drop.id and drop.reason and drop.detail for drop in drops)
    assert not [value for drop in drops for value in (drop.id, drop.detail) if "\t" in value or "\n" in value]
    assert not [drop for drop in drops if str(data.parent) in drop.detail]  # the list is the same on every machine
    return clips, Counter((drop.split, drop.reason) for drop in drops), folder
