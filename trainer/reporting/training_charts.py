"""The records of the training as charts: those that belong together, in one."""

import html
from collections.abc import Mapping, Sequence

from trainer.reporting import charts
from trainer.reporting.charts import Chart, Mark
from trainer.reporting.history import History, Series

# (title, note, {name in metrics.jsonl: label}); what is in none of them gets a
# chart of its own, after these.
_GROUPS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    ("Losses", "", {"g_loss": "generator", "d_loss": "discriminator"}),
    (
        "Probability of real",
        "discriminator's mean",
        {"real_probability": "real", "fake_probability": "generated"},
    ),
    (
        "Gradient norms",
        "",
        {
            "g_gradient_norm": "generator",
            "d_gradient_norm": "discriminator",
        },
    ),
    ("Penalty", "", {"penalty": "penalty"}),
    (
        "Augmentation probability",
        "",
        {"augmentation_probability": "probability"},
    ),
    (
        "Learning rate",
        "times what was asked for",
        {"learning_rate_factor": "factor"},
    ),
    (
        "Loss scales",
        "",
        {"g_loss_scale": "generator", "d_loss_scale": "discriminator"},
    ),
    (
        "Skipped updates",
        "since the beginning",
        {"g_skipped_steps": "generator", "d_skipped_steps": "discriminator"},
    ),
    ("Images a second", "", {"images_per_sec": "images/s"}),
    (
        "Seconds that training stood still",
        "since the point before",
        {"data_wait_secs": "for data", "save_secs": "for saves"},
    ),
    (
        "Failures",
        "in one start of the run",
        {
            "failed_saves": "saves",
            "failed_uploads": "uploads",
            "failed_writes": "writes",
        },
    ),
)


def render(history: History, marks: Sequence[Mark]) -> str:
    """Draws all series; those that never change are one sentence."""
    rest = dict(history.series)
    drawn, constant = [], []
    for title, note, labels in _GROUPS:
        found = {name: rest.pop(name) for name in labels if name in rest}
        if all(series.is_constant for series in found.values()):
            constant += [(_spoken(n), s) for n, s in found.items()]
            continue
        by_label = {labels[name]: series for name, series in found.items()}
        drawn.append(Chart(title, by_label, marks=marks, note=note))
    for name, series in rest.items():
        if series.is_constant:
            constant.append((_spoken(name), series))
        else:
            drawn.append(Chart(_spoken(name), {name: series}, marks=marks))
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
        f"{html.escape(name)} {charts.short(float(series.values[0]))}"
        for name, series in constant
    )
    return f"<p>Always the same: {items}.</p>"


def _spoken(name: str) -> str:
    return name.replace("_", " ").capitalize()
