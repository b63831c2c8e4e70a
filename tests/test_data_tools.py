"""What `inspect` and `prepare` print, write and exit with."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tests import idx_files, image_files
from trainer import command_line, config, data, data_tools, errors
from trainer.data import inspection

ROOT = pathlib.Path(config.__file__).parent.parent


def run(*args: str) -> int:
    return command_line.exit_code_of(
        lambda: data_tools.run(["data_tools", *args])
    )


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    image_files.write_folder(tmp_path / "pictures", 40)
    return tmp_path / "pictures"


def test_as_a_command(folder, tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "trainer.data_tools", "inspect"),
            *("--dataset=folder:pictures", f"--data_dir={tmp_path}"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    found = {words[0]: words[1] for words in lines if len(words) == 2}
    assert found["images"].startswith("80, ")
    assert found["formats"] == "80 JPEG"
    assert found["sizes"] == "all 32x32 (height x width)"
    assert found["channels"] == "80 colours"
    assert (found["classes"], found["40"]) == ("2", "dog")
    assert found["samples"] == "80 of 32x32x3"
    assert found["decoding"].startswith("too few images to tell")
    assert found["digest"].startswith("images:")
    assert "not used   0" in result.stdout
    grid = np.asarray(PIL.Image.open(tmp_path / "inspect.png"))
    assert grid.shape == (548, 548, 3)  # 8x8 pictures, twice as large.


def test_what_is_wrong_is_listed_in_full_and_exits_3(folder, capsys):
    bad = image_files.bad_files()
    for name, (content, _) in bad.items():
        (folder / "cat" / name).write_bytes(content)
    path = folder / "dog" / "0001.jpg"
    path.write_bytes(image_files.damage(path.read_bytes()))
    (folder / "dog" / "0002.jpg").rename(folder / "dog" / "0002.png")
    assert run("inspect", f"--dataset=folder:{folder}") == 3
    out = capsys.readouterr().out
    for name, (_, reason) in bad.items():
        [line] = [li for li in out.splitlines() if f"  cat/{name}:" in li]
        assert reason in line
    assert "  dog/0001.jpg: jpeg::Uncompress failed. Invalid JPEG data" in out
    assert ".\n" not in out.partition("not used")[2].partition("\n\n")[0]
    assert f"not used   {len(bad) + 1}" in out
    assert "1 have the name of another format" in out
    assert "training would exit with code 3" in out
    allowed = "--max_bad_fraction=0.5"
    assert run("inspect", f"--dataset=folder:{folder}", allowed) == 0


def test_the_rate_is_without_the_first_batch(monkeypatch):
    secs = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(inspection.time, "monotonic", lambda: next(secs))
    clock = inspection._Clock()
    batches = [np.zeros([size, 2]) for size in (256, 300, 100)]
    assert len(list(clock.time(batches))) == 3
    assert clock.describe() == "100 images/s on this machine"


def test_sizes_that_differ_are_told_before_the_error(folder, capsys):
    content = image_files.encode(image_files.pixels(0, 50, 60, 1))
    (folder / "cat" / "large.png").write_bytes(content)
    arguments = ["inspect", f"--dataset=folder:{folder}"]
    assert run(*arguments) == 3
    out, err = capsys.readouterr()
    assert "2 different ones: heights 32 to 50 (median 32)" in out
    assert "1 grey, 80 colours" in out
    assert "--image_size=32x32" in err
    assert run(*arguments, "--image_size=16x24", "--picture=small.png") == 0
    assert pathlib.Path("small.png").exists()
    assert "81 of 16x24x3" in capsys.readouterr().out


def test_arrays_can_be_inspected_too(tmp_path, capsys):
    idx_files.write_random(tmp_path)
    arguments = ["--dataset=mnist", f"--data_dir={tmp_path}"]
    assert run("inspect", *arguments) == 0
    out = capsys.readouterr().out
    assert "samples    20 of 28x28x1" in out
    assert "values     0 to 255, mean 12" in out
    assert "classes    10" in out


def test_prepare_packs_what_then_gives_the_same(folder, tmp_path, capsys):
    arguments = ["prepare", f"--dataset=folder:{folder}", "--output=packed"]
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "80 images in 1 shard(s), 1 of them new" in out
    assert "--dataset='tfrecord:packed/*.tfrecord'" in out
    packed = data.load("tfrecord:packed/*.tfrecord", data_dir=str(tmp_path))
    source = data.load(f"folder:{folder}", data_dir=None)
    np.testing.assert_array_equal(packed.samples, source.samples)
    with pytest.raises(errors.UsageError, match="packed/[*].tfrecord"):
        data.load("folder:packed", data_dir=str(tmp_path))
    assert run(*arguments) == 0
    assert "0 of them new" in capsys.readouterr().out
    assert run(*arguments, "--image_size=8") == 2
    assert "another data set" in capsys.readouterr().err


def test_prepare_keeps_originals_of_all_sizes(folder, capsys):
    content = image_files.encode(image_files.pixels(0, 50, 60))
    (folder / "cat" / "large.png").write_bytes(content)
    arguments = ["prepare", f"--dataset=folder:{folder}", "--output=packed"]
    assert run(*arguments) == 0
    packed = data.list_images(
        "tfrecord:packed/*.tfrecord", data_dir=".", wanted=data.Wanted()
    )
    index = packed.heights.tolist().index(50)
    assert packed.storage.read(index) == content


def test_prepare_tells_what_is_left_out_every_time(folder, capsys):
    path = folder / "dog" / "0001.jpg"
    path.write_bytes(image_files.damage(path.read_bytes()))
    arguments = ["prepare", f"--dataset=folder:{folder}", "--output=packed"]
    for fraction, exit_code in (("0.01", 3), ("0.01", 3), ("0.1", 0)):
        limit = f"--max_bad_fraction={fraction}"
        assert run(*arguments, limit) == exit_code
        out = capsys.readouterr().out
        assert "left out   1\n  dog/0001.jpg: jpeg::Uncompress failed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'' is no command. Choose one of: inspect, prepare"),
        (["pack"], "'pack' is no command"),
        (["prepare", "--dataset=folder:x"], "--output is missing"),
        (["prepare", "--output=x"], "digits is in memory"),
        (
            ["prepare", "--dataset=folder:x", "--output=gs://bucket/x"],
            "--output=gs://bucket/x is a URL",
        ),
        (["prepare", "--dataset=folder:.", "--output=x"], "--output=x is in"),
        (["prepare", "--dataset=folder:x", "--output=x"], "--output=x is in"),
        (["inspect", "--output=x"], "Unknown command line flag 'output'"),
        (["inspect", "--picture=no/x.png"], "--picture=no/x.png cannot be"),
        (["inspect", "--picture=."], "--picture=. cannot be written"),
        (["inspect", "--epochs=2"], "Unknown command line flag 'epochs'"),
        (["inspect", "--image_size=x"], "--image_size=x is not valid"),
        (["inspect", "x"], "'x' is not a flag"),
    ],
)
def test_what_cannot_be_used_exits_2(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    for text in ("inspect", "--picture", "--shard_mib", "--max_bad_fraction"):
        assert text in out
    assert "--epochs" not in out


def test_without_a_size_what_is_damaged_is_still_told(folder, capsys):
    sideways = PIL.Image.Exif()
    sideways[0x0112] = 6
    (folder / "cat" / "0000.jpg").write_bytes(
        image_files.encode(image_files.pixels(7, 20, 30), "JPEG", exif=sideways)
    )
    path = folder / "dog" / "0001.jpg"
    path.write_bytes(image_files.damage(path.read_bytes()))
    assert run("inspect", f"--dataset=folder:{folder}") == 3
    out, err = capsys.readouterr()
    assert "turned     1, as their cameras noted" in out
    assert "heights 30 to 32 (median 32), widths 20 to 32" in out
    assert "  dog/0001.jpg: jpeg::Uncompress failed" in out
    assert "--image_size=32x32" in err


def test_names_are_any_bytes(folder, capsys):
    os.rename(os.fsencode(folder / "dog"), os.fsencode(folder) + b"/d\xe9g")
    images = os.fsencode(folder / "cat")
    for name in (b"line\nfeed.jpg", b"esc\x1b[31m.jpg", b"\xe9.jpg"):
        with open(images + b"/" + name, "wb") as file:
            file.write(b"nothing")
    command = [sys.executable, "-m", "trainer.data_tools"]
    result = subprocess.run(
        [*command, "inspect", f"--dataset=folder:{folder}"],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    assert "                  40  d\\udce9g" in lines
    for name in ("line\\nfeed", "esc\\x1b[31m", "\\udce9"):
        assert f"  cat/{name}.jpg: not an image" in lines
    # As an error as well, and in what is packed.
    arguments = ["prepare", f"--dataset=folder:{folder}", "--output=packed"]
    assert run(*arguments) == 3
    assert "  cat/line\\nfeed.jpg (not an image)\n" in capsys.readouterr().err
    assert run(*arguments, "--max_bad_fraction=0.1") == 0
    packed = data.load("tfrecord:packed/*.tfrecord", data_dir=".")
    assert packed.class_names == ("cat", "d\udce9g")


def test_what_is_wrong_is_listed_where_nothing_can_be_used(folder, capsys):
    bad = sorted((folder / "dog").iterdir())
    for path in bad:
        path.write_bytes(b"nothing")
    assert run("inspect", f"--dataset=folder:{folder}") == 3
    out, err = capsys.readouterr()
    assert "without an image that can be used: dog" in err
    assert "  dog/0000.jpg (not an image)" in err
    for directory in (folder, folder / "dog"):
        run("inspect", f"--dataset=folder:{directory}")
        out = capsys.readouterr().out
        for path in bad:
            assert f"{path.name}: not an image\n" in out
