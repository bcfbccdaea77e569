import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgan import augment
from kerasgan.augment import AdaptiveAugment, ClassicAugmentation, DiffAugment
from kerasgan.films import to_float
from kerasgan.phantom import simulate

IMAGES = to_float(simulate(np.arange(64) % 4, 32))


@pytest.mark.parametrize("layer", [ClassicAugmentation(), DiffAugment()])
def test_a_draw_is_a_function_of_the_seed_and_only_of_it(layer):
    once, again, other = (layer(IMAGES, seed=seed).numpy() for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.1
    assert once.shape == IMAGES.shape
    np.testing.assert_array_equal(layer(IMAGES, training=False), IMAGES)
    assert np.abs(layer(IMAGES).numpy() - layer(IMAGES).numpy()).max() > 0.1


def test_classic_images_stay_in_range_and_get_black_borders():
    made = ClassicAugmentation()(IMAGES, seed=(0, 0)).numpy()
    assert made.min() >= -1 and made.max() <= 1
    corners = made[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert (corners == -1).mean() > (IMAGES[:, [0, 0, -1, -1], [0, -1, 0, -1], 0] == -1).mean()


def test_classic_steps_keep_to_the_published_limits():
    layer, n = ClassicAugmentation(), 20_000
    matrices = layer._geometry(tf.constant([0, 1]), n, 64).numpy()
    linear = matrices[:, :2, :2]
    scale = 1 / np.sqrt(np.abs(np.linalg.det(linear)))
    angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 1, 1]))
    assert scale.min() >= 0.9**4 - 1e-3 and scale.max() <= 1.1**4 + 1e-3
    assert np.abs(angle).max() <= 10.01
    # Flipped once of two turns: half of the time.
    assert abs((np.linalg.det(linear) < 0).mean() - 0.5) < 0.02
    assert abs(scale.mean() - 1) < 0.02


def test_diffaugment_lets_gradients_through_to_every_kept_pixel():
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        moved = DiffAugment(("cutout",))(images, seed=(0, 1))
        total = tf.reduce_sum(moved)
    kept = tape.gradient(total, images).numpy()
    assert set(np.unique(kept)) == {0, 1} and 0.1 < (kept == 0).mean() < 0.4
    np.testing.assert_array_equal(moved, IMAGES * kept)


def test_cutout_and_translation_do_what_they_say():
    ones = tf.ones((500, 32, 32, 1))
    cut = DiffAugment(("cutout",))(ones, seed=(0, 2)).numpy()
    assert set(np.unique(cut)) == {0.0, 1.0}
    assert 0.05 < (cut == 0).mean() <= 0.25
    ramp = tf.tile(tf.range(1.0, 33.0)[None, None, :, None], (500, 32, 1, 1))
    moved = DiffAugment(("translation",))(ramp, seed=(0, 3)).numpy()
    offsets = moved[:, 16, 16, 0] - 17
    assert offsets.min() == -4 and offsets.max() == 4 and (offsets == offsets.round()).all()


def test_flip_and_rotation():
    ramp = tf.tile(tf.range(1.0, 33.0)[None, None, :, None], (400, 32, 1, 1))
    flipped = DiffAugment(("flip",))(ramp, seed=(0, 4)).numpy()[:, 8, 0, 0]
    assert set(flipped) == {1.0, 32.0} and 0.4 < (flipped == 1).mean() < 0.6
    turned = DiffAugment(("rotation",))(ramp, seed=(0, 5)).numpy()
    assert np.abs(turned[:, 16, 15:17] - ramp.numpy()[:, 16, 15:17]).max() < 1


