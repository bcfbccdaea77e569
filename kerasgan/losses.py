"""GAN losses: functions of logits, `(real_logits, fake_logits) -> (g_loss, d_loss)`.

Both arguments are float32 (n, 1) logits of the discriminator, both results float32 scalars.
"""

import tensorflow as tf


def non_saturating(real_logits, fake_logits):
    """Binary cross entropy with the generator's labels flipped: the DCGAN's loss.

    Args:
        real_logits: float32 (n, 1), the discriminator on real images.
        fake_logits: float32 (n, 1), the discriminator on generated images.

    Returns:
        `(g_loss, d_loss)`, float32 scalars >= 0.

    Reference:
        Goodfellow et al. (2014), "Generative adversarial networks", arXiv 1406.2661.
    """
    g_loss = tf.reduce_mean(tf.nn.softplus(-fake_logits))
    d_loss = tf.reduce_mean(tf.nn.softplus(-real_logits) + tf.nn.softplus(fake_logits))
    return g_loss, d_loss


def hinge(real_logits, fake_logits):
    """Hinge loss: only logits inside the margin move the discriminator.

    Args:
        real_logits: float32 (n, 1), the discriminator on real images.
        fake_logits: float32 (n, 1), the discriminator on generated images.

    Returns:
        `(g_loss, d_loss)`, float32 scalars; `d_loss` >= 0.

    Reference:
        Lim and Ye (2017), "Geometric GAN", arXiv 1705.02894.
    """
    d_loss = tf.reduce_mean(tf.nn.relu(1 - real_logits) + tf.nn.relu(1 + fake_logits))
    return -tf.reduce_mean(fake_logits), d_loss


def relativistic(real_logits, fake_logits):
    """Relativistic pairing loss: each real image is judged against one generated image.

    Args:
        real_logits: float32 (n, 1), the discriminator on real images.
        fake_logits: float32 (n, 1), the discriminator on generated images.

    Returns:
        `(g_loss, d_loss)`, float32 scalars >= 0.

    Reference:
        Jolicoeur-Martineau (2018), arXiv 1807.00734; Huang et al. (2024), "The GAN is dead; long
        live the GAN!", arXiv 2501.05441.
    """
    g_loss = tf.reduce_mean(tf.nn.softplus(real_logits - fake_logits))
    d_loss = tf.reduce_mean(tf.nn.softplus(fake_logits - real_logits))
    return g_loss, d_loss


LOSSES = {"non_saturating": non_saturating, "hinge": hinge, "relativistic": relativistic}
