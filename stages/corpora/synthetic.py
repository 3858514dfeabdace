"""The built-in corpus: short Swedish sentences from a small grammar, spoken by espeak-ng in many voices.

Three steps: the grammar gives sentences, the plan says who says which and how, and workers synthesise the plan.
"""

import contextlib
import ctypes
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import perm, prod
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import soundfile
import soxr

from stages.asr.clips import SPLITS, Clip, Drop, clean_text
from stages.params import Synthetic
from stages.runtime.errors import UserError, is_full
from stages.runtime.files import written_aside
from stages.runtime.progress import ProgressBar
from stages.runtime.stops import deferred_signals

FILE_RATE = 16_000  # Hz of the wavs; any would do, for featurize resamples
MARGIN_SECONDS = 0.08  # kept before and after the speech
CLIPS_PER_PROCESS = 100  # espeak's output depends on what its process said before
MAX_DATA_PATH = 120  # bytes; espeak-ng does not start, or ends its process, with a long path (160 and more)

# Words that sound alike (nio and tio) or that espeak's Swedish says oddly (cykeln, choklad) are left out.
SLOTS = {
    slot: tuple(words.split())
    for slot, words in {
        "NAME": "anna erik maja olle karin sven emma åsa björn göran oskar lisa",
        "WHO": "jag vi hon han",
        "TOWN": "stockholm malmö uppsala lund örebro umeå kiruna gävle kalmar falun visby ystad",
        "PLACE": "biblioteket skolan affären parken stationen torget museet stranden kyrkan hamnen",
        "DAY": "måndag tisdag onsdag torsdag fredag lördag söndag",
        "SOON": "dag kväll morgon",
        "SEASON": "vintern våren sommaren hösten",
        "OFTEN": "ofta alltid aldrig sällan",
        "NUMBER": "två tre fyra fem sex sju åtta tio elva tolv",
        "VEHICLE": "bussen tåget båten flyget färjan spårvagnen",
        "WEATHER": "kallt varmt soligt blåsigt mulet molnigt kyligt skönt",
        "ACTS": "läser skriver sjunger målar dansar springer simmar sover arbetar",
        "FOOD": "bröd mjölk ost smör fisk kaffe potatis socker ägg lök",
        "GOODS": "äpplen päron bananer bullar böcker blommor stolar biljetter",
        "COLOUR": "röda blå gröna gula vita bruna",
        "THING": "jackan koppen dörren väskan hunden mattan boken lampan soffan",
        "LOOK": "stor liten billig dyr gammal trasig vacker smutsig",
    }.items()
}
# A weight is chosen so that words come up about equally often and small templates are not used up.
TEMPLATES = {
    "NAME ACTS vid PLACE": 1,
    "NAME ACTS vid PLACE på DAY": 1,
    "WHO ACTS OFTEN i TOWN": 3,
    "på DAY ACTS NAME i TOWN": 2,
    "NAME och NAME ACTS": 1,
    "i SOON blir det WEATHER i TOWN": 3,
    "på DAY blir det WEATHER": 0.5,
    "på SEASON är det WEATHER i TOWN": 3,
    "VEHICLE till TOWN går klockan NUMBER": 3,
    "VEHICLE från TOWN kommer halv NUMBER": 2,
    "när går VEHICLE till PLACE i SOON": 1,
    "WHO vill köpa FOOD och FOOD": 3,
    "NAME köper NUMBER GOODS på DAY": 1,
    "NAME köper FOOD och NUMBER GOODS": 1,
    "WHO har FOOD och NUMBER GOODS": 2,
    "NUMBER GOODS och FOOD tack": 2,
    "hur mycket kostar NUMBER GOODS": 0.6,
    "den COLOUR THING är LOOK": 5,
    "THING är LOOK och LOOK": 1,
    "den COLOUR THING kostar NUMBER kronor": 3,
    "var ligger PLACE i TOWN": 1,
    "WHO väntar vid PLACE i SOON": 1,
    "NAME bor vid PLACE i TOWN": 2,
}


# espeak voice: pitch (espeak's 0 to 100) and words a minute. Each new voice is another person within the known range.
KNOWN_VOICES = {
    "sv": (50, 175),
    "sv+m1": (45, 165),
    "sv+m2": (55, 180),
    "sv+m3": (60, 170),
    "sv+m5": (40, 185),
    "sv+m7": (50, 170),
    "sv+max": (45, 180),
    "sv+victor": (55, 175),
    "sv+f1": (50, 180),
    "sv+f2": (45, 170),
    "sv+f5": (50, 185),
    "sv+linda": (40, 175),
}
NEW_VOICES = {"sv+m4": (50, 175), "sv+f3": (45, 180), "sv+pablo": (55, 170), "sv+f4": (50, 175)}
PITCH_SPREAD, RATE_SPREAD = 6, 12  # a speaker's own variation, either way


@dataclass(frozen=True)
class PlannedClip:
    """One planned clip: pitch 0 to 100, rate in words a minute, level (RMS) in dB of full scale, snr in dB."""

    split: str
    id: str
    text: str
    voice: str
    pitch: int
    rate: int
    level: float
    snr: float
    seed: int


