"""Each augmentation against NumPy, for known and for real draws."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from trainer import augmentations, config, errors, randomness

_NAMES = list(augmentations.AUGMENTATIONS)
_BELOW_1 = 1.0 - 2.0**-24


class _Known:
    """Draws that are given."""

    def __init__(self, *numbers: float | list[float]) -> None:
        """Takes the columns of the only draw; one number is for all."""
        self._numbers = numbers

    def uniform(self, shape: tuple[int, ...]) -> tf.Tensor:
        assert shape[1:] == (len(self._numbers),)
        columns = [
            np.broadcast_to(np.float32(n), shape[0]) for n in self._numbers
        ]
        return tf.constant(np.stack(columns, axis=1))


def _draws(first_position: int = 0, **changes) -> randomness.Draws:
    settings = {"seed": 3, "purpose": "augmentation of real", "step": 5}
    return randomness.Draws(
        **(settings | changes), first_position=first_position
    )


def _images(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(8)
    return generator.uniform(-1.0, 1.0, shape).astype(np.float32)


def _augment(
    name: str, images: np.ndarray, draws, probability: float = 1.0
) -> np.ndarray:
    function = augmentations.AUGMENTATIONS[name]
    return function(
        tf.constant(images), draws=draws, probability=probability
    ).numpy()


def _choosing(number: int, count: int) -> float:
    """Returns what draws a whole number, of `count` from 0 on."""
    return (number + 0.5) / count


@pytest.mark.parametrize("channels", [1, 3])
def test_translate_moves_by_whole_pixels_and_fills_with_0(
    channels: int,
) -> None:
    # An eighth of 12 and of 20, rounded, is 2 and 3.
    moves = list(itertools.product(range(-2, 3), range(-3, 4)))
    images = _images(len(moves), 12, 20, channels)
    actual = _augment(
        "translate",
        images,
        _Known(
            0.0,
            [_choosing(2 + down, 5) for down, _ in moves],
            [_choosing(3 + right, 7) for _, right in moves],
        ),
    )
    for image, moved, (down, right) in zip(images, actual, moves, strict=True):
        expected = np.zeros_like(image)
        for row, column in np.ndindex(12, 20):
            if 0 <= row - down < 12 and 0 <= column - right < 20:
                expected[row, column] = image[row - down, column - right]
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize(("height", "limit"), [(4, 1), (28, 4), (32, 4)])
def test_translations_are_as_likely_on_both_sides(
    height: int, limit: int
) -> None:
    marked = np.zeros([3, height, 8, 1], np.float32)
    marked[:, height // 2, 4] = 1.0
    moved = _augment(
        "translate", marked, _Known(0.0, [0.0, 0.5, _BELOW_1], 0.5)
    )
    rows = np.argmax(moved[:, :, 4, 0], axis=1) - height // 2
    assert rows.tolist() == [-limit, 0, limit]
    many = np.zeros([4096, height, 8, 1], np.float32)
    many[:, height // 2] = 1.0
    rows = np.argmax(_augment("translate", many, _draws())[:, :, 4, 0], axis=1)
    counts = np.bincount(rows - height // 2 + limit)
    assert len(counts) == 2 * limit + 1
    expected = 4096 / len(counts)
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def _cutout_of_the_authors(
    height: int, width: int, middle: tuple[int, int]
) -> np.ndarray:
    """Marks what is cut out: the indices, bent back to the image's edges."""
    sizes = [int(length * 0.5 + 0.5) for length in (height, width)]
    rows, columns = (
        np.clip(np.arange(size) + at - size // 2, 0, length - 1)
        for size, at, length in zip(sizes, middle, (height, width), strict=True)
    )
    is_cut = np.zeros([height, width], bool)
    is_cut[np.ix_(rows, columns)] = True
    return is_cut


@pytest.mark.parametrize("shape", [(6, 8, 1), (5, 9, 3), (7, 4, 2)])
def test_cutout_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    # Of even sizes, the middle may be one further.
    counts = [
        length + 1 - int(length * 0.5 + 0.5) % 2 for length in (height, width)
    ]
    middles = list(itertools.product(*map(range, counts)))
    images = _images(len(middles), *shape)
    actual = _augment(
        "cutout",
        images,
        _Known(
            0.0,
            [_choosing(row, counts[0]) for row, _ in middles],
            [_choosing(column, counts[1]) for _, column in middles],
        ),
    )
    areas = set()
    for image, cut, middle in zip(images, actual, middles, strict=True):
        is_cut = _cutout_of_the_authors(height, width, middle)
        areas.add(int(is_cut.sum()))
        np.testing.assert_array_equal(
            cut, np.where(is_cut[..., None], 0, image)
        )
    # A whole one inside, and a quarter of one in a corner.
    assert max(areas) == int(height * 0.5 + 0.5) * int(width * 0.5 + 0.5)
    assert min(areas) == math.prod(
        math.ceil(int(length * 0.5 + 0.5) / 2) for length in (height, width)
    )
    # The greatest draw is still a legal one.
    last = _augment("cutout", images[-1:], _Known(0.0, _BELOW_1, _BELOW_1))
    np.testing.assert_array_equal(last[0], actual[-1])


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5, 1)])
def test_colour_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    units = np.array([0.0, 0.25, 0.5, _BELOW_1])
    triples = np.array(list(itertools.product(units, units, units)))
    images = _images(len(triples), *shape)
    actual = _augment(
        "colour", images, _Known(*triples.T.tolist(), 0.0, 0.0, 0.0)
    )
    brightness, saturation, contrast = triples.T[:, :, None, None, None]
    expected = images.astype(np.float64) + (brightness - 0.5)
    pixel = expected.mean(axis=3, keepdims=True)
    expected = (expected - pixel) * (2.0 * saturation) + pixel
    mean = expected.mean(axis=(1, 2, 3), keepdims=True)
    expected = (expected - mean) * (contrast + 0.5) + mean
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_colour_has_the_ranges_of_the_authors() -> None:
    images = np.tile(_images(1, 4, 4, 3), [2000, 1, 1, 1])
    actual = _augment("colour", images, _draws())
    shift = actual.mean(axis=(1, 2, 3)) - images[0].mean()
    assert shift.min() == pytest.approx(-0.5, abs=0.01)
    assert shift.max() == pytest.approx(0.5, abs=0.01)
    grey, grey_before = actual.mean(axis=3), images[0].mean(axis=2)
    contrast = grey.std(axis=(1, 2)) / grey_before.std()
    assert contrast.min() == pytest.approx(0.5, abs=0.01)
    assert contrast.max() == pytest.approx(1.5, abs=0.01)
    colour = (actual - grey[..., None]).std(axis=(1, 2, 3)) / contrast
    colour /= (images[0] - grey_before[..., None]).std()
    assert colour.min() == pytest.approx(0.0, abs=0.01)
    assert colour.max() == pytest.approx(2.0, abs=0.01)
    # None has to do with another.
    assert np.abs(np.corrcoef([shift, contrast, colour]))[0, 1:].max() < 0.1


