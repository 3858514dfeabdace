"""What people read aloud or correct, kept as clips of a ``folder`` corpus that the pipeline can train on.

recordings/
  recordings.tsv   path, text, speaker, source, consent
  clips/           the audio as it came
  .lock            held while a clip is added
"""

import fcntl
import io
import math
import re
import shlex
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from app.sentences import SENTENCES
from stages.asr.clips import clean_text
from stages.asr.mel import MAX_SECONDS, SAMPLE_RATE
from stages.asr.recording import open_recording
from stages.asr.text import normalise
from stages.corpora import folder as corpora
from stages.corpora.local import data_folder
from stages.corpora.selection import check_clip, read_tsv, suffix
from stages.params import Download, load_params
from stages.params_file import ParamsFile, recordings_read
from stages.runtime.errors import UserError
from stages.runtime.files import write_table

TABLE = "recordings.tsv"
TABLE_COLUMNS = ["path", "text", "speaker", "source", "consent"]
READ_ALOUD, CORRECTED = "read aloud", "corrected"  # where a clip's text comes from
MIN_SECONDS = 0.3
MAX_CHARACTERS = 448  # of a text: Whisper's labels hold so many tokens, and few are shorter than a letter
FORMULA_SIGNS = "=+-@ "  # that begin a formula, where somebody opens the table in a spreadsheet, and are never spoken
SPEAKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}")


@dataclass(frozen=True)
class Saved:
    """A clip that was added. n_clips: that the folder now holds.

    command: what makes the pipeline train on the folder; None where params.yaml names it already, and now pins what it
    holds, so that the next ``dvc repro`` notices.
    """

    n_clips: int
    command: str | None


def save_clip(folder: Path, audio: Path, text: str, speaker: str, source: str, consent: str, params: Path) -> Saved:
    """Add one clip to the corpus in ``folder``, which is made where it is missing, and pin it in params.yaml.

    speaker: a random id that a person's browser keeps, so that nobody ends in two splits; source: READ_ALOUD or
    CORRECTED; consent: the words that the person agreed to.
    Several may save at once. The audio is there before the table names it, and the table is replaced whole.
    Raises UserError where the clip would be useless, or cannot be written.
    """
    assert source in (READ_ALOUD, CORRECTED)
    download = load_params(params).download
    if not clean_line(consent):
        raise UserError("The recording was not saved: agree first that it may be used")
    if not SPEAKER_ID.fullmatch(speaker):
        raise UserError("The recording was not saved: the speaker has no valid id: reload the page")
    text = validated_text(text)
    check_audio(audio)
    try:
        read_recordings(folder)  # which refuses somebody's own corpus before anything is made in it
        with lock_folder(folder):
            rows = read_recordings(folder)
            name = f"clips/{uuid.uuid4().hex}{suffix(audio.name)}"
            copy_aside(audio, folder / name)
            rows.append([name, text, speaker, source, clean_line(consent)])
            try:
                write_table(folder / TABLE, TABLE_COLUMNS, rows)
            except BaseException:  # a disk that is full: no clip without its row
                (folder / name).unlink()
                raise
            if not (keys := digest_keys(folder, download)):
                return Saved(len(rows), training_command(folder))
            pin_digest(folder, params, keys)
            return Saved(len(rows), None)
    except OSError as error:
        raise UserError(f"The recording was not saved: {folder} cannot be written: {error.strerror}") from None


def sentences_to_read(folder: Path, language: str, speaker: str) -> list[str]:
    """Sentences to read aloud, those first that this speaker, and then that anyone, has read least often."""
    rows = [(text, reader) for _, text, reader, *_ in read_recordings(folder)]
    read, read_here = Counter(text for text, _ in rows), Counter(text for text, reader in rows if reader == speaker)
    return sorted(SENTENCES.get(language, ()), key=lambda text: (read_here[text], read[text]))


