import numpy as np
import pytest
import tensorflow as tf

from kerasgan.losses import LOSSES, ClassMoments, hinge, non_saturating, relativistic

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
