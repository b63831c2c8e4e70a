"""How a run stands, in a few numbers at the top of the page."""

import html
from collections.abc import Sequence

from trainer.reporting.charts import Mark, short
from trainer.reporting.facts import Facts

_KINDS = {
    "restart": "restarted",
    "rollback": "went back after diverging or a collapse",
    "best": "best evaluation",
}


def header(facts: Facts) -> str:
    """Names the run and says whether it is finished."""
    is_finished = facts.standing == "Finished"
    kind = "finished" if is_finished else "unfinished"
    return (
        f"<h1>{html.escape(facts.title)}</h1>\n"
        f"<p>{html.escape(facts.subtitle)}</p>\n"
        f'<p class="standing {kind}">{html.escape(facts.standing)}:'
        f" {_progress(facts)}</p>"
        + (
            f'\n<progress value="{facts.step}" max="{facts.final_step}"'
            ' aria-label="Steps"></progress>'
            if facts.final_step
            else ""
        )
    )


def key_numbers(facts: Facts) -> str:
    """Lays out what one looks for first."""
    cards = [
        ("Newest checkpoint", *_checkpoint(facts)),
        *_best(facts),
        *_speed(facts),
        *_restarts(facts),
        *_data(facts),
        *_failures(facts),
    ]
    items = "\n".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(value)}</b>"
        f"<span>{html.escape(note)}</span></dd></div>"
        for name, value, note in cards
    )
    problem = ""
    if facts.problem:
        problem = f'<p class="problem">{html.escape(facts.problem)}</p>\n'
    return f'{problem}<dl class="cards">\n{items}\n</dl>'


def legend_of(marks: Sequence[Mark]) -> str:
    """Says what the vertical lines of the charts are, if there are any."""
    kinds = [kind for kind in _KINDS if any(m.kind == kind for m in marks)]
    if not kinds:
        return ""
    parts = "".join(
        f'<span><i class="key mark {kind}"></i>{_KINDS[kind]}: step '
        f"{', '.join(f'{m.step:,}' for m in marks if m.kind == kind)}</span>"
        for kind in kinds
    )
    return f'<p class="legend">{parts}</p>\n'


def _progress(facts: Facts) -> str:
    of_steps = f" of {facts.final_step:,}" if facts.final_step else ""
    return (
        f"step {facts.step:,}{of_steps}, epoch {facts.history.last_epoch:,} of"
        f" {facts.epochs:,}"
    )


def _checkpoint(facts: Facts) -> tuple[str, str]:
    if facts.checkpoint_step is None:
        return "none", "nothing is saved yet"
    step = facts.checkpoint_step
    behind = facts.step - step
    note = "all of it is saved"
    if behind:
        note = f"{behind:,} steps are not saved yet"
    return f"step {step:,}", note


def _best(facts: Facts) -> list[tuple[str, str, str]]:
    if not facts.best:
        return []
    distance = facts.best.get("values", {}).get("frechet_distance")
    note = ""
    if distance is not None:
        note = f"Fréchet distance {short(distance)}"
    return [("Best checkpoint", f"step {facts.best['step']:,}", note)]


def _speed(facts: Facts) -> list[tuple[str, str, str]]:
    secs = facts.history.training_secs(facts.images_per_step)
    if not secs:
        return []
    images = facts.step * facts.images_per_step
    waited = facts.history.total("data_wait_secs")
    saved = facts.history.total("save_secs")
    return [
        (
            "Images a second",
            short(float(round(images / secs))),
            "on average, without saves and evaluations",
        ),
        ("Images seen", f"{images:,}", f"in {_duration(secs)} of training"),
        (
            "Stood still",
            f"{100 * waited / secs:.1f}%",
            f"waiting for data; {100 * saved / (secs + saved):.1f}% for saves",
        ),
    ]


def _restarts(facts: Facts) -> list[tuple[str, str, str]]:
    kinds = [mark.kind for mark in facts.marks()]
    rollbacks = facts.host_state.get("num_rollbacks", 0)
    note = "never went back"
    if rollbacks:
        note = f"went back {rollbacks:,} time{'s' * (rollbacks > 1)}"
    return [("Restarts", f"{kinds.count('restart'):,}", note)]


def _data(facts: Facts) -> list[tuple[str, str, str]]:
    num_images = facts.host_state.get("num_images")
    if num_images is None:
        return []
    num_bad = facts.host_state.get("num_bad_images", 0)
    note = f"{num_bad:,} more are bad, and not used" if num_bad else ""
    return [("Images in the data", f"{num_images:,}", note or "none is bad")]


def _failures(facts: Facts) -> list[tuple[str, str, str]]:
    """Counts what could not be saved, uploaded or written; often nothing."""
    found = []
    for what in ("saves", "uploads", "writes"):
        series = facts.history.series.get(f"failed_{what}")
        if series is not None and (most := max(series.values.tolist())) > 0:
            note = "at most, in one start of the run"
            found.append((f"Failed {what}", short(most), note))
    return found


def _duration(secs: float) -> str:
    minutes, secs = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {secs} s" if minutes else f"{secs} s"