@pytest.mark.parametrize("policy", [("translation",), ("flip",), ("translation", "flip")])
def test_whole_pixels_move_as_the_projective_warp_moves_them(policy, monkeypatch):
    def outcome():
        images = tf.constant(IMAGES)
        with tf.GradientTape() as tape:
            tape.watch(images)
            moved = DiffAugment(policy)(images, seed=(0, 6))
            total = tf.reduce_sum(tf.square(moved))
        return moved.numpy(), tape.gradient(total, images).numpy()

    moved, gradient = outcome()

    def warped(images, shift, flip):
        still = tf.zeros(len(images))
        maps = augment._affine(32, still, flip, still + 1, tf.cast(shift, tf.float32))
        return augment._warp(images, maps, fill_value=0.0)

    monkeypatch.setattr(augment, "_move", warped)
    expected, slope = outcome()
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_the_twelve_classic_steps_are_composed_in_the_published_order():
    """The composed map of every image against its twelve matrices multiplied one by one."""
    seed, n, size = tf.constant([3, 4]), 50, 32
    maps = ClassicAugmentation()._geometry(seed, n, size).numpy()

    def drawn(salt, turns, low, high, neutral, axes=1):
        on = augment._uniform(seed, salt, (n, turns, 1)) < 0.5
        value = augment._uniform(seed, salt + 1, (n, turns, axes), low, high)
        return np.where(on, value, neutral)

    flip, angle = drawn(20, 2, -1.0, -1.0, 1.0), drawn(30, 2, -np.pi / 36, np.pi / 36, 0.0)
    scale, shift = drawn(40, 4, 0.9, 1.1, 1.0), drawn(50, 4, -0.1, 0.1, 0.0, axes=2) * size
    for i in range(n):
        total = np.array([[1, 0, 15.5], [0, 1, 15.5], [0, 0, 1]])
        for turn in range(2):
            cos, sin = np.cos(angle[i, turn, 0]), np.sin(angle[i, turn, 0])
            total = total @ [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
            total = total @ np.diag([flip[i, turn, 0], 1, 1])
        for turn in range(4):
            total = total @ np.diag([1 / scale[i, turn, 0], 1 / scale[i, turn, 0], 1])
            total = total @ [[1, 0, shift[i, turn, 0]], [0, 1, shift[i, turn, 1]], [0, 0, 1]]
        total = total @ [[1, 0, -15.5], [0, 1, -15.5], [0, 0, 1]]
        np.testing.assert_allclose(maps[i], total[:2], atol=1e-4)


def test_the_unknown_is_refused():
    with pytest.raises(ValueError, match="blur"):
        DiffAugment(("blur",))


def test_layers_run_inside_a_model_and_can_be_rebuilt():
    model = keras.Sequential([keras.Input((32, 32, 1)), ClassicAugmentation(3)])
    np.testing.assert_array_equal(model(IMAGES, training=False), IMAGES)
    config = DiffAugment(("flip",), seed=4).get_config()
    assert DiffAugment.from_config(config).policy == ("flip",)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_images_stay_whole_under_mixed_precision(policy):
    steps = ("colour", "translation", "cutout", "flip", "rotation")
    keras.mixed_precision.set_global_policy(policy)
    try:
        layers = [ClassicAugmentation(), DiffAugment(steps), AdaptiveAugment(steps)]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for layer in layers:
        moved = layer(IMAGES, training=True, seed=(0, 1))
        assert moved.dtype == "float32" and type(layer).from_config(layer.get_config())


def test_adaptive_augmentation_follows_the_discriminator():
    layer = AdaptiveAugment(("translation",), target=0.5, images=100)
    np.testing.assert_array_equal(layer(IMAGES, seed=(0, 0)), IMAGES)
    sure, unsure = tf.ones((40, 1)), tf.constant([[1.0], [-1.0]] * 20)
    layer.adapt(sure)
    assert layer.probability.numpy() == pytest.approx(0.4)
    changed = np.any(layer(IMAGES, seed=(0, 1)) != IMAGES, axis=(1, 2, 3))
    assert 0.2 < changed.mean() < 0.6
    for _ in range(2):
        layer.adapt(sure)
    assert layer.probability.numpy() == 1
    layer.adapt(unsure)
    assert layer.probability.numpy() == pytest.approx(0.6)
    again = AdaptiveAugment.from_config(layer.get_config())
    assert (again.policy, again.target, again.images) == (("translation",), 0.5, 100)