def test_flip_mirrors_half_of_them() -> None:
    images = _images(4, 3, 5, 2)
    below_half = 0.5 - 2.0**-24
    actual = _augment("flip", images, _Known(0.0, [0.0, below_half, 0.5, 0.9]))
    np.testing.assert_array_equal(actual[:2], images[:2, :, ::-1])
    np.testing.assert_array_equal(actual[2:], images[2:])


@pytest.mark.parametrize("name", _NAMES)
def test_at_0_nothing_changes_by_a_bit(name: str) -> None:
    images = _images(64, 8, 6, 3)
    np.testing.assert_array_equal(_augment(name, images, _draws(), 0.0), images)
    compiled = tf.function(_augment_in_graph(name), jit_compile=True)
    np.testing.assert_array_equal(
        compiled(tf.constant(images), tf.constant(0.0)), images
    )


def _augment_in_graph(name: str):
    def augment(images: tf.Tensor, probability: tf.Tensor) -> tf.Tensor:
        return augmentations.get(name)(
            images, draws=_draws(), probability=probability
        )

    return augment


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("flip", 0.5),
        # One in 3 x 3 moves is none.
        ("translate", 8 / 9),
        ("cutout", 1.0),
    ],
)
@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_each_example_is_changed_with_that_probability(
    name: str, part: float, probability: float
) -> None:
    images = _images(2000, 8, 6, 1)
    actual = _augment(name, images, _draws(), probability)
    changed = np.any(actual != images, axis=(1, 2, 3)).mean()
    expected = part * probability
    deviation = math.sqrt(expected * (1.0 - expected) / 2000)
    assert changed == pytest.approx(expected, abs=4 * deviation)


