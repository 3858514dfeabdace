"""The scores as text: a table for a terminal."""

from collections import Counter

from stages.asr.clips import SPLITS
from tools.report.records import Numbers, Record, dropped_counts

ROWS = {
    "WER": "wer",
    "WER, known voices": "wer_known_speakers",
    "WER, new voices": "wer_new_speakers",
    "WER, raw text": "wer_raw",
    "CER": "cer",
}
EDIT_COUNTS = ("substitutions", "deletions", "insertions")
NEXT = """
Next: make report · dvc plots show --open · dvc metrics diff · data/transcripts/tuned.tsv, clip by clip
      dvc exp run -S train.learning_rate=1e-3
      dvc exp show --only-changed --keep wer --drop 'Created|State|Exec|cer|best|val|.*/'"""


def render_text(records: list[Record]) -> str:
    """The table of each revision, and what to do next; raises UserError where scores are missing."""
    parts = []
    for record in records:
        name = f"{record.revision.name}\n" if len(records) > 1 else ""
        before, after, train = (record.needed(name) for name in ("evaluate/pretrained", "evaluate/tuned", "train"))
        for stage in ("download", *(f"featurize/{split}" for split in SPLITS)):
            record.needed(stage)
        parts.append(name + "\n".join([table(before, after), training(train, record), drops(record)]))
    return "\n\n".join(parts) + f"\n{NEXT}"


def table(before: Numbers, after: Numbers) -> str:
    """The rows that both models have, in percent, with the interval of the first."""
    heading = "untrained" if before.get("untrained") else "pretrained"
    lines = [f"{'Test, %':<20}{heading:>12}{'tuned':>8}   95 % interval"]
    for name, key in ROWS.items():
        if key in after and key in before:
            interval = f"   {after['wer_low']:.1f} to {after['wer_high']:.1f}" if key == "wer" else ""
            lines.append(f"{name:<20}{before[key]:>12.1f}{after[key]:>8.1f}{interval}")
    edits = ", ".join(f"{kind} {after[kind]}" for kind in EDIT_COUNTS)
    lines.append(f"{after['clips']} clips, {after['words']} words: {edits}")
    return "\n".join(lines)


def training(end: Numbers, record: Record) -> str:
    """What the tuned model learned from, and which of its steps it is."""
    clips = record.needed("featurize/train")
    heard = f"Trained on {clips['clips']} clips, {clips['seconds'] / 60:.0f} min"
    return f"{heard}: validation WER {end['validation_wer']:.1f} % at step {end['best_step']} of {end['steps']}"


def drops(record: Record) -> str:
    """How many clips were dropped by any stage, by reason."""
    counts = sum((Counter(reasons) for _, _, reasons in dropped_counts(record)), Counter[str]())
    return "Dropped: " + (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none")