def clean_line(text: str) -> str:
    """Text as a table holds it: NFC, one line, no control characters, and no surrogates, which no file can hold."""
    return clean_text("".join(char for char in text if char.isspace() or category(char) not in ("Cc", "Cs")))


def validated_text(text: str) -> str:
    """The text as it is kept; raises UserError where it says nothing, or too much for one clip."""
    text = clean_line(text).lstrip(FORMULA_SIGNS)
    if not normalise(text):
        raise UserError("The recording was not saved: write what is said in it")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"The recording was not saved: its text has {len(text)} characters, and Whisper learns from at most"
            f" {MAX_CHARACTERS}: save a shorter piece"
        )
    return text


def check_audio(audio: Path) -> None:
    """Raises UserError where the download stage would drop a clip: it cannot be read, is too short or too long."""
    with open_recording(audio, math.inf) as recording:  # in blocks, for a small file can hold hours
        n_samples = 0
        for block in recording.blocks():
            n_samples += len(block)
            if n_samples > MAX_SECONDS * SAMPLE_RATE:
                raise UserError(
                    f"The recording was not saved: it lasts more than {MAX_SECONDS} s, and Whisper takes no more at"
                    " once: save a shorter piece"
                )
    if problem := check_clip(audio, MIN_SECONDS, MAX_SECONDS):
        raise UserError(f"The recording was not saved: it is {problem[0]} ({problem[1]}): record it again")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, against other threads and processes; makes it where it is missing."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_recordings(folder: Path) -> list[list[str]]:
    """The table's rows, none where there is no table yet.

    Raises UserError where the folder holds another corpus, or the table was changed in a way that loses clips.
    """
    tables = [
        path
        for path in folder.glob("*")
        if path.suffix.lower() in corpora.READERS and path.name[0] != "." and path.is_file()
    ]
    for path in tables:
        if path.name != TABLE:
            raise UserError(f"{folder} holds another corpus ({path.name}): name an empty folder in app.recordings")
    if not tables:
        return []
    with (folder / TABLE).open("rb") as file:
        header, lines = read_tsv(file)
        found = list(lines)
    rows = [values for _, values in found if isinstance(values, list)]
    faults = [(number, fault) for number, fault in found if isinstance(fault, str)]
    if header != TABLE_COLUMNS or faults:
        number, fault = faults[0] if faults else (1, f"{', '.join(header)}, expected {', '.join(TABLE_COLUMNS)}")
        raise UserError(f"{folder / TABLE} line {number}: {fault}: fix it, or move the folder away")
    return rows


def copy_aside(audio: Path, target: Path) -> None:
    """Copy a file under a hidden name first, which the corpus does not count."""
    part = target.with_name(f".{target.name}")
    try:
        shutil.copyfile(audio, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def digest_keys(folder: Path, download: Download) -> list[str]:
    """Where in params.yaml its digest stands; nowhere, where the pipeline does not read this folder."""
    read = {key: data_folder() / Path(path).expanduser() for key, path in recordings_read(download).items()}
    return [key for key, path in read.items() if path.resolve() == folder.resolve()]


def training_command(folder: Path) -> str:
    """The command after which the pipeline trains on the folder."""
    inside = folder.resolve().parent == data_folder().resolve()
    path = shlex.quote(folder.name if inside else str(folder.resolve()))
    return f"python -m tools.recipe set --set download.corpus=folder --set download.folder.path={path}"


def pin_digest(folder: Path, params: Path, keys: list[str]) -> None:
    """Write the folder's digest into params.yaml; raises UserError, with the digest, where that is not possible."""
    with redirect_stderr(io.StringIO()):  # a bar for each clip would fill the app's terminal
        digest = corpora.recordings_digest(folder)
    try:
        file = ParamsFile(params)
        for key in keys:
            file.set(key, digest)
        file.save()
    except (UserError, OSError):
        raise UserError(f"The recording was saved; write {keys[0]}: {digest} into {params} yourself") from None
