"""GAN losses: functions of logits, `(real_logits, fake_logits) -> (g_loss, d_loss)`, and of maps.

Both arguments are float32 (n, 1) logits of the discriminator, both results float32 scalars.
"""

import numpy as np
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


class ClassMoments:
    """How far generated images are from real ones in the moments of their feature maps, by class.

    Of each map, standardized by channel over the real images: the squared difference of the class
    means, place by place and channel by channel, and a tenth of that of the mean squares; averaged
    over places and channels, summed over maps, and averaged over the generated images' classes.
    Products of an image with itself are left out, so that the estimate is unbiased and a small
    batch does not ask the generator for less variety than the films have.

    Args:
        batches: Iterable of (maps, classes) of all real images, gone through once: a list of arrays
            (n, h, w, c), and int (n,), or `None` where there is one class.
        n_classes: Number of classes, >= 1.

    Raises:
        ValueError: If a class has no image.

    Reference:
        Salimans et al. (2016), "Improved techniques for training GANs", arXiv 1606.03498 (feature
        matching); Dos Santos et al. (2019), "Learning implicit generative models by matching
        perceptual features", arXiv 1904.02762; Gretton et al. (2012), "A kernel two-sample test"
        (the unbiased estimate).
    """

    SQUARES = 0.1

    def __init__(self, batches, n_classes):
        self.n_classes, count, sums = n_classes, 0.0, None
        for maps, labels in batches:
            labels = np.zeros(len(maps[0]), int) if labels is None else np.asarray(labels)
            hot = np.eye(n_classes)[labels].T  # classes, images
            new = [self._sums(np.asarray(x, np.float64), hot) for x in maps]
            sums = new if sums is None else [old + own for old, own in zip(sums, new, strict=True)]
            count = count + hot.sum(1)
        if not np.all(count):
            raise ValueError(f"every class needs real images. Received counts {count}")
        self.real = [self._standard(total, count) for total in sums]

    @staticmethod
    def _sums(x, hot):
        return np.stack([np.tensordot(hot, power, 1) for power in (x, np.square(x))])

    @staticmethod
    def _standard(sums, count):
        """Centre and spread by channel, and by class the mean and mean square of what is left."""
        mean, square = (total.sum(0).mean((0, 1)) / count.sum() for total in sums)
        spread = np.sqrt(np.maximum(square - mean**2, 1e-12))
        first, second = sums / count[:, None, None, None]
        moments = (first - mean) / spread, (second - 2 * mean * first + mean**2) / spread**2
        rows = [m.reshape(len(count), -1) for m in moments]
        return tuple(tf.constant(x, tf.float32) for x in (mean, spread, *rows))

    def __call__(self, maps, labels):
        """Estimates the distance from a batch of generated images.

        Args:
            maps: List of tensors (n, h, w, c), of the same shapes as the real images'.
            labels: int (n,) classes, or `None`; those with a single image are left out.

        Returns:
            float32 scalar; below 0 by chance, where the moments agree.
        """
        if labels is None:
            labels = tf.zeros(tf.shape(maps[0])[0], tf.int32)
        hot, total = tf.one_hot(labels, self.n_classes, axis=0), 0.0
        for x, (mean, spread, *moments) in zip(maps, self.real, strict=True):
            x = (tf.cast(x, tf.float32) - mean) / spread
            x = tf.reshape(x, (tf.shape(x)[0], -1))
            total += self._distance(x, hot, moments[0])
            total += self.SQUARES * self._distance(tf.square(x), hot, moments[1])
        return total

    @staticmethod
    def _distance(rows, hot, real):
        n = tf.reduce_sum(hot, 1)
        sums = hot @ rows
        own = tf.linalg.matvec(hot, tf.reduce_sum(tf.square(rows), 1))
        pairs = (tf.reduce_sum(tf.square(sums), 1) - own) / tf.maximum(n * (n - 1), 1)
        across = tf.reduce_sum(sums * real, 1) / tf.maximum(n, 1)
        of_class = pairs - 2 * across + tf.reduce_sum(tf.square(real), 1)
        weight = tf.where(n > 1, n, 0)
        places = tf.cast(tf.shape(rows)[1], tf.float32)
        return tf.math.divide_no_nan(
            tf.tensordot(weight, of_class, 1), tf.reduce_sum(weight) * places
        )
