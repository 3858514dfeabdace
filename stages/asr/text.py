"""Text as it is compared: what counts as the same word."""

import re
import unicodedata

BRACKETS = (re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+\)"))  # what stands in them is dropped, in this order
VARIANTS = "\ufe00-\ufe0f"  # how the sign before is drawn
DOTTED = re.compile("(?<=i)\u0307")  # what lower() makes of the Turkish capital I with a dot has it beside its own
SCRIPTS = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
SCRIPTS += "\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "".join(letter for letter in map(chr, range(0x0E00, 0x1800)) if unicodedata.category(letter)[0] == "M")
# A letter with its marks in a script without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
UNSPACED = re.compile(f"[{SCRIPTS}][{MARKS}]*")


def normalise(text: str, apart: bool = True) -> str:
    """Lower case, no punctuation or symbols, nothing in brackets, single spaces; letters and their marks stay.

    As Whisper's basic normalisation (Radford et al. 2022, appendix C), which however takes all combining marks, and so
    the vowels of Hindi, Tamil or Thai. apart: each letter of a script without spaces, with its marks, is a word, as in
    their evaluation.
    """
    text = text.lower()
    for brackets in BRACKETS:
        text = brackets.sub("", text)
    text = DOTTED.sub("", unicodedata.normalize("NFKC", text).lower())
    text = "".join(shown(letter) for letter in re.sub(f"[{VARIANTS}]", "", text))
    if apart:
        text = UNSPACED.sub(r" \g<0> ", text)
    return " ".join(text.split())


def shown(letter: str) -> str:
    """What is left of a character: a space of punctuation and symbols, nothing of joiners and marks of direction."""
    category = unicodedata.category(letter)
    return " " if category[0] in "SP" else "" if category == "Cf" else letter
