"""Features at rest: deterministic zips of cropped log-mels, readable clip by clip.

A shard ``00000.zip`` holds ``index.json`` and one member a clip, all stored, names sorted, dates fixed, so that the
same clips give the same bytes. The index is {"format": 1, "dtype", "n_mels", "clips": [row, …]} with rows of id, text,
speaker, known_speaker, seconds, n_frames and peak, the clip's greatest value. A member is the raw array,
(n_frames, n_mels) in C order: little-endian float16, or uint8 in even steps from mel_floor to peak.
"""

import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.asr.mel import LOG_MEL_RANGE, LOG_MEL_SILENCE
from stages.runtime.errors import UserError
from stages.runtime.files import written_aside

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("uint8"), "float16": np.dtype("<f2")}
FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


@dataclass(frozen=True)
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

    entries: list[Entry]; n_mels: int; dtype: str. Features are read one clip at a time, on demand. Raises UserError
    where the folder contains no shard, or one that is damaged or unlike the first.
    """

    def __init__(self, folder: Path):
        paths = sorted(Path(folder).glob("*.zip"))
        if not paths:
            raise UserError(f"{folder} contains no shards: run the featurize stage, or `dvc pull`")
        indexes = [read_index(path) for path in paths]
        kinds = {(index["dtype"], index["n_mels"]) for index in indexes}
        if len(kinds) > 1:
            raise UserError(f"{folder} mixes shards of {sorted(kinds)}: run the featurize stage again")
        self.dtype, self.n_mels = kinds.pop()
        self.entries = [Entry(**row) for index in indexes for row in index["clips"]]
        self._places = [path for path, index in zip(paths, indexes, strict=True) for _ in index["clips"]]
        self._open: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def mel(self, number: int) -> np.ndarray:
        """The features of one clip: (n_mels, n_frames) float32 scaled log-mel."""
        path, entry = self._places[number], self.entries[number]
        key = (os.getpid(), path)  # a forked data loader must not share its parent's file position
        if key not in self._open:
            self._open[key] = zipfile.ZipFile(path)
        try:
            return unpack_mel(self._open[key].read(entry.id), entry, self.dtype, self.n_mels)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise UserError(
                f"clip {entry.id} in {path} is damaged ({error}): delete the file and run `dvc checkout`"
            ) from None


def read_index(path: Path) -> dict[str, Any]:
    """A shard's index, checked for its format."""
    try:
        with zipfile.ZipFile(path) as archive:
            index: dict[str, Any] = json.loads(archive.read("index.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable shard ({error}): delete it and run `dvc checkout`") from None
    if index.get("format") != FORMAT:
        raise UserError(f"{path} has format {index.get('format')}, expected {FORMAT}: run the featurize stage again")
    return index
