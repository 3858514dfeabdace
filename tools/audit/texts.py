"""What a corpus's own texts say of each of them: characters that hardly another has, and letters in an odd order."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from stages.asr.text import normalise

RARE, FEW = 0.01, 3  # the share of texts up to which a kind of character is odd, and the number: else they write so
MARKUP = "<>{}[]|\\^_~#@*=&"
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs")  # Unicode's categories: controls, formats, unassigned, private, surrogates
ORDER = 3  # letters that a letter is told from: two before it
PRIOR = 2.0  # how often the letters alone count beside what was seen of them in this order
SURPRISE_Z, SURPRISE_NATS = 4.0, 0.5  # how far above the corpus's own surprise a letter, in deviations and in nats


def odd_characters(texts: Sequence[str]) -> dict[int, str]:
    """Which texts, by number, have a kind of character that hardly another has, and which."""
    script = common_script(texts)
    found: list[dict[str, str]] = [dict(odd_kinds(text, script)) for text in texts]
    counts = Counter(kind for kinds in found for kind in kinds)
    most = max(RARE * len(texts), FEW)
    odd = {
        number: "; ".join(f"{kind}: {what}" for kind, what in kinds.items() if counts[kind] <= most)
        for number, kinds in enumerate(found)
    }
    return {number: what for number, what in odd.items() if what}


def common_script(texts: Sequence[str]) -> str:
    """The script of most letters, as LATIN."""
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    scripts = Counter[str]()
    for letter, count in letters.items():
        scripts[script_of(letter)] += count
    return scripts.most_common(1)[0][0] if scripts else ""


def script_of(letter: str) -> str:
    """As Unicode's names begin: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "UNNAMED").split()[0]


def odd_kinds(text: str, script: str) -> Iterator[tuple[str, str]]:
    """(kind, the characters) of what may be odd in a text."""
    kinds: dict[str, list[str]] = {}
    for sign in dict.fromkeys(text):
        if kind := kind_of(sign, script):
            kinds.setdefault(kind, []).append(sign)
    for kind, signs in kinds.items():
        yield kind, " ".join(spelled(sign) for sign in signs)
    if repaired := unscrambled(text):
        yield "wrongly decoded", f"perhaps {repaired}"


def kind_of(sign: str, script: str) -> str:
    """What may be odd in a character; "" for letters of the common script, and for what any text may have."""
    category = unicodedata.category(sign)
    if category in INVISIBLE or sign == "\N{REPLACEMENT CHARACTER}":
        return "no character"
    if category.startswith("L"):
        return (
            f"letter of another script than {script.capitalize()}"
            if script_of(sign) not in (script, "MODIFIER")
            else ""
        )
    if category.startswith("N"):
        return "numeral"
    return "sign" if sign in MARKUP or category in ("So", "Sm", "Sc") else ""


def spelled(sign: str) -> str:
    """A character, and its code where one would not see it."""
    return sign if sign.isprintable() and sign != "\N{REPLACEMENT CHARACTER}" else f"U+{ord(sign):04X}"


def unscrambled(text: str) -> str:
    """What a text was before its UTF-8 was read as Windows-1252 or Latin-1, as Ã¥ of å; "" where it was not."""
    for encoding in ("cp1252", "latin-1"):
        try:
            repaired = text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if repaired != text:
            return repaired
    return ""


def odd_languages(texts: Sequence[str]) -> dict[int, float]:
    """Which texts, by number, have letters in an order that the others make unlikely, and by how many nats a letter.

    Each is judged by the trigrams of all others, so that a text that stands there once does not vouch for itself. It
    tells another language or gibberish; a related language, or one that many texts have, it cannot tell.
    """
    cleaned = [normalise(text) for text in texts]
    padded = [f"  {text} " for text in cleaned]
    own = [Counter(text[at : at + ORDER] for at in range(len(text) - ORDER + 1)) for text in padded]
    trigrams, contexts, letters = Counter[str](), Counter[str](), Counter[str]()
    for counts in own:
        for trigram, count in counts.items():
            trigrams[trigram] += count
            contexts[trigram[:-1]] += count
            letters[trigram[-1]] += count
    total = letters.total()
    surprises = []
    for counts in own:
        before, after = Counter[str](), Counter[str]()
        for trigram, count in counts.items():
            before[trigram[:-1]] += count
            after[trigram[-1]] += count
        row: list[float] = []
        for trigram, count in counts.items():
            context, letter = trigram[:-1], trigram[-1]
            alone = (letters[letter] - after[letter] + 1) / (total - counts.total() + len(letters) + 1)
            likely = (trigrams[trigram] - count + PRIOR * alone) / (contexts[context] - before[context] + PRIOR)
            row += [-math.log(likely)] * count
        surprises.append(np.array(row))
    if not cleaned:
        return {}
    means = np.array([row.mean() for row in surprises])
    sizes = np.array([len(row) for row in surprises])
    usual = float(np.median(means))
    letter_spread = float(np.concatenate(surprises).std())
    text_spread = 1.4826 * float(np.median(np.abs(means - usual)))
    above = means - usual
    z = above / np.sqrt(letter_spread**2 / sizes + text_spread**2 + 1e-12)
    return {int(at): float(above[at]) for at in np.flatnonzero((z > SURPRISE_Z) & (above > SURPRISE_NATS))}
