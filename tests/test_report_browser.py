"""The page in a real browser, where there is one: it works, without a word."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

from tests import recorded_runs
from trainer import report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Looks at the page in a frame of its own, as its reader would.
_READER = """\
<!doctype html><body><iframe id="frame" src="report.html" width="WIDTH"
 height="900"></iframe><pre id="found"></pre><script>
const wait = (msecs) => new Promise((done) => setTimeout(done, msecs));
async function read() {
  const page = document.querySelector("#frame").contentDocument;
  const shown = () => [...page.querySelectorAll(".grid")].filter(
    (grid) => grid.offsetParent !== null).map((grid) => grid.dataset.epoch);
  const found = { epochs: [shown()], labels: [], words: [] };
  const images = [...page.images];
  found.images = await Promise.all(images.map(async (image) => {
    await image.decode();
    return image.naturalWidth;
  }));
  found.shown_width = images.at(-1).getBoundingClientRect().width;
  const slider = page.querySelector("#slider");
  for (const position of [0, 1]) {
    slider.value = position;
    slider.dispatchEvent(new Event("input"));
    found.epochs.push(shown());
    found.labels.push(page.querySelector("#epoch").textContent);
    found.words.push(slider.getAttribute("aria-valuetext"));
  }
  page.querySelector("#play").click();
  for (let i = 0; i < 100 && slider.value !== slider.max; i++) await wait(100);
  found.epochs.push(shown());
  const chart = page.querySelector(".chart .plot");
  const box = chart.getBoundingClientRect();
  const output = page.querySelector(".chart output");
  const where = page.querySelector(".chart .where");
  const point = (type, x) => chart.dispatchEvent(
    new PointerEvent(type, { clientX: x }));
  found.hovered = [output.textContent];
  point("pointermove", box.left + box.width / 2);
  found.hovered.push(output.textContent, where.textContent);
  point("pointerleave", 0);
  found.hovered.push(output.textContent, where.textContent);
  const root = page.documentElement;
  found.overflow = root.scrollWidth - root.clientWidth;
  found.unnamed = [...page.querySelectorAll("img, svg, button, input")].filter(
    (e) => !(e.alt || e.getAttribute("aria-label"))).length;
  return found;
}
onload = () => read().then(JSON.stringify, String).then((text) => {
  document.querySelector("#found").textContent = text;
});
</script></body>
"""


@pytest.fixture(name="browser")
def _browser():
    paths = [path for name in _NAMES if (path := shutil.which(name))]
    if not paths:
        pytest.skip("There is no Chromium here.")
    return paths[0]


def read(browser, page: pathlib.Path, width: int):
    reader = page.with_name("reader.html")
    reader.write_text(_READER.replace("WIDTH", str(width)))
    arguments = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--allow-file-access-from-files", "--enable-logging=stderr"),
        *(f"--user-data-dir={page.parent / 'profile'}", "--disable-sync"),
        *("--disable-background-networking", "--no-first-run"),
        *("--virtual-time-budget=20000", f"--window-size={width + 100},1000"),
    ]
    result = subprocess.run(
        [browser, *arguments, reader.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stderr
    return json.loads(found[1]), said


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_works_in_a_browser(browser, tmp_path, width):
    run = recorded_runs.make(tmp_path / "run")
    assert report.main(["report.py", f"--workdir={run.root}"]) == 0
    found, said = read(browser, run.report, width)
    assert said == []
    # Four grids of 20 pixels and the real images, as large as there is room.
    assert found["images"] == [20] * 5
    assert found["shown_width"] > 300
    # At first the last one; then those that were chosen; then to the end.
    assert found["epochs"] == [["4"], ["1"], ["2"], ["4"]]
    assert found["labels"] == ["1", "2"]
    assert found["words"] == ["Epoch 1", "Epoch 2"]
    assert found["hovered"] == ["25", "50", "step 20", "25", ""]
    assert found["overflow"] == 0
    assert found["unnamed"] == 0


def test_a_script_that_comes_with_the_run_does_not_run(browser, tmp_path):
    evil = "<script>console.log(1)</script><img src=x onerror=console.log(2)>"
    run = recorded_runs.make(tmp_path / "run")
    run.environment.write_text(json.dumps({"image": evil}))
    recorded_runs.write_lines(
        run.metrics, [{"step": step, evil: step, "epoch": 1} for step in (1, 2)]
    )
    assert report.main(["report.py", f"--workdir={run.root}"]) == 0
    _, said = read(browser, run.report, 1200)
    assert said == []
