"""What was said when: alone, so that whoever shows it need not load what transcribes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word of a segment, from start to end in seconds of the recording; probability: the model's own, 0 to 1.

    The times share out the segment's speech by letters: no model here is asked where each word is.
    """

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """What was said from start to end, in seconds of the recording; ``words`` are those of ``text.split()``."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
