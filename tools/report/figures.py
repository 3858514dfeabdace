"""The page's plots, by Plotly: their colours are variables of the page, so that they follow its theme."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from tools.report.records import TABLE, TRAINING, VALIDATION, Record

INK, RULE = "var(--ink)", "var(--rule)"
MOST_ROWS = 30  # of a plot
LABEL = 26  # characters of a name beside it: on a telephone the plot needs room too
DECADES = 30  # that a loss falls, from which on powers of ten are marks enough
ROW_HEIGHT, MARGINS, CURVE_HEIGHT = 24, 96, 300  # pixels
TITLES = {
    "lengths": "WER by clip length",
    "speakers": "WER by speaker",
    "conditions": "WER by condition",
    "probes": "WER on probes",
}
COLUMNS = {"lengths": "length", "speakers": "speaker", "conditions": "condition", "probes": "probe"}


@dataclass(frozen=True)
class Series:
    """How one model of one revision is drawn; colour: a variable of the page. Told apart by symbol and dash too."""

    record: Record
    model: str
    label: str
    colour: str
    symbol: str
    dash: str


@dataclass(frozen=True)
class Plot:
    """json: Plotly's data and layout. headings and rows: the numbers, for those who cannot see or want to copy them."""

    name: str
    title: str
    caption: str
    json: str
    height: int
    headings: list[str]
    rows: list[list[str]]


def model_series(records: Sequence[Record], labels: Sequence[str]) -> list[Series]:
    """Before and after of one revision; the tuned models of two."""
    if len(records) == 1:
        base = Series(records[0], "pretrained", "pretrained", "var(--before)", "circle-open", "dot")
        tuned = Series(records[0], "tuned", "tuned", "var(--second)", "circle", "solid")
        return [tuned] if records[0].numbers("evaluate/pretrained").get("untrained") else [base, tuned]
    looks = (("var(--first)", "diamond-open", "dash"), ("var(--second)", "circle", "solid"))
    return [Series(record, "tuned", label, *look) for record, label, look in zip(records, labels, looks, strict=True)]


def curve_plots(series: Sequence[Series]) -> list[Plot]:
    """Loss, validation WER and learning rate by step; of a revision without curves nothing."""
    tuned = [one for one in series if one.model == "tuned"]
    several = len(tuned) > 1
    best = []
    for one in tuned:
        ends = one.record.numbers("train")
        mixed = "weights" in ends  # which no step had
        best += [(one, ends["best_step"], ends["validation_wer"])] if "best_step" in ends and not mixed else []
    loss = [
        curve_trace(one, TRAINING, "loss", f"{one.label}, training" if several else "training", thin=True)
        for one in tuned
    ]
    loss += [
        curve_trace(one, VALIDATION, "loss", f"{one.label}, validation" if several else "validation") for one in tuned
    ]
    wer = [curve_trace(one, VALIDATION, "wer", one.label) for one in tuned]
    rates = [curve_trace(one, TRAINING, "learning_rate", one.label, thin=True) for one in tuned]
    marks = [
        go.Scatter(
            x=[step],
            y=[rate],
            mode="markers",
            name=f"{one.label}, chosen" if several else "chosen",
            marker={"symbol": "star", "size": 13, "color": one.colour},
            cliponaxis=False,
            hovertemplate="step %{x}: %{y} %",
        )
        for one, step, rate in best
    ]
    steps = "; ".join(f"{f'{one.label}: ' if several else ''}step {step:,}, {rate:.2f} %" for one, step, rate in best)
    chosen = f"The star is the step that was chosen: {steps}." if best else ""
    plots = [
        curve_plot("loss", "Loss", "Nats a token, logarithmic; in training with CTC's share.", loss, log=True),
        curve_plot("validation-wer", "Validation WER, %", chosen, wer + marks),
        curve_plot("learning-rate", "Learning rate", "As warm-up and decay set it.", rates),
    ]
    return [plot for plot, traces in zip(plots, (loss, wer, rates), strict=True) if any(trace.x for trace in traces)]


def curve_trace(one: Series, path: str, column: str, name: str, thin: bool = False) -> go.Scatter:
    rows = one.record.rows(path)
    return go.Scatter(
        x=[int(row["step"]) for row in rows],
        y=[float(row[column]) for row in rows],
        name=label_text(name),
        mode="lines" if thin else "lines+markers",
        line={"color": one.colour, "dash": one.dash, "width": 1.25 if thin else 2},
        marker={"symbol": one.symbol, "size": 6},
        cliponaxis=False,
        hovertemplate="step %{x}: %{y}",
    )


def curve_plot(name: str, title: str, caption: str, traces: list[go.Scatter], log: bool = False) -> Plot:
    figure = go.Figure(traces, base_layout(CURVE_HEIGHT) | {"showlegend": len(traces) > 1})
    figure.update_xaxes(title_text="step", rangemode="tozero")
    values = [value for trace in traces for value in trace.y]
    if log and values and max(values) > DECADES * min(values) > 0:
        figure.update_yaxes(type="log", dtick=1)  # a line a power of ten
    elif log:
        figure.update_yaxes(type="log", nticks=6)
    else:
        figure.update_yaxes(rangemode="tozero", nticks=6)
    return Plot(name, title, caption, figure_json(figure), CURVE_HEIGHT, [], [])


def group_plots(series: Sequence[Series]) -> list[Plot]:
    """WER by clip length, speaker, condition and probe; of those that were not measured nothing."""
    return [plot for name in TITLES if (plot := group_plot(series, name))]


