import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics.pairwise import rbf_kernel

from kerasgan import quality
from kerasgan.films import to_float
from kerasgan.losses import (
    LOSSES,
    ClassMMD,
    ClassMoments,
    CopyPenalty,
    hinge,
    hog_maps,
    non_saturating,
    relativistic,
)
from kerasgan.phantom import simulate

REAL, FAKE = tf.constant([[2.0], [1.0]]), tf.constant([[-1.0], [0.5]])


def test_non_saturating_is_binary_cross_entropy():
    bce = tf.nn.sigmoid_cross_entropy_with_logits
    g_loss, d_loss = non_saturating(REAL, FAKE)
    np.testing.assert_allclose(g_loss, tf.reduce_mean(bce(tf.ones((2, 1)), FAKE)), rtol=1e-6)
    both = bce(tf.ones((2, 1)), REAL) + bce(tf.zeros((2, 1)), FAKE)
    np.testing.assert_allclose(d_loss, tf.reduce_mean(both), rtol=1e-6)


def test_hinge_ignores_what_is_beyond_the_margin():
    g_loss, d_loss = hinge(tf.constant([[3.0]]), tf.constant([[-2.0]]))
    assert (float(g_loss), float(d_loss)) == (2.0, 0.0)


def test_relativistic_sees_differences_only():
    shifted = relativistic(REAL + 5, FAKE + 5)
    np.testing.assert_allclose(relativistic(REAL, FAKE), shifted, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_each_side_gains_from_what_it_wants(loss):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([REAL, FAKE])
        g_loss, d_loss = loss(REAL, FAKE)
    assert (tape.gradient(g_loss, FAKE) <= 0).numpy().all()
    assert (tape.gradient(d_loss, FAKE) >= 0).numpy().all()
    assert (tape.gradient(d_loss, REAL) <= 0).numpy().all()


def _maps(count, classes, seed, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    scale = np.array([1.0, 10.0, 0.1])
    noise = spread * rng.standard_normal((count, 4, 4, 3)) + shift
    return [(scale * (noise + labels[:, None, None, None])).astype(np.float32)], labels


def test_moments_agree_on_the_same_source_without_bias_even_in_small_batches():
    real = ClassMoments([_maps(1000, 2, seed) for seed in range(5)], 2)
    apart = [float(real(*_maps(8, 2, 100 + seed))) for seed in range(300)]
    assert abs(np.mean(apart)) < 3 * np.std(apart) / 300**0.5 + 0.002
    assert min(apart) < 0 < max(apart)


def test_moments_grow_with_a_shift_in_units_of_the_spread_and_with_too_little_variety():
    real = ClassMoments([_maps(4000, 1, 0)], 1)

    def apart(**kwargs):
        return float(real(*_maps(4000, 1, 1, **kwargs)))

    np.testing.assert_allclose(apart(shift=1.0), 1 + ClassMoments.SQUARES, rtol=0.1)
    np.testing.assert_allclose(apart(spread=0.5), ClassMoments.SQUARES * 0.75**2, rtol=0.1)
    assert abs(apart()) < 0.005 < apart(shift=0.1) < apart(shift=0.5)


def test_moments_know_the_classes_apart_and_do_not_depend_on_how_films_are_batched():
    maps, labels = _maps(600, 2, 0)
    whole = ClassMoments([(maps, labels)], 2)
    parts = [([maps[0][part]], labels[part]) for part in (slice(0, 100), slice(100, 600))]
    np.testing.assert_allclose(ClassMoments(parts, 2)(maps, labels), whole(maps, labels), atol=1e-4)
    assert float(whole(maps, 1 - labels)) > 0.5
    assert float(whole(maps, labels)) < 0.01
    assert float(whole([maps[0][:1]], labels[:1])) == 0  # no pair


def test_moments_need_every_class():
    with pytest.raises(ValueError, match="every class needs"):
        ClassMoments([_maps(10, 1, 0)], 2)


def _features(count, classes, seed, shift=0.0, spread=1.0):
    maps, labels = _maps(count, classes, seed, shift, spread)
    return maps[0] / np.array([1.0, 10.0, 0.1], np.float32), labels


def test_an_mmd_agrees_on_the_same_source_without_bias_even_in_small_batches():
    apart = []
    for seed in range(150):
        real = ClassMMD([_features(40, 2, 1000 + seed)], 2)
        apart.append(float(real(*_features(8, 2, seed))))
    assert abs(np.mean(apart)) < 3 * np.std(apart) / 150**0.5
    assert min(apart) < 0 < max(apart)


def test_an_mmd_grows_with_a_shift_and_with_variety_lost_or_tied():
    real = ClassMMD([_features(400, 1, 0)], 1)

    def apart(features):
        return float(real(features, np.zeros(len(features), int)))

    same, rng = _features(400, 1, 1)[0], np.random.default_rng(2)
    assert abs(apart(same)) < 0.001 < apart(same + 0.2) < apart(same + 0.5)
    assert apart(0.5 * same) > 0.01
    tied = np.broadcast_to(rng.standard_normal((400, 1, 1, 1)), same.shape)
    assert apart(tied) > 0.05, "each place has the films' moments, all places together have not"


def test_an_mmd_is_the_unbiased_estimate_by_class():
    films, labels = _features(60, 2, 0)
    images, drawn = _features(16, 2, 1)
    x, y = (a.reshape(len(a), -1).astype(float) for a in (films, images))
    gamma = 1 / x.var(0).sum()
    expected = 0.0
    for label in range(2):
        a, b = x[labels == label], y[drawn == label]
        own = [rbf_kernel(c, gamma=gamma) for c in (a, b)]
        pairs = sum((k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in own)
        expected += len(b) / 16 * (pairs - 2 * rbf_kernel(a, b, gamma=gamma).mean())
    parts = [(films[part], labels[part]) for part in (slice(0, 7), slice(7, 60))]
    kernel = ClassMMD(parts, 2)
    np.testing.assert_allclose(float(kernel(images, drawn)), expected, atol=1e-5)
    assert float(kernel(images[:1], drawn[:1])) == 0  # no pair


def test_an_mmd_needs_every_class_and_keeps_a_bounded_number_of_films():
    with pytest.raises(ValueError, match="every class needs"):
        ClassMMD([_features(10, 1, 0)], 2)
    with pytest.raises(ValueError, match="all the same"):
        ClassMMD([(np.ones((5, 2, 2, 1)), None)], 1)
    many = ClassMMD([_features(400, 1, seed) for seed in range(3)], 1)
    assert len(many.real[0]) == ClassMMD.KEPT


def test_a_copy_costs_whatever_its_shift_flip_and_contrast_and_other_films_nothing():
    films = simulate([1] * 24, 64)
    penalty = CopyPenalty(films[:12], 0.3)

    def cost(images):
        return float(penalty(to_float(images)))

    assert cost(films[:12]) == pytest.approx(1, abs=1e-3)
    assert cost(np.roll(films[:12, :, ::-1], (2, -2), (1, 2))) > 0.9
    assert cost(films[:12] // 2 + 40) > 0.9
    assert cost(films[12:]) < 0.1
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), "uint8")
    assert cost(np.concatenate([films[:1], noise])) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("side", [64, 128])
def test_the_penalty_on_copies_measures_as_the_screen_does(side):
    films = simulate([1] * 12, side)
    noise = np.random.default_rng(0).normal(0, 20, films.shape)
    images = np.clip(films + noise, 0, 255).astype("uint8")
    distances = quality.memorization(images, films)["distance"].to_numpy()
    costs = [float(CopyPenalty(films, 0.5)(to_float(image[None]))) for image in images]
    np.testing.assert_allclose(costs, 1 - (distances / 0.5) ** 2, atol=2e-3)


def test_the_penalty_on_copies_pushes_an_image_off_its_film():
    films = simulate([1] * 12, 32)
    penalty = CopyPenalty(films, 0.3)
    rng = np.random.default_rng(0)
    image = tf.Variable(to_float(films[:4]) + rng.normal(0, 0.01, (4, 32, 32, 1)).astype("float32"))
    costs = []
    for _ in range(200):
        with tf.GradientTape() as tape:
            cost = penalty(image)
        costs.append(float(cost))
        slope = tape.gradient(cost, image)
        image.assign_sub(2.0 * slope)
    assert costs[0] > 0.9 and costs[-1] < 0.05
    assert np.all(np.isfinite(slope))


def test_hog_maps_are_those_of_the_measure_and_have_slopes_everywhere():
    images = simulate(range(4), 64)[:, :, :61]
    images[2:, :24] = 0  # letterboxed: blocks without a slope
    maps = hog_maps(to_float(images)).numpy().reshape(len(images), -1)
    np.testing.assert_allclose(maps, quality.hog_features(images), atol=1e-3)
    assert hog_maps(tf.zeros((2, 16, 24, 1))).shape == (2, 1, 2, 36)
    for step in 0, 1e-12, 1e-9, 1e-3 / 127.5, 1e-2:  # nearly flat, as an untrained generator draws
        edge = tf.Variable(np.float32(step) * np.eye(16, dtype="float32")[None, ..., None])
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(hog_maps(edge) * np.arange(36, dtype="float32"))
        assert np.all(np.isfinite(tape.gradient(total, edge))), step
