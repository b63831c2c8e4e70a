"""Series as charts: SVG without any script, and numbers for one that hovers.

Lines are drawn in an SVG that stretches to whatever room there is; labels are
HTML, so that they stay readable on a phone.
"""

import dataclasses
import html
import json
import math
from collections.abc import Sequence

import numpy as np

from trainer.reporting import curves
from trainer.reporting.history import Series

_MAX_POINTS = 1000
_NUM_AVERAGED_POINTS = 300
# Fewer are a line that needs no average.
_AVERAGED_FROM = 150
_WIDTH, _HEIGHT = 1000, 300


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a vertical line.

    Attributes:
      kind: "restart", "rollback" or "best".
    """

    step: int
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn together.

    Attributes:
      series: by label.
      levels: horizontal lines, by label.
      marks: vertical lines.
      note: what the reader has to know of it.
      with_dots: whether each point is seen as such.
      is_linear: whether the axis is linear whatever the values.
    """

    title: str
    series: dict[str, Series]
    levels: dict[str, float] = dataclasses.field(default_factory=dict)
    marks: Sequence[Mark] = ()
    note: str = ""
    with_dots: bool = False
    is_linear: bool = False


def render(chart: Chart, *, first_step: int, last_step: int) -> str:
    """Draws a chart; one without any number is only a sentence.

    Args:
      chart: what to draw.
      first_step: where the horizontal axis begins.
      last_step: where it ends.
    """
    title = html.escape(chart.title)
    values = np.concatenate(
        [s.values for s in chart.series.values()] + [[*chart.levels.values()]]
    )
    if np.isnan(values).all():
        return (
            f'<figure class="chart"><figcaption>{title}</figcaption>'
            "<p>No finite number was recorded.</p></figure>"
        )
    x = curves.step_axis(first_step, last_step)
    y = curves.value_axis(values, is_linear=chart.is_linear)
    lines = [_level(value, y) for value in chart.levels.values()]
    lines += [_mark(mark, x) for mark in chart.marks]
    for index, series in enumerate(chart.series.values()):
        lines += _curves(series, x, y, index, chart.with_dots)
    drawn = "\n".join([_gridlines(y), *lines])
    return f"""\
<figure class="chart">
<figcaption>{title}{_notes(chart, y)}</figcaption>
<div class="plot">
{_labels(y)}
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"\
 aria-label="{html.escape(_in_words(chart))}">
{drawn}
</svg>
<div class="cursor" hidden></div>
</div>
<div class="steps" aria-hidden="true">{_step_labels(x)}</div>
<p class="legend">{_legend(chart)}</p>
<script type="application/json">{_numbers(chart, x)}</script>
</figure>"""