def group_plot(series: Sequence[Series], name: str) -> Plot | None:
    """One dot a model, and its 95 % interval where the table has one."""
    tables = [{row[COLUMNS[name]]: row for row in one.record.rows(TABLE.format(one.model, name))} for one in series]
    sizes = {key: int(row["clips"]) for table in tables for key, row in table.items()}
    if not sizes:
        return None
    shown = sorted(sizes, key=lambda key: (-sizes[key], key))[:MOST_ROWS]
    keys = [key for key in sizes if key in shown]
    names = [f"{label_text(key)}  <span style='font-size:85%'>{sizes[key]:,}</span>" for key in keys]
    traces = [span_lines(tables, keys)] if len(series) > 1 else []
    for one, table in zip(series, tables, strict=True):
        found = [table.get(key, {}) for key in keys]
        rates = [float(row["wer"]) if row else None for row in found]
        traces.append(
            go.Scatter(
                x=rates,
                y=list(range(len(keys))),
                name=label_text(one.label),
                mode="markers",
                marker={
                    "symbol": one.symbol,
                    "size": 9,
                    "color": one.colour,
                    "line": {"width": 1.5, "color": one.colour},
                },
                cliponaxis=False,
                error_x=interval_bars(found, one.colour),
                hovertemplate="%{x} %",
            )
        )
    height = MARGINS + ROW_HEIGHT * len(keys)
    figure = go.Figure(traces, base_layout(height))
    figure.update_xaxes(title_text="WER, %", rangemode="tozero", nticks=6)
    figure.update_yaxes(**rows_axis(names))
    most = f" The {MOST_ROWS} of {len(sizes)} with most clips." if len(sizes) > MOST_ROWS else ""
    bars = " Bars: 95 % intervals." if any("low" in row for table in tables for row in table.values()) else ""
    rows = [[key, f"{sizes[key]:,}", *(rate_text(table.get(key)) for table in tables)] for key in keys]
    headings = [COLUMNS[name], "clips", *(one.label for one in series)]
    caption = f"Beside each name how many clips it has.{bars}{most}"
    return Plot(name, TITLES[name], caption, figure_json(figure), height, headings, rows)


def rows_axis(names: list[str]) -> dict[str, Any]:
    """Rows from the top, by their numbers: names that are cropped may be the same."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    return ticks | {"range": [len(names) - 0.5, -0.5]}


def label_text(text: str) -> str:
    """Data's, as Plotly shows it: it takes some tags for its own."""
    return escape(text if len(text) <= LABEL else text[: LABEL - 1] + "…", quote=False)


def span_lines(tables: Sequence[dict[str, dict[str, str]]], keys: list[str]) -> go.Scatter:
    """What joins the dots of a row."""
    x: list[float | None] = []
    y: list[int | None] = []
    for at, key in enumerate(keys):
        rates = [float(table[key]["wer"]) for table in tables if key in table]
        x += [min(rates), max(rates), None]
        y += [at, at, None]
    look = {"color": RULE, "width": 3}
    return go.Scatter(x=x, y=y, mode="lines", line=look, hoverinfo="skip", showlegend=False)


def interval_bars(rows: Sequence[dict[str, str]], colour: str) -> dict[str, Any] | None:
    if not any("low" in row for row in rows):
        return None
    ends = [(float(row["wer"]), float(row["low"]), float(row["high"])) if row.get("low") else (0, 0, 0) for row in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - rate for rate, _, high in ends],
        "arrayminus": [rate - low for rate, low, _ in ends],
        "color": colour,
        "thickness": 1.25,
        "width": 3,
    }


def rate_text(row: dict[str, str] | None) -> str:
    if not row:
        return "–"
    interval = f" ({float(row['low']):.1f} to {float(row['high']):.1f})" if row.get("low") else ""
    return f"{float(row['wer']):.1f}{interval}"


def score_plot(rows: Iterable[tuple[str, str, str, float, float, float]]) -> Plot:
    """WER of every model with its interval; rows: label, colour, symbol, WER, low and high in percent."""
    listed = list(rows)
    traces = [
        go.Scatter(
            x=[rate],
            y=[at],
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1.5, "color": colour}},
            cliponaxis=False,
            error_x=interval_bars([{"wer": str(rate), "low": str(low), "high": str(high)}], colour),
            hovertemplate=f"%{{x}} % ({low:.2f} to {high:.2f})",
            name="",
        )
        for at, (_, colour, symbol, rate, low, high) in enumerate(listed)
    ]
    height = MARGINS - 28 + 30 * len(listed)
    figure = go.Figure(traces, base_layout(height) | {"showlegend": False})
    figure.update_xaxes(title_text="test WER, %", rangemode="tozero", nticks=6)
    figure.update_yaxes(**rows_axis([label_text(row[0]) for row in listed]))
    return Plot("wer", "", "", figure_json(figure), height, [], [])


def base_layout(height: int) -> dict[str, Any]:
    axis = {
        "gridcolor": RULE,
        "linecolor": RULE,
        "tickcolor": RULE,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "title": {"font": {"size": 13}, "standoff": 8},
    }
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 32, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": RULE, "font": {"color": INK}},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 12}},
        "showlegend": True,
        "dragmode": False,
        "xaxis": axis,
        "yaxis": axis,
    }


def figure_json(figure: go.Figure) -> str:
    """As it may stand in a script element."""
    text = json.dumps(figure.to_plotly_json(), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
