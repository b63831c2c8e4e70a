"""The command that draws what a run makes."""

import io
import pathlib
import weakref

import numpy as np
import PIL.Image
import pytest
import scipy.stats

from tests import stored_runs
from trainer import generate, generation, samples


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("generate") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stored_runs.use_tiny_networks(monkeypatch)
        assert stored_runs.run(workdir) == 0
    return workdir


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_runs.use_tiny_networks(monkeypatch)


@pytest.fixture
def conditional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a run have a generator of two classes, dark and bright."""
    generator = stored_runs.conditional_generator()
    monkeypatch.setattr(
        "trainer.stored_run.StoredRun.build_generator", lambda run: generator
    )
    monkeypatch.setattr("trainer.stored_run.StoredRun.num_classes", 2)


def draw(workdir, output, *args):
    return generate.main(
        [
            "generate.py",
            f"--workdir={workdir}",
            f"--output={output}",
            *args,
        ]
    )


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def test_the_grid_of_each_step_goes_into_the_run_directory(workdir, capsys):
    grids = []
    for step in (7, 14):
        arguments = [f"--workdir={workdir}", f"--step={step}"]
        assert generate.main(["generate.py", *arguments]) == 0
        name = f"step-{step:09d}/grid_seed_0.png"
        grids.append(workdir / "generated" / name)
        assert str(grids[-1]) in capsys.readouterr().out
    one, other = map(pixels, grids)
    assert one.shape == other.shape == (488, 488)
    assert not np.array_equal(one, other)


def test_as_many_files_as_asked_for(workdir, tmp_path):
    arguments = ["--kind=files", "--num_samples=70"]
    assert draw(workdir, tmp_path / "some", *arguments) == 0
    paths = sorted((tmp_path / "some").iterdir())
    assert [p.name for p in paths] == [f"sample_{i:06d}.png" for i in range(70)]
    assert pixels(paths[69]).shape == (28, 28)
    # Number 1 is the same among fewer, and another with another seed.
    draw(workdir, tmp_path / "few", "--kind=files", "--num_samples=2")
    few = pixels(tmp_path / "few" / paths[1].name)
    np.testing.assert_array_equal(few, pixels(paths[1]))
    draw(
        workdir,
        tmp_path / "other",
        "--kind=files",
        "--num_samples=2",
        "--seed=1",
    )
    other = pixels(tmp_path / "other" / paths[1].name)
    assert not np.array_equal(few, other)


def test_an_interpolation_goes_round(workdir, tmp_path):
    arguments = ["--kind=interpolation", "--num_samples=3", "--num_frames=4"]
    assert draw(workdir, tmp_path, *arguments) == 0
    with PIL.Image.open(tmp_path / "interpolation_seed_0.gif") as gif:
        assert gif.n_frames == 12
        assert gif.info["loop"] == 0


def test_the_frames_of_a_gif_are_not_all_in_memory_at_once():
    made = []
    most = 0

    def frames():
        nonlocal most
        for shade in range(40):
            image = np.full([8, 8, 1], shade, np.uint8)
            made.append(weakref.ref(image))
            most = max(most, sum(each() is not None for each in made))
            yield image

    with PIL.Image.open(
        io.BytesIO(samples.to_gif(frames(), frame_msecs=50))
    ) as gif:
        assert gif.n_frames == 40
    assert most < 10


def test_an_interpolation_can_be_an_mp4(workdir, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    arguments = ["--kind=interpolation", "--num_samples=3", "--num_frames=4"]
    assert draw(workdir, tmp_path, *arguments, "--format=mp4") == 0
    path = tmp_path / "interpolation_seed_0.mp4"
    reader = ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    assert len(list(reader)) == 12
    draw(workdir, tmp_path, *arguments)
    with PIL.Image.open(path.with_suffix(".gif")) as gif:
        assert gif.size == size


def test_classes_are_rows_of_a_grid(workdir, tmp_path, conditional):
    assert draw(workdir, tmp_path, "--num_samples=3") == 0
    grid = pixels(tmp_path / "grid_seed_0.png")
    rows = np.array_split(grid[5:-5], 2)
    assert rows[0].mean() < rows[1].mean() - 50


def test_single_classes_can_be_drawn(workdir, tmp_path, conditional):
    arguments = ["--labels=1", "--kind=files", "--num_samples=2"]
    assert draw(workdir, tmp_path, *arguments) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["class_1_000000.png", "class_1_000001.png"]
    assert (pixels(tmp_path / names[0]) == 255).all()


def test_an_unknown_class_is_refused(workdir, tmp_path, capsys, conditional):
    assert draw(workdir, tmp_path, "--labels=0,2") == 2
    assert "the classes are 0 to 1" in capsys.readouterr().err


def test_of_many_classes_some_can_be_chosen(
    workdir, tmp_path, capsys, conditional
):
    assert draw(workdir, tmp_path, "--num_samples=4000") == 2
    assert "choose --labels, or take --kind=files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--labels=3"], "was not trained with classes"),
        (["--labels=dog"], "numbers with commas"),
        (["--num_samples=5000"], "take --kind=files"),
        (["--kind=interpolation", "--num_frames=999"], "frames in a GIF"),
        (["--format=mp4"], "--kind=grid is no film"),
        (["--truncation=0"], "0.05"),
        (["--step=99"], "no checkpoint of step 99"),
        (["--kind=film"], "grid, files, interpolation"),
    ],
)
def test_misuse_is_explained(workdir, tmp_path, capsys, args, text):
    assert draw(workdir, tmp_path / "none", *args) in (2, 4)
    assert text in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_help_lists_the_flags(capsys):
    assert generate.main(["generate.py", "--help"]) == 0
    assert "--truncation" in capsys.readouterr().out


def test_truncated_latents_are_a_truncated_normal():
    latents = np.random.default_rng(0).normal(size=[100, 50])
    cut = generation.truncate(latents, 0.7)
    assert abs(cut).max() <= 0.7
    test = scipy.stats.kstest(cut.ravel(), scipy.stats.truncnorm(-0.7, 0.7).cdf)
    assert test.pvalue > 0.01
    # Each keeps its rank; a bound far away changes nothing.
    assert (np.argsort(cut[0]) == np.argsort(latents[0])).all()
    np.testing.assert_allclose(
        generation.truncate(latents, 9.0), latents, atol=1e-5
    )


def test_latents_in_between_are_as_long_as_the_ends():
    one, other = np.random.default_rng(0).normal(size=[2, 100])
    one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
    path = generation.interpolate(one, other, 8)
    np.testing.assert_allclose(path[0], one, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1, atol=1e-6)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)


def test_the_way_from_a_vector_to_itself_stays_there():
    one = np.ones(5)
    np.testing.assert_allclose(generation.interpolate(one, one, 3), 1.0)
