"""The page as a whole: one HTML file with everything in it.

Nothing of it depends on when or where it is made, so that the same run
directory gives the same bytes. All that comes from files is escaped, and the
page's own policy forbids it any network.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.reporting import evaluations, pictures, summary, training_charts
from trainer.reporting.facts import Facts
from trainer.reporting.pictures import Picture

_HERE = Path(__file__).parent


def render(facts: Facts) -> str:
    """Returns the page.

    Raises:
      OSError: the pictures' directory cannot be read.
    """
    style = (_HERE / "page.css").read_text()
    script = (_HERE / "page.js").read_text()
    marks = facts.marks()
    measured = evaluations.render(
        facts.history.evaluations,
        facts.measured,
        best_step=facts.best["step"] if facts.best else None,
        marks=marks,
        last_step=facts.step,
    )
    curves = training_charts.render(facts.history, marks)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">
<link rel="icon" href="data:,">
<title>{html.escape(facts.title)}: {html.escape(facts.standing)}</title>
<style>{style}</style>
</head>
<body>
<header>
{summary.header(facts)}
</header>
<main>
{summary.key_numbers(facts)}
{_section("Samples", _samples(facts))}
{_section("How good it is", measured)}
{_section("Training", summary.legend_of(marks) + curves)}
{_section("Settings", _settings(facts))}
{_section("Environment", _environment(facts.environment))}
</main>
<footer>
<p>Made by <code>python -m trainer.report</code> from the files of the run
directory; running it again shows what has come since.</p>
</footer>
<script>{script}</script>
</body>
</html>
"""


def _policy(style: str, script: str) -> str:
    """Allows this style, this script and pictures in the page, and no more."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return html.escape(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _samples(facts: Facts) -> str:
    """Shows the grids one at a time, beside what the data look like."""
    grids, num_grids = pictures.read_grids(facts.samples)
    real = pictures.read_picture(facts.samples / "real.png")
    parts = []
    if grids:
        parts.append(_grids(grids))
    if real:
        parts.append(
            f'<figure class="real">{_image(real, "Real images of the data")}'
            "<figcaption>Real images</figcaption></figure>"
        )
    if not parts:
        return "<p>No samples have been drawn yet.</p>"
    note = ""
    if len(grids) < num_grids:
        note = f"<p>{len(grids)} of {num_grids:,} grids, evenly spaced.</p>"
    return f'<div class="samples">{"".join(parts)}</div>{note}'


def _grids(grids: list[tuple[int, Picture]]) -> str:
    last = len(grids) - 1
    images = "\n".join(
        f'<div class="grid" data-epoch="{epoch}"{" hidden" * (i < last)}>'
        f"{_image(picture, f'Generated samples after epoch {epoch}')}</div>"
        for i, (epoch, picture) in enumerate(grids)
    )
    return f"""\
<figure class="generated" id="grids">
{images}
<figcaption>Generated, always from the same latents; epoch \
<output id="epoch" for="slider">{grids[last][0]}</output></figcaption>
<div class="controls">
<button type="button" id="play" aria-label="Play the epochs">▶</button>
<input type="range" id="slider" min="0" max="{last}" value="{last}" step="1" \
aria-label="Epoch of the samples" aria-valuetext="Epoch {grids[last][0]}">
</div>
</figure>"""


def _image(picture: Picture, alt: str) -> str:
    kind = ' class="squares"' if picture.is_enlarged else ""
    return (
        f'<img{kind} src="{picture.uri}" width="{picture.width}"'
        f' height="{picture.height}" alt="{html.escape(alt)}">'
    )


def _settings(facts: Facts) -> str:
    changed = [s for s in facts.settings if s.is_changed]
    table = "<p>All settings have their default values.</p>"
    if changed:
        table = _table(
            ("Changed flag", "Value", "Default"),
            ((f"--{s.name}", s.value, s.default) for s in changed),
        )
    topics = []
    for topic in dict.fromkeys(s.topic for s in facts.settings):
        rows = (
            (f"--{s.name}", s.value, s.help)
            for s in facts.settings
            if s.topic == topic
        )
        topics.append(
            f"<h3>{html.escape(topic)}</h3>"
            + _table(("Flag", "Value", "What it does"), rows)
        )
    return (
        f"{table}\n<details><summary>All {len(facts.settings)} settings"
        f"</summary>\n{''.join(topics)}\n</details>"
    )


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "<p>Nothing is recorded of it.</p>"
    rows = (
        (name.replace("_", " "), value)
        for name, value in environment.items()
        if value is not None
    )
    return _table(("Of the latest start", ""), rows)


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in header)
    lines = []
    for name, *values in rows:
        cells = "".join(f"<td>{_text(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{_text(name)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n'
        f"{body}\n</tbody></table></div>"
    )


def _text(value: Any) -> str:
    """Writes a value as people write it, escaped."""
    if isinstance(value, str):
        return html.escape(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return html.escape(" ".join(value))
    return html.escape(json.dumps(value))
