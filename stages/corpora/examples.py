"""Example sounds: a few clips of a test split, which no training heard, for somebody to click on."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stages.asr.clips import Clip, read_clips, write_clips

N_EXAMPLES = 3


@dataclass(frozen=True)
class Example:
    """A sound, and what is said in it."""

    path: Path
    text: str


def read_examples(split: Path) -> list[Example]:
    """The first few clips of a split's folder, as ``download`` writes it; [] where there is no such folder."""
    clips = read_clips(split) if (split / "clips.tsv").is_file() else []
    examples = [Example(split / "audio" / clip.audio, clip.text) for clip in clips[:N_EXAMPLES]]
    return [example for example in examples if example.path.is_file()]


def write_examples(seed: int, split: Path) -> None:
    """The same of the built-in corpus of a seed, spoken anew: a split's folder with its table and its sounds.

    Raises UserError where espeak-ng fails.
    """
    (split / "audio").mkdir(parents=True, exist_ok=True)
    spoken = speak_examples(seed)
    for clip, data in spoken:
        (split / "audio" / clip.audio).write_bytes(data)
    write_clips(split, [clip for clip, _ in spoken])


@cache
def speak_examples(seed: int) -> tuple[tuple[Clip, bytes], ...]:
    """The clips and their wavs, spoken once by a process, for what espeak-ng says depends on what it said before."""
    import espeakng_loader  # a Space has its examples beside it, and no espeak-ng

    from stages.corpora.synthetic import audio_path, plan_split, short_data_path, synthesise

    plan = plan_split("test", N_EXAMPLES, seed, set())
    with (
        tempfile.TemporaryDirectory() as folder,
        short_data_path(Path(espeakng_loader.get_data_path())) as data,
    ):
        paths = [audio_path(Path(folder), clip) for clip in plan]
        paths[0].parent.mkdir(parents=True)
        synthesise(Path(folder), data, [plan], processes=1)
        clips = (Clip(clip.id, path.name, clip.text, clip.voice) for clip, path in zip(plan, paths, strict=True))
        return tuple((clip, path.read_bytes()) for clip, path in zip(clips, paths, strict=True))
