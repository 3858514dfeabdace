"""Text as it is compared: what counts as the same word."""

import re
import unicodedata

BRACKETS = (re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+?\)"))
# Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese.
UNSPACED = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
VARIANTS = re.compile("[\ufe00-\ufe0f]")  # of the sign before: how it is drawn
DOTTED = re.compile("(?<=i)\u0307")  # what lower() makes of the Turkish capital I with a dot has it beside its own


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
    letters, after = [], False  # a letter that stands apart
    for letter in VARIANTS.sub("", text):
        category = unicodedata.category(letter)
        if category[0] in "SP":
            letter = " "
        elif category == "Cf":  # joiners, marks of direction: nobody sees them
            continue
        elif apart and category[0] != "M":
            unspaced = UNSPACED.match(letter) is not None
            letter = f" {letter}" if unspaced or after else letter
            after = unspaced
        letters.append(letter)
    return " ".join("".join(letters).split())