def short(value: float) -> str:
    """Writes a number for a label or a table."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}"


def _curves(
    series: Series, x: curves.Axis, y: curves.Axis, index: int, with_dots: bool
) -> list[str]:
    chosen = curves.decimate(series.values, _MAX_POINTS)
    path = _path(series.steps[chosen], series.values[chosen], x, y)
    style = f"curve s{index % 4}"
    if with_dots:
        style += " dotted"
        dots = _dots(series, x, y)
        return [
            f'<path class="{style}" d="{path}"/>',
            f'<path class="dots s{index % 4}" d="{dots}"/>',
        ]
    if len(series.values) < _AVERAGED_FROM:
        return [f'<path class="{style}" d="{path}"/>']
    count = min(len(series.values), _NUM_AVERAGED_POINTS)
    some = np.linspace(0, len(series.values) - 1, count).round().astype(int)
    averages = curves.moving_average(series.values)[some]
    average = _path(series.steps[some], averages, x, y)
    return [
        f'<path class="{style} raw" d="{path}"/>',
        f'<path class="{style}" d="{average}"/>',
    ]


def _path(
    steps: np.ndarray, values: np.ndarray, x: curves.Axis, y: curves.Axis
) -> str:
    """Writes a path with a gap wherever a value is missing."""
    parts, is_down = [], False
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if value != value:
            is_down = False
            continue
        # Without a length, a point with no neighbour would not be seen.
        end = "" if is_down else "h0"
        parts.append(
            f"{'L' if is_down else 'M'}{_point(step, value, x, y)}{end}"
        )
        is_down = True
    return "".join(parts)


def _dots(series: Series, x: curves.Axis, y: curves.Axis) -> str:
    chosen = curves.decimate(series.values, _MAX_POINTS)
    return "".join(
        f"M{_point(step, value, x, y)}h0"
        for step, value in zip(
            series.steps[chosen].tolist(),
            series.values[chosen].tolist(),
            strict=True,
        )
        if value == value
    )


def _point(step: float, value: float, x: curves.Axis, y: curves.Axis) -> str:
    across = x.place(step) * _WIDTH
    down = (1 - y.place(value)) * _HEIGHT
    return f"{across:.4g} {down:.4g}"


def _level(value: float, y: curves.Axis) -> str:
    down = (1 - y.place(value)) * _HEIGHT
    return f'<path class="level" d="M0 {down:.4g}H{_WIDTH}"/>'


def _mark(mark: Mark, x: curves.Axis) -> str:
    across = x.place(mark.step) * _WIDTH
    return (
        f'<path class="mark {mark.kind}" d="M{across:.4g} 0V{_HEIGHT}">'
        f"<title>{html.escape(mark.text)}</title></path>"
    )


def _gridlines(y: curves.Axis) -> str:
    downs = [(1 - y.place(tick)) * _HEIGHT for tick in y.ticks]
    path = "".join(f"M0 {down:.4g}H{_WIDTH}" for down in downs)
    return f'<path class="gridlines" d="{path}"/>'


def _labels(y: curves.Axis) -> str:
    labels = "".join(
        f'<span style="bottom:{100 * y.place(tick):.4g}%">{short(tick)}</span>'
        for tick in y.ticks
    )
    return f'<div class="values" aria-hidden="true">{labels}</div>'


def _step_labels(x: curves.Axis) -> str:
    ticks = [(100 * x.place(tick), _short_step(tick)) for tick in x.ticks]
    return '<span class="unit">step</span>' + "".join(
        f'<span style="left:{percent:.4g}%">{text}</span>'
        for percent, text in ticks
    )


def _short_step(step: float) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if step and step % (size / 10) == 0 and step >= size:
            return f"{short(step / size)}{unit}"
    return short(step)


def _notes(chart: Chart, y: curves.Axis) -> str:
    notes = [chart.note] if chart.note else []
    if y.is_logarithmic:
        notes.append("logarithmic")
    num_missing = sum(s.num_missing for s in chart.series.values())
    if num_missing:
        notes.append(
            f"{num_missing:,} {'values' if num_missing > 1 else 'value'}"
            " not finite"
        )
    return "".join(f" <small>{html.escape(note)}</small>" for note in notes)


def _legend(chart: Chart) -> str:
    parts = [
        f'<span><i class="key s{index % 4}"></i>{html.escape(label)}'
        f' <output data-last="{short(_last(series))}">{short(_last(series))}'
        "</output></span>"
        for index, (label, series) in enumerate(chart.series.items())
    ]
    parts += [
        f'<span><i class="key level"></i>{html.escape(label)}'
        f" {short(value)}</span>"
        for label, value in chart.levels.items()
    ]
    return f'{"".join(parts)}<span class="where"></span>'


def _in_words(chart: Chart) -> str:
    parts = [
        f"{label} from {short(series.values[0])} to {short(_last(series))},"
        f" least {short(np.nanmin(series.values))}, greatest"
        f" {short(np.nanmax(series.values))}"
        for label, series in chart.series.items()
        if series.num_missing < len(series.values)
    ]
    parts += [f"{label} {short(v)}" for label, v in chart.levels.items()]
    return f"{chart.title} by step: {'; '.join(parts)}."


def _last(series: Series) -> float:
    return float(series.values[-1])


def _numbers(chart: Chart, x: curves.Axis) -> str:
    """Writes what the script shows where the pointer is."""
    series = []
    for each in chart.series.values():
        chosen = curves.decimate(each.values, _MAX_POINTS)
        series.append(
            {
                "steps": each.steps[chosen].tolist(),
                "values": [short(v) for v in each.values[chosen].tolist()],
            }
        )
    text = json.dumps(
        {"first": x.low, "last": x.high, "series": series},
        separators=(",", ":"),
    )
    return text.replace("<", "\\u003c")
