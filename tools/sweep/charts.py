"""A sweep's charts as one page that needs no network."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna import visualization

from stages.runtime.errors import one_line
from stages.runtime.files import write_text
from stages.runtime.progress import note

CHARTS: dict[str, Callable[..., Any]] = {
    "History": visualization.plot_optimization_history,
    "While training": visualization.plot_intermediate_values,
    "Importance": visualization.plot_param_importances,
    "Values": visualization.plot_slice,
}
AXIS = "validation WER, %"


def write_charts(path: Path, name: str, study: optuna.Study) -> None:
    """Draw the study; a chart that it has too few trials for is left out, and why is said."""
    parts: list[str] = []
    for title, plot in CHARTS.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # of importances among equals
                while_training = plot is visualization.plot_intermediate_values  # it names its axis itself
                figure: Any = plot(study) if while_training else plot(study, target_name=AXIS)
        except (ValueError, RuntimeError) as error:
            note(f"no chart of {title.lower()}: {one_line(error)}")
            continue
        figure.update_layout(title=title)
        if while_training:
            figure.update_yaxes(title=AXIS)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
    write_text(path, f"{head}<body>{''.join(parts)}</body></html>\n")
