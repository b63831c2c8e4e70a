"""The records of the training as charts: those that belong together, in one."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from trainer.reporting import charts
from trainer.reporting.charts import Chart, Mark
from trainer.reporting.history import History, Series


@dataclasses.dataclass(frozen=True)
class _Group:
    """Names in metrics.jsonl, by name the label, that share a chart."""

    title: str
    labels: Mapping[str, str]
    note: str = ""
    is_linear: bool = False


# What is in none of them gets a chart of its own, after these.
_GROUPS = (
    _Group("Losses", {"g_loss": "generator", "d_loss": "discriminator"}),
    _Group(
        "Probability of real",
        {"real_probability": "real", "fake_probability": "generated"},
        note="discriminator's mean",
        is_linear=True,
    ),
    _Group(
        "Gradient norms",
        {"g_gradient_norm": "generator", "d_gradient_norm": "discriminator"},
    ),
    _Group("Penalty", {"penalty": "penalty"}),
    _Group(
        "Losses of the classes",
        {"g_class_loss": "of generated", "d_class_loss": "of real"},
    ),
    _Group(
        "Learning rate",
        {"learning_rate_factor": "share of the flags' rates"},
        is_linear=True,
    ),
    _Group(
        "Loss scales",
        {"g_loss_scale": "generator", "d_loss_scale": "discriminator"},
    ),
    _Group(
        "Skipped updates",
        {"g_skipped_steps": "generator", "d_skipped_steps": "discriminator"},
        note="so far",
        is_linear=True,
    ),
    _Group("Images a second", {"images_per_sec": "images/s"}, is_linear=True),
    _Group(
        "Seconds stood still",
        {"data_wait_secs": "for data", "save_secs": "for saves"},
        note="since the point before",
        is_linear=True,
    ),
    _Group(
        "Failures",
        {
            "failed_saves": "saves",
            "failed_uploads": "uploads",
            "failed_writes": "writes",
        },
        note="in one start of the run",
        is_linear=True,
    ),
)


def render(history: History, marks: Sequence[Mark]) -> str:
    """Draws all series; those that never change are one sentence."""
    rest = dict(history.series)
    drawn: list[Chart] = []
    constant: list[tuple[str, Series]] = []
    for group in _GROUPS:
        found = {name: rest.pop(name) for name in group.labels if name in rest}
        if all(series.is_constant for series in found.values()):
            constant += found.items()
            continue
        drawn.append(
            Chart(
                group.title,
                {group.labels[name]: s for name, s in found.items()},
                marks=marks,
                note=group.note,
                is_linear=group.is_linear,
            )
        )
    for name, series in rest.items():
        if series.is_constant:
            constant.append((name, series))
        else:
            drawn.append(Chart(_title(name), {name: series}, marks=marks))
    if not drawn and not constant:
        return "<p>Nothing has been recorded yet.</p>"
    figures = "\n".join(
        charts.render(chart, first_step=0, last_step=history.last_step)
        for chart in drawn
    )
    return f'<div class="charts">\n{figures}\n</div>\n{_unchanging(constant)}'


def _unchanging(constant: Sequence[tuple[str, Series]]) -> str:
    if not constant:
        return ""
    items = ", ".join(
        f"{name.replace('_', ' ')} {charts.short(float(series.values[0]))}"
        for name, series in constant
    )
    return f"<p>Always the same: {html.escape(items)}.</p>"


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
