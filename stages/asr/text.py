"""Text as it is compared: what counts as the same word."""

from transformers.models.whisper.english_normalizer import BasicTextNormalizer

NORMALISER = BasicTextNormalizer()


def normalise(text: str) -> str:
    """Whisper's basic normalisation: lower case, no punctuation, nothing in brackets, single spaces; å ä ö stay."""
    return str(NORMALISER(text)).strip()
