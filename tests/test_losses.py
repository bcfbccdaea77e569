import numpy as np
import pytest
import tensorflow as tf

from kerasgan.losses import LOSSES, hinge, non_saturating, relativistic

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
