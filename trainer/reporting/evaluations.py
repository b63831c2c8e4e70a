"""How good the samples were: tables and charts, each value with its floor."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.reporting import charts
from trainer.reporting.charts import Chart, Mark
from trainer.reporting.history import Series

_PROTOCOL = (
    "features",
    "split",
    "num_fake",
    "num_real",
    "num_floor",
    "evaluation_seed",
)
_FLOOR = "_floor"
# An error of another value, which is a column and no curve.
_ERROR = "_standard_error"
_LOWER_IS_BETTER = {"frechet_distance", "kernel_distance"}
# Noise is more diverse than real samples.
_NEAR_THE_FLOOR = {"diversity"}
_NAMES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "Kernel distance (KID)",
    "kernel_distance_standard_error": "its standard error",
}
_MAX_ROWS = 40

_Lines = Sequence[Mapping[str, Any]]


def render(
    trained: _Lines,
    measured: _Lines,
    *,
    best_step: int | None,
    marks: Sequence[Mark],
    last_step: int,
) -> str:
    """Shows all evaluations, those that can be compared together.

    Args:
      trained: lines of `metrics.jsonl`.
      measured: lines of `evaluations.jsonl`.
      best_step: the best of those in training.
      marks: vertical lines of charts.
      last_step: where the charts end.
    """
    if not trained and not measured:
        return (
            "<p>Nothing has been measured. <code>python -m trainer.evaluate"
            "</code> measures a run, and <code>--evaluate_every_epochs</code>"
            " does while it trains.</p>"
        )
    parts = []
    for protocol, lines in _by_protocol([*trained, *measured]).items():
        words = _in_words(dict(protocol), lines[-1])
        parts.append(f"<p>{html.escape(words)}</p>")
        parts.append(_charts(lines, marks, last_step))
        parts.append(_table(lines, best_step))
    return "\n".join(parts)


def _by_protocol(lines: Iterable[Mapping[str, Any]]) -> dict[tuple, list]:
    groups: dict[tuple, list] = {}
    for line in lines:
        protocol = tuple((key, str(line.get(key, "?"))) for key in _PROTOCOL)
        groups.setdefault(protocol, []).append(line)
    return groups


def _in_words(protocol: Mapping[str, str], line: Mapping[str, Any]) -> str:
    # Old lines tell no more of the features than their name.
    described = line.get("features_description")
    features = protocol["features"] + (f" ({described})" if described else "")
    return (
        f"{protocol['num_fake']} generated against {protocol['num_real']} real"
        f" samples ({protocol['split']}); features {features}, seed"
        f" {protocol['evaluation_seed']}. Floor: {protocol['num_floor']} real"
        " samples against as many others. Values compare only with those of"
        " the same features, split, counts and seed."
    )


def _values(lines: _Lines) -> list[str]:
    """Names what was measured, in the order of the lines."""
    names: dict[str, None] = {}
    for line in lines:
        names |= {n: None for n in line if f"{n}{_FLOOR}" in line}
    return list(names)


def _number(value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return math.nan


def _charts(lines: _Lines, marks: Sequence[Mark], last_step: int) -> str:
    ordered = sorted(lines, key=lambda line: line["step"])
    steps = np.array([line["step"] for line in ordered])
    if len(set(steps.tolist())) < 2:
        return ""
    figures = []
    for name in _values(lines):
        if name.endswith(_ERROR):
            continue
        values = np.array([_number(line.get(name)) for line in ordered])
        floor = _number(ordered[-1].get(f"{name}{_FLOOR}"))
        note = "lower" if name in _LOWER_IS_BETTER else "higher"
        if name in _NEAR_THE_FLOOR:
            note = "nearer to the floor"
        chart = Chart(
            _title(name),
            {"generated": Series(steps, values)},
            levels={} if floor != floor else {"real (floor)": floor},
            marks=marks,
            note=f"{note} is better",
            with_dots=True,
        )
        figures.append(charts.render(chart, first_step=0, last_step=last_step))
    joined = "\n".join(figures)
    return f'<div class="charts">\n{joined}\n</div>'


def _table(lines: _Lines, best_step: int | None) -> str:
    names = _values(lines)
    header = "".join(f'<th scope="col">{_title(name)}</th>' for name in names)
    floor = lines[-1]
    cells = _cells(floor.get(f"{name}{_FLOOR}") for name in names)
    rows = [f'<tr class="floor"><th scope="row">Floor (real)</th>{cells}</tr>']
    shown = [
        line
        for index, line in enumerate(lines)
        if index >= len(lines) - _MAX_ROWS or line["step"] == best_step
    ]
    for line in shown:
        is_best = line["step"] == best_step
        label = f"Step {line['step']:,}{', best' if is_best else ''}"
        cells = _cells(line.get(name) for name in names)
        kind = ' class="best"' if is_best else ""
        rows.append(f'<tr{kind}><th scope="row">{label}</th>{cells}</tr>')
    left_out = ""
    if len(shown) < len(lines):
        left_out = (
            f"<p>{len(lines) - len(shown):,} older ones are not listed.</p>"
        )
    body = "\n".join(rows)
    return (
        '<div class="scroll" tabindex="0" role="region"'
        ' aria-label="Evaluations"><table class="numbers">\n<thead><tr>'
        f'<th scope="col">Evaluated</th>{header}</tr></thead>\n<tbody>\n'
        f"{body}\n</tbody></table></div>{left_out}"
    )


def _cells(values: Iterable[object]) -> str:
    return "".join(f"<td>{charts.short(_number(v))}</td>" for v in values)


def _title(name: str) -> str:
    return html.escape(_NAMES.get(name, name.replace("_", " ").capitalize()))
