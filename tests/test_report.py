"""The command that shows a run as one page, and what the page says."""

import html.parser
import json
import shutil
import types

import pytest

from tests import recorded_runs
from trainer import report, train
from trainer.storage.local import LocalStore


@pytest.fixture(name="run")
def _run(tmp_path):
    return recorded_runs.make(tmp_path / "run")


def make_page(run):
    assert report.main(["report.py", f"--workdir={run.root}"]) == 0
    return run.report.read_text()


class Text(html.parser.HTMLParser):
    """What a person reads, and which elements there are."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data):
        if not self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def count(page, tag, **wanted):
    return sum(
        found == tag and wanted.items() <= attributes.items()
        for found, attributes in Text(page).tags
    )


def test_the_page_says_how_the_run_stands(run, capsys):
    text = Text(make_page(run)).text
    assert str(run.report) in capsys.readouterr().out
    for expected in (
        "Finished: step 40 of 40, epoch 4 of 4",
        "Newest checkpoint step 40 all of it is saved",
        "Best checkpoint step 20 Fréchet distance 25",
        "Images a second 320",
        # 40 steps of 32 images at 320 images/s take 4 s.
        "1,280 in 4 s of training",
        "10.0% waiting for data; 0.0% for saves",
        "Restarts 1 went back 1 time",
        "Images in the data 1,794 3 more are bad, and not used",
        "restarted : step 20",
        "went back after diverging or a collapse : step 30",
        "--epochs 4 50",
        "devices CPU:0",
    ):
        expected = expected.replace(" :", ":")
        assert expected in text, expected


def test_every_metric_is_drawn_and_what_never_changes_is_said(run):
    text = Text(make_page(run)).text
    assert "Losses 1 value not finite" in text
    assert "A new metric" in text
    assert "Always the same:" in text
    assert "failed saves 0" in text


def test_evaluations_stand_beside_their_floors_by_protocol(run):
    text = Text(make_page(run)).text
    assert "1000 generated against 1000 real samples" in text
    assert "Floor (real) 0.3 Step 20, best 50 Step 40 25" in text
    assert "features classifier-1 (97% right), seed 1. Floor: 500" in text
    assert "Floor (real) 0.3 Step 40 7.5" in text


def test_all_grids_and_the_real_images_are_in_the_page(run):
    page = make_page(run)
    assert count(page, "img") == 5
    assert count(page, "img", width="60", **{"class": "squares"}) == 5
    assert "http" not in page.replace("http-equiv", "")


def test_the_same_directory_gives_the_same_bytes(run):
    first = make_page(run)
    assert make_page(run) == first
    report.write_at_end(run, LocalStore(run.checkpoints))
    assert run.report.read_text() == first


def test_texts_of_the_files_are_no_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    run = recorded_runs.make(tmp_path / evil)
    quoted = "\"'><img src=x onerror=alert(1)>"
    run.environment.write_text(json.dumps({quoted: evil, "list": [evil, 1]}))
    line = {"step": 3, evil: 1.0, "g_loss": 1.0}
    change = {"step": 4, evil: 2.0, "g_loss": 2.0}
    recorded_runs.write_lines(run.metrics, [line, change])
    judged = {"step": 3, "kind": "evaluation", "split": evil}
    judged |= {evil: 1, f"{evil}_floor": 2}
    recorded_runs.write_lines(run.evaluations, [judged])
    recorded_runs.write_lines(
        run.starts, [{"step": 0}, {"step": 1, "time": evil}]
    )
    page = make_page(run)
    scripts = [a for tag, a in Text(page).tags if tag == "script"]
    # The page's own, and the numbers of its charts.
    assert scripts.count({}) == 1
    assert scripts.count({"type": "application/json"}) == len(scripts) - 1
    assert evil not in page
    assert count(page, "img", src="x") == 0


@pytest.mark.parametrize(
    "missing",
    [
        "checkpoints",
        "environment.json",
        "evaluations.jsonl",
        "metrics.jsonl",
        "samples",
        "starts.jsonl",
    ],
)
def test_what_is_missing_is_no_reason_to_fail(run, missing):
    path = run.root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "epoch 4 of 4" in make_page(run) or missing == "metrics.jsonl"


def test_a_run_that_has_only_begun_has_a_page(run):
    for path in run.root.iterdir():
        if path != run.config:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Text(make_page(run)).text
    assert "Not yet begun: step 0, epoch 0 of 4" in text
    assert "No samples have been drawn yet." in text
    assert "Nothing has been measured." in text
    assert "Nothing has been recorded yet." in text


def test_damaged_checkpoints_are_told_of(run):
    [checkpoint] = run.checkpoints.iterdir()
    (checkpoint / "state.index").write_bytes(b"other")
    text = Text(make_page(run)).text
    assert "None of the 1 checkpoints" in text
    assert "Not known to be finished: step 40, epoch 4 of 4" in text


def test_an_unfinished_run_says_what_is_not_saved(tmp_path):
    run = recorded_runs.make(tmp_path / "run")
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps(config | {"epochs": 6}))
    with run.metrics.open("a") as file:
        file.write('{"step": 45, "epoch": 5, "g_loss": NaN}\n{"step": 46, "ep')
    text = Text(make_page(run)).text
    assert "Not finished: step 45 of 60, epoch 5 of 6" in text
    assert "step 40 5 steps are not saved yet" in text


def test_a_page_goes_where_it_is_asked_to(run, tmp_path):
    output = tmp_path / "pages" / "one.html"
    arguments = [f"--workdir={run.root}", f"--output={output}"]
    assert report.main(["report.py", *arguments]) == 0
    assert output.read_text().startswith("<!doctype html>")
    assert not run.report.exists()


def test_a_page_that_fails_is_only_a_warning_at_the_end(run, caplog):
    run.metrics.unlink()
    run.metrics.mkdir()
    report.write_at_end(run, LocalStore(run.checkpoints))
    assert "takes nothing from the run" in caplog.text
    assert not run.report.exists()


@pytest.mark.parametrize(
    ("step", "mirror", "quick_bytes", "expected"),
    [
        (40, "a bucket", 0, True),
        (39, None, 1 << 24, True),
        (39, None, 0, False),
        (39, "a bucket", 1 << 24, False),
    ],
)
def test_after_a_signal_only_a_quick_page_is_written(
    run, monkeypatch, step, mirror, quick_bytes, expected
):
    monkeypatch.setattr(report, "_QUICK_BYTES", quick_bytes)
    plan = types.SimpleNamespace(
        team=types.SimpleNamespace(is_chief=True),
        schedule=types.SimpleNamespace(last_step=40),
        mirror=mirror,
        directory=run,
        store=LocalStore(run.checkpoints),
    )
    train._write_report(plan, step)
    assert run.report.exists() == expected


def test_misuse_is_explained(tmp_path, capsys):
    assert report.main(["report.py"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err
    assert report.main(["report.py", f"--workdir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_a_storage_error(run, capsys):
    run.metrics.unlink()
    run.metrics.mkdir()
    assert report.main(["report.py", f"--workdir={run.root}"]) == 6
    assert "metrics.jsonl" in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    assert report.main(["report.py", "--help"]) == 0
    assert "--output" in capsys.readouterr().out


def test_a_run_in_a_bucket_has_a_page_too(run, tmp_path, fake, monkeypatch):
    for path in run.root.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            name = f"runs/a/{path.relative_to(run.root)}"
            fake.objects.put("bucket", name, path.read_bytes())
    monkeypatch.chdir(tmp_path)
    arguments = ["--workdir=gs://bucket/runs/a", "--output=page.html"]
    assert report.main(["report.py", *arguments]) == 0
    text = Text((tmp_path / "page.html").read_text()).text
    assert "step 40, epoch 4 of 4" in text
    assert "Newest checkpoint none" in text
    assert "restarted: step 20" in text