def vocabulary() -> set[str]:
    """Every word of the grammar."""
    tokens = {token for template in TEMPLATES for token in template.split()}
    return (tokens - SLOTS.keys()) | {word for slot in tokens & SLOTS.keys() for word in SLOTS[slot]}


def count_sentences() -> int:
    """How many different sentences the grammar gives."""
    return sum(
        prod(perm(len(words), template.split().count(slot)) for slot, words in SLOTS.items()) for template in TEMPLATES
    )


def compose_sentence(rng: random.Random) -> str:
    """A random sentence, in which no word of a slot comes twice."""
    tokens = rng.choices(list(TEMPLATES), list(TEMPLATES.values()))[0].split()
    decks = {token: rng.sample(SLOTS[token], len(SLOTS[token])) for token in tokens if token in SLOTS}
    return clean_text(" ".join(decks[token].pop() if token in decks else token for token in tokens))


def plan_split(split: str, n_clips: int, seed: int, taken: set[str]) -> list[PlannedClip]:
    """The clips of one split, whose sentences are new and are added to ``taken``.

    More clips leave the earlier ones as they were. Every second test clip is by a new speaker.
    """
    rng = random.Random(f"{seed} {split}")
    plan = []
    for number in range(n_clips):
        while (text := compose_sentence(rng)) in taken:
            pass
        taken.add(text)
        if split == "test":
            turn, voices = number // 2, (KNOWN_VOICES, NEW_VOICES)[number % 2]
        else:
            turn, voices = number, KNOWN_VOICES
        voice, (pitch, rate) = list(voices.items())[turn % len(voices)]
        plan.append(
            PlannedClip(
                split=split,
                id=f"{split}-{number:05d}",
                text=text,
                voice=voice,
                pitch=pitch + rng.randint(-PITCH_SPREAD, PITCH_SPREAD),
                rate=rate + rng.randint(-RATE_SPREAD, RATE_SPREAD),
                level=rng.uniform(-29, -24),
                snr=rng.uniform(25, 40),
                seed=rng.getrandbits(31),
            )
        )
    return plan


def plan_corpus(settings: Synthetic) -> list[PlannedClip]:
    """Every clip of the corpus, split by split; raises UserError where the grammar has too few sentences."""
    sizes = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    wanted = sum(sizes.values())
    if wanted > count_sentences() // 2:
        raise UserError(
            f"{wanted} clips were asked for, each with a sentence of its own, and the grammar gives"
            f" {count_sentences() // 2} at most: lower train, validation or test"
        )
    taken: set[str] = set()
    # Test first: more training clips leave it as it was.
    plans = [plan_split(split, sizes[split], settings.seed, taken) for split in reversed(SPLITS)]
    return [clip for plan in reversed(plans) for clip in plan]


@contextlib.contextmanager
def short_data_path(data: Path) -> Iterator[Path]:
    """``data``, espeak's data folder, or where that path is too long for espeak a short link to it."""
    if len(os.fsencode(data)) <= MAX_DATA_PATH:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        link = Path(folder) / data.name
        if len(os.fsencode(link)) > MAX_DATA_PATH:
            raise UserError(f"espeak-ng cannot read its data at a path as long as {link}: set TMPDIR to a shorter one")
        link.symlink_to(data, target_is_directory=True)
        yield link


class Espeak:
    """The process's one espeak-ng."""

    # Constants of espeak-ng's speak_lib.h.
    SYNCHRONOUS, DONT_EXIT, RATE, VOLUME, PITCH, CHARACTERS, UTF8 = 2, 0x8000, 1, 2, 3, 1, 1

    def __init__(self, data: Path):
        """Start espeak-ng with its data folder; raises UserError where it does not start."""
        self.data = data
        self.pieces: list[np.ndarray] = []
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, os.fsencode(data), self.DONT_EXIT)
        if self.sample_rate <= 0:
            raise UserError(f"espeak-ng did not start with the data in {data}")
        samples = ctypes.POINTER(ctypes.c_short)
        # An attribute, because espeak calls it as long as the library lives.
        self.callback = ctypes.CFUNCTYPE(ctypes.c_int, samples, ctypes.c_int, ctypes.c_void_p)(self._collect)
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: Any, n_samples: int, _events: int | None) -> int:
        if samples and n_samples > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        return 0

    def say(self, clip: PlannedClip) -> np.ndarray:
        """Speech, (n_samples,) int16 at ``sample_rate``; raises UserError where espeak-ng fails."""
        variant = clip.voice.partition("+")[2]
        if variant and not (self.data / "voices" / "!v" / variant).is_file():
            raise UserError(f"espeak-ng has no voice variant {variant}")  # it would silently take the plain voice
        self.pieces.clear()
        text = clip.text.encode() + b"\0"
        calls: list[tuple[Any, ...]] = [
            # Starting seeds the voices' breath with the time of day.
            ("espeak_ng_SetRandSeed", ctypes.c_long(clip.seed)),
            ("espeak_SetVoiceByName", clip.voice.encode()),
            ("espeak_SetParameter", self.RATE, clip.rate, 0),
            ("espeak_SetParameter", self.PITCH, clip.pitch, 0),
            ("espeak_SetParameter", self.VOLUME, 60, 0),  # at 100 some voices clip
            ("espeak_Synth", text, ctypes.c_size_t(len(text)), 0, self.CHARACTERS, 0, self.UTF8, None, None),
        ]
        for name, *arguments in calls:
            if code := getattr(self.library, name)(*arguments):
                raise UserError(f"{name} failed with code {code} for voice {clip.voice}")
        speech = np.concatenate(self.pieces or [np.zeros(0, np.int16)])
        if not speech.any():
            raise UserError(f"espeak-ng produced no audio for {clip.text!r} in voice {clip.voice}")
        return speech