def test_the_three_parts_of_colour_come_by_themselves() -> None:
    images = _images(8, 4, 4, 3)
    drawn = np.array(list(itertools.product([0.29, 0.31], repeat=3)))
    actual = _augment(
        "colour", images, _Known(0.9, 0.9, 0.9, *drawn.T.tolist()), 0.3
    )
    for image, changed, (bright, saturated, contrasted) in zip(
        images, actual, drawn < 0.3, strict=True
    ):
        expected = image + 0.4 * bright
        pixel = expected.mean(axis=2, keepdims=True)
        expected = pixel + (expected - pixel) * (1.8 if saturated else 1.0)
        mean = expected.mean()
        expected = mean + (expected - mean) * (1.4 if contrasted else 1.0)
        np.testing.assert_allclose(changed, expected, atol=1e-6)
    np.testing.assert_array_equal(actual[-1], images[-1])


@pytest.mark.parametrize("names", [*_NAMES, ",".join(_NAMES)])
def test_an_example_is_augmented_by_its_position(names: str) -> None:
    # Not by what else is in a replica's or an accumulated part.
    images = tf.constant(_images(12, 8, 8, 3))
    augment = augmentations.get(names)

    def parts(size: int) -> np.ndarray:
        return np.concatenate(
            [
                augment(
                    images[first : first + size],
                    draws=_draws(first),
                    probability=0.7,
                )
                for first in range(0, 12, size)
            ]
        )

    whole = parts(12)
    for size in (1, 3, 6):
        np.testing.assert_allclose(parts(size), whole, rtol=0, atol=1e-6)
    # And examples, steps and purposes differ.
    same = tf.tile(images[:1], [64, 1, 1, 1])
    results = [
        augment(same, draws=_draws(**changes), probability=1.0).numpy()
        for changes in ({}, {"step": 6}, {"purpose": "augmentation of fake"})
    ]
    for one, other in itertools.combinations(results, 2):
        assert not np.array_equal(one, other)
    assert len({image.tobytes() for image in results[0]}) > 1


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", _NAMES)
def test_gradients_of_both_orders_are_exact(
    name: str, jit_compile: bool
) -> None:
    # For given draws, each is y = M x + b. Then of L = sum(y^3), the gradient
    # is g = 3 M' y^2, and that of sum(g^2) is 12 M' (y * M g).
    size, shape = 72, (6, 4, 3)
    augment = _augment_in_graph(name)

    @tf.function(jit_compile=jit_compile)
    def differentiate(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(augment(x, 1.0) ** 3)
            first = inner.gradient(loss, x)
            square = tf.reduce_sum(first**2)
        return first, outer.gradient(square, x)

    images = _images(5, *shape)
    first, second = differentiate(tf.constant(images))
    function = augmentations.AUGMENTATIONS[name]
    for index in range(5):
        # Of one position, so that all are augmented alike.
        def transform(x: np.ndarray, at: int = index) -> np.ndarray:
            rows = [
                function(
                    tf.constant(row, tf.float32, [1, *shape]),
                    draws=_draws(at),
                    probability=1.0,
                )
                for row in x
            ]
            return np.reshape(rows, [-1, size]).astype(np.float64)

        offset = transform(np.zeros([1, size]))
        matrix = (transform(np.eye(size)) - offset).T
        y = transform(images[index].reshape(1, size))[0]
        gradient = 3.0 * matrix.T @ y**2
        np.testing.assert_allclose(
            np.ravel(first[index]), gradient, atol=1e-4, rtol=1e-4
        )
        np.testing.assert_allclose(
            np.ravel(second[index]),
            12.0 * matrix.T @ (y * (matrix @ gradient)),
            atol=1e-3,
            rtol=1e-4,
        )
        assert np.abs(gradient).max() > 0.1


def test_they_are_made_in_one_order_whatever_was_asked_for() -> None:
    assert augmentations.get("none") is None
    images = tf.constant(_images(8, 8, 8, 3))
    one, other = (
        augmentations.get(names)(images, draws=_draws(), probability=1.0)
        for names in ("cutout,colour", "colour,cutout")
    )
    np.testing.assert_array_equal(one, other)
    # What is cut out is still 0 at the end.
    assert np.all(np.any(np.all(one == 0.0, axis=3), axis=(1, 2)))
    for names in ("blur", "flip,blur", "", "flip,"):
        with pytest.raises(errors.UsageError, match="flip, colour, translate"):
            augmentations.get(names)
    with pytest.raises(errors.UsageError, match="for images"):
        augmentations.get("flip")(
            tf.zeros([8, 16000, 1]), draws=_draws(), probability=1.0
        )


def test_the_config_knows_the_same_names() -> None:
    assert config.AUGMENTATIONS == tuple(augmentations.AUGMENTATIONS)
