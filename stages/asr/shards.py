"""Features at rest: deterministic zips of cropped log-mels, readable clip by clip.

A shard ``00000.zip`` holds ``index.json`` and one member a clip, all stored, names sorted, dates fixed, so that the
same clips give the same bytes. The index is {"format": 1, "dtype", "n_mels", "clips": [row, …]} with rows of id, text,
speaker, known_speaker, seconds, n_frames and peak, the clip's greatest value. A member is the raw array,
(n_frames, n_mels) in C order: little-endian float16, or uint8 in even steps from mel_floor to peak.
"""

import hashlib
import json
import zipfile
import zlib
from array import array
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.asr.mel import LOG_MEL_RANGE, LOG_MEL_SILENCE
from stages.runtime.errors import UserError
from stages.runtime.files import written_aside
from stages.runtime.storage import Folder, LocalFolder, open_folder

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("uint8"), "float16": np.dtype("<f2")}
HEADER = 30  # bytes before a member's name, which its data follows
FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


@dataclass(frozen=True, slots=True)
class Entry:
    """What a shard's index says of one clip."""

    id: str
    text: str
    speaker: str
    known_speaker: str
    seconds: float
    n_frames: int
    peak: float


def pack_mel(mel: np.ndarray, dtype: str) -> tuple[bytes, float]:
    """Pack (n_mels, n_frames) float64 scaled log-mel; returns the bytes and the peak to keep beside them.

    The peak is rounded first, so that its last bits, which differ between processors, reach no shard.
    """
    peak = round(float(mel.max()), 6)
    if dtype == "float16":
        return mel.T.astype(DTYPES[dtype]).tobytes(), peak
    low, step = quantisation(peak)
    return np.rint((mel.T - low) / step).clip(0, 255).astype(np.uint8).tobytes(), peak


def unpack_mel(data: bytes, entry: Entry, dtype: str, n_mels: int) -> np.ndarray:
    """Unpack one clip: (n_mels, n_frames) float32 scaled log-mel, within half a step of what was packed."""
    stored = np.frombuffer(data, DTYPES[dtype]).reshape(entry.n_frames, n_mels).T
    if dtype == "float16":
        return stored.astype(np.float32)
    low, step = quantisation(entry.peak)
    return (low + stored * step).astype(np.float32)


def quantisation(peak: float) -> tuple[float, float]:
    """The value of 0 and the step of the 8-bit code; a step is at most LOG_MEL_RANGE / 255, 0.3 dB."""
    low = max(peak - LOG_MEL_RANGE, LOG_MEL_SILENCE)
    return low, max(peak - low, 1e-6) / 255


def write_shard(path: Path, dtype: str, n_mels: int, clips: list[tuple[Entry, bytes]]) -> None:
    """Write one shard, under a temporary name first."""
    clips = sorted(clips, key=lambda clip: clip[0].id)
    rows = ",\n".join(json.dumps(asdict(entry), ensure_ascii=False) for entry, _ in clips)
    index = f'{{"format": {FORMAT}, "dtype": "{dtype}", "n_mels": {n_mels}, "clips": [\n{rows}\n]}}\n'
    with written_aside(path) as part, zipfile.ZipFile(part, "w") as archive:
        archive.writestr(zipfile.ZipInfo("index.json", FIXED_DATE), index)
        for entry, data in clips:
            archive.writestr(zipfile.ZipInfo(entry.id, FIXED_DATE), data)


class Shards:
    """The clips of a folder of shards, in the order of the files and of their indexes.

    folder: a path, or a URL of object storage. entries: list[Entry]; n_mels: int; dtype: str; digests: of the shards,
    by name. Features are read one clip at a time, on demand. Raises UserError where the folder contains no shard, or
    one that is damaged or unlike the first.
    """

    def __init__(self, folder: str | Path):
        self.folder = open_folder(folder)
        names = self.folder.names(".zip")
        if not names:
            raise UserError(f"{folder} contains no shards: {self.folder.missing}")
        self.entries: list[Entry] = []
        self.digests: dict[str, str] = {}
        self._names: list[str] = []  # of each clip's shard
        self._places = array("Q")  # where each clip's bytes begin there, and their CRC-32
        kinds = set()
        for name, shard in zip(names, self.folder.map(partial(read_shard, self.folder), names), strict=True):
            kinds.add((shard.index["dtype"], shard.index["n_mels"]))
            self.entries += [Entry(**row) for row in shard.index["clips"]]
            self.digests[name] = shard.digest
            self._names += [name] * len(shard.places)
            self._places.extend(number for place in shard.places for number in place)
        if len(kinds) > 1:
            raise UserError(f"{folder} mixes shards of {sorted(kinds)}: run the featurize stage again")
        self.dtype, self.n_mels = kinds.pop()

    def __len__(self) -> int:
        return len(self.entries)

    def mel(self, number: int) -> np.ndarray:
        """The features of one clip: (n_mels, n_frames) float32 scaled log-mel, by one read."""
        name, entry = self._names[number], self.entries[number]
        start, checksum = self._places[2 * number : 2 * number + 2]
        data = self.folder.read(name, start, entry.n_frames * self.n_mels * DTYPES[self.dtype].itemsize)
        if zlib.crc32(data) != checksum:
            raise UserError(f"clip {entry.id} in {self.folder.place(name)} is damaged: {self.folder.damaged}")
        return unpack_mel(data, entry, self.dtype, self.n_mels)


@dataclass(frozen=True)
class Shard:
    """What is read of a shard before its clips.

    places: of each clip where its bytes begin, and their CRC-32. digest: SHA-256 of the index and of each member's
    name, size and CRC-32, 64 hex digits. Any text, and any clip that another recording or setting made, gives another
    one; a clip that somebody forged to have the same CRC-32 does not. Reading a clip holds its bytes against that.
    """

    index: dict[str, Any]
    places: list[tuple[int, int]]
    digest: str


def read_index(path: Path) -> dict[str, Any]:
    """A shard's index, checked for its format."""
    return read_shard(LocalFolder(path.parent), path.name).index


def read_shard(folder: Folder, name: str) -> Shard:
    """A shard's index and directory; raises UserError where it is damaged, or of another format."""
    place = folder.place(name)
    try:
        with folder.open(name) as file, zipfile.ZipFile(file) as archive:
            about = archive.getinfo("index.json")
            file.seek(data_start(about))
            text = file.read(about.file_size)
            if zlib.crc32(text) != about.CRC:
                raise ValueError("its index is damaged")
            digest = hashlib.sha256(text)
            for member in archive.infolist():
                digest.update(f"{member.filename} {member.file_size} {member.CRC}\n".encode())
            index: dict[str, Any] = json.loads(text)
            members = [archive.getinfo(row["id"]) for row in index.get("clips", [])]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{place} is not a readable shard ({error}): {folder.damaged}") from None
    if index.get("format") != FORMAT:
        raise UserError(f"{place} has format {index.get('format')}, expected {FORMAT}: run the featurize stage again")
    return Shard(index, [(data_start(member), member.CRC) for member in members], digest.hexdigest())


def data_start(member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin."""
    return member.header_offset + HEADER + len(member.filename.encode())