def render(speech: np.ndarray, sample_rate: int, clip: PlannedClip) -> np.ndarray:
    """Speech of espeak-ng, (n,) int16, as a clip: trimmed, at its level, with noise; (n_samples,) int16 at 16 kHz."""
    speech = speech.astype(np.float64) / 32768
    loud = np.flatnonzero(np.abs(speech) > 0.005 * np.abs(speech).max())
    margin = round(MARGIN_SECONDS * sample_rate)
    speech = np.pad(speech[loud[0] : loud[-1] + 1], margin)
    speech = soxr.resample(speech, sample_rate, FILE_RATE)
    speech *= 10 ** (clip.level / 20) / np.sqrt(np.mean(speech**2))
    noise = np.random.default_rng(clip.seed).standard_normal(len(speech))
    speech += noise * 10 ** ((clip.level - clip.snr) / 20)
    speech *= min(1, 0.9 / np.abs(speech).max())
    return np.round(speech * 32767).astype(np.int16)


def audio_path(folder: Path, clip: PlannedClip) -> Path:
    """Where a clip lies."""
    return folder / clip.split / "audio" / f"{clip.id}.wav"


def synthesise_chunk(folder: Path, data: Path, chunk: list[PlannedClip], report: Connection) -> None:
    """Write a chunk's clips, in a process of its own, and report the error, or None if all went well."""
    try:
        espeak = Espeak(data)
        for clip in chunk:
            samples = render(espeak.say(clip), espeak.sample_rate, clip)
            wav = BytesIO()
            soundfile.write(wav, samples, FILE_RATE, "PCM_16", format="WAV")  # to a file it would not say: disk full
            with written_aside(audio_path(folder, clip)) as part:
                part.write_bytes(wav.getvalue())
        report.send(None)
    except (UserError, OSError) as error:
        report.send(error)


def synthesise(folder: Path, data: Path, chunks: list[list[PlannedClip]], processes: int) -> None:
    """Speak each chunk in a fresh process, at most ``processes`` at once.

    Raises UserError where one fails, and OSError where the disk is full. Plain processes, because a pool
    that renews its workers may hang when one of them dies.
    """
    context = get_context("spawn")
    waiting = chunks[::-1]
    running: dict[Connection, tuple[SpawnProcess, list[PlannedClip]]] = {}
    with ProgressBar(total=sum(map(len, chunks)), unit="clip") as bar:
        try:
            while waiting or running:
                with deferred_signals():
                    while waiting and len(running) < max(1, processes):
                        chunk = waiting.pop()
                        reader, writer = context.Pipe(duplex=False)
                        arguments = (folder, data, chunk, writer)
                        worker = context.Process(target=synthesise_chunk, args=arguments, daemon=True)
                        worker.start()
                        running[reader] = worker, chunk
                        writer.close()
                ready = set(wait(list(running)))
                with deferred_signals():
                    for reader in [reader for reader in running if reader in ready]:
                        worker, chunk = running.pop(reader)
                        try:
                            error = reader.recv()
                        except EOFError:
                            error = UserError("the process that made it died")
                        worker.join()
                        if error and is_full(error):  # which the command tells as such
                            raise error
                        if error:
                            raise UserError(f"clips {chunk[0].id} to {chunk[-1].id} of the synthetic corpus: {error}")
                        bar.update(len(chunk))
        finally:
            with deferred_signals():
                for worker, _ in running.values():
                    worker.kill()
                    worker.join()


def collect(settings: Synthetic, folder: Path, processes: int) -> tuple[dict[str, list[Clip]], list[Drop]]:
    """Speak the corpus into ``folder/<split>/audio/<id>.wav``, 16 kHz mono 16-bit; its clips by split, no drops.

    The same settings give the same bytes, whatever the number of processes.
    """
    plan = plan_corpus(settings)
    chunks: list[list[PlannedClip]] = []
    clips: dict[str, list[Clip]] = {}
    for split in SPLITS:
        (folder / split / "audio").mkdir(parents=True, exist_ok=True)
        ours = [clip for clip in plan if clip.split == split]
        chunks += [ours[start : start + CLIPS_PER_PROCESS] for start in range(0, len(ours), CLIPS_PER_PROCESS)]
        clips[split] = [Clip(u.id, audio_path(folder, u).name, u.text, u.voice) for u in ours]
    with short_data_path(Path(espeakng_loader.get_data_path())) as data:
        synthesise(folder, data, chunks, processes)
    return clips, []
