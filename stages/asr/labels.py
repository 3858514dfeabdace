"""Texts as labels: what training teaches of what a transcript says. References stay as they are."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from stages.asr.model import SpeechModel
from stages.asr.text import DOTTED, UNSPACED

QUOTATION_MARKS = '"“”„‟«»‹›「」『』'  # no single ones, which are apostrophes too
FULL_STOP = re.compile(rf"(?<!\.)[.。।۔](?=[{QUOTATION_MARKS}')\]]*$)")  # at a text's end; no dots of omission


@dataclass(frozen=True)
class LabelStyle:
    """What labels keep of a text's writing.

    quotation_marks: ``remove`` takes out double ones of any kind. case: ``lower`` teaches small letters alone.
    final_full_stop: ``remove`` takes the last one.
    """

    quotation_marks: Literal["keep", "remove"] = "keep"
    case: Literal["keep", "lower"] = "keep"
    final_full_stop: Literal["keep", "remove"] = "keep"


class LabelWriter:
    """Writes texts in a style, and without what the model may never say.

    Decoding suppresses tokens that the model's generation_config names: of OpenAI's models those of ``"``, ``:``,
    ``(``, `` -`` and other signs alone, though not the longer ones that contain them, such as ``."``. Taught all the
    same, they would take probability from what decoding then has to choose among. So a sign whose own token is
    suppressed goes wherever it stands, and of longer suppressed tokens each that a text still has.
    """

    def __init__(self, model: SpeechModel, style: LabelStyle):
        self.style, self.tokenizer = style, model.tokenizer
        self.suppressed = set(model.whisper.generation_config.suppress_tokens or [])
        said = (self.tokenizer.decode([token]) for token in sorted(self.suppressed))
        signs = {sign for sign in said if len(sign) == 1 and not sign.isalnum() and sign != "\N{REPLACEMENT CHARACTER}"}
        signs |= set(QUOTATION_MARKS) if style.quotation_marks == "remove" else set()
        self.signs = f"[{re.escape(''.join(sorted(signs)))}]+" if signs else None

    def write(self, text: str, before: str = "") -> str:
        """The text that is taught, single-spaced; empty where nothing is left.

        before: what stands before it, a space where it follows another text: of OpenAI's models `` -`` is suppressed
        and ``-`` is not.
        """
        if self.style.case == "lower":
            text = DOTTED.sub("", text.lower())
        if self.style.final_full_stop == "remove":
            text = FULL_STOP.sub("", text)
        if self.signs:
            text = re.sub(self.signs, gap, text)
        return self.without_suppressed(before + " ".join(text.split()), before)

    def without_suppressed(self, text: str, before: str) -> str:
        """A text until none of its tokens is suppressed, for what is left may be cut up in another way."""
        while self.suppressed:
            tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(tokens.input_ids, tokens.offset_mapping, strict=True)
            shorter = text
            for start, end in sorted({span for token, span in spans if token in self.suppressed}, reverse=True):
                shorter = f"{shorter[:start]} {shorter[end:]}"
            shorter = before + " ".join(shorter.split())
            if shorter == text:
                break
            text = shorter
        return text


def gap(signs: re.Match[str]) -> str:
    """What is left of signs: a space between letters, their marks and digits, for 12:30 is two words.

    None beside a script that has no spaces between words.
    """
    around = signs.string[: signs.start()][-1:], signs.string[signs.end() :][:1]
    if any(map(UNSPACED.match, around)):
        return ""
    return " " if all(each and unicodedata.category(each)[0] in "LMN" for each in around) else ""
