"""GAN losses: functions of logits, `(real_logits, fake_logits) -> (g_loss, d_loss)`, and distances.

Of logits, both arguments are float32 (n, 1) of the discriminator, both results float32 scalars.
"""

import numpy as np
import tensorflow as tf

from kerasgan.films import to_float


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


class ClassMMD:
    """Squared maximum mean discrepancy (MMD) of generated and real images' features, by class.

    Under the kernel exp(-|x - y|^2 / v), v the total variance of all real images' features: all
    moments together, place by place and across places, where `ClassMoments` sees the first two of
    each place alone. Averaged over the generated images' classes; products of an image with itself
    are left out, so that the estimate is unbiased (but for a constant, of a class with one film).

    Args:
        batches: Iterable of (features, classes) of all real images, gone through once: arrays
            (n, ...), and int (n,), or `None` where there is one class. The first 500 images of a
            class are kept, so that neither memory nor time grow with the films.
        n_classes: Number of classes, >= 1.

    Raises:
        ValueError: If a class has no image, or all images' features are the same.

    Reference:
        Gretton et al. (2012), "A kernel two-sample test"; Li, Swersky and Zemel (2015),
        "Generative moment matching networks", arXiv 1502.02761.
    """

    KEPT = 500

    def __init__(self, batches, n_classes):
        kept = [[] for _ in range(n_classes)]
        for features, labels in batches:
            features = np.asarray(features, np.float32).reshape(len(features), -1)
            labels = np.zeros(len(features), int) if labels is None else np.asarray(labels)
            for label, own in enumerate(kept):
                own.extend(features[labels == label][: self.KEPT - len(own)])
        if not all(kept):
            counts = [len(own) for own in kept]
            raise ValueError(f"every class needs real images. Received counts {counts}")
        everyone = np.concatenate(kept)
        self.mean = everyone.mean(0)  # taken away: small numbers square precisely
        spread = np.square(everyone - self.mean).sum(1).mean()
        if not spread > 0:
            raise ValueError("the real images' features are all the same: there is no distance")
        self.scale = 1 / spread
        self.real = [tf.constant(own - self.mean, tf.float32) for own in kept]
        self.alike = [self._pairs(self._kernel(own, own), np.ones(len(own))) for own in self.real]

    def __call__(self, features, labels):
        """Estimates the distance from a batch of generated images.

        Args:
            features: Tensor (n, ...), of the same shape as the real images'.
            labels: int (n,) classes, or `None`; those with a single image are left out.

        Returns:
            float32 scalar; below 0 by chance, where the distributions agree.
        """
        count = tf.shape(features)[0]
        x = tf.reshape(tf.cast(features, tf.float32), (count, -1)) - self.mean
        labels = tf.zeros(count, tf.int32) if labels is None else labels
        own, total, images = self._kernel(x, x), 0.0, 0.0
        for label, real in enumerate(self.real):
            member = tf.cast(labels == label, tf.float32)
            n = tf.reduce_sum(member)
            across = tf.reduce_mean(self._kernel(x, real), 1)
            across = tf.math.divide_no_nan(tf.tensordot(member, across, 1), n)
            weight = tf.where(n > 1, n, 0)
            total += weight * (self._pairs(own, member) - 2 * across + self.alike[label])
            images += weight
        return tf.math.divide_no_nan(total, images)

    def _kernel(self, a, b):
        squares = [tf.reduce_sum(tf.square(x), 1) for x in (a, b)]
        apart = squares[0][:, None] + squares[1] - 2 * tf.matmul(a, b, transpose_b=True)
        return tf.exp(-self.scale * apart)

    @staticmethod
    def _pairs(kernel, member):
        """Mean of the kernel over pairs of different members."""
        member = tf.cast(member, tf.float32)
        n = tf.reduce_sum(member)
        pairs = tf.tensordot(member, tf.linalg.matvec(kernel, member), 1)
        selves = tf.tensordot(member, tf.linalg.diag_part(kernel), 1)
        return (pairs - selves) / tf.maximum(n * (n - 1), 1)


class CopyPenalty:
    """How far generated images intrude on films: a penalty on near copies.

    With d an image's least distance from the films, as in `quality.memorization` (at most 64 pixels
    a side, freed of mean and scale, shifted and flipped): the mean of max(0, 1 - (d / bound)^2), so
    that nothing but near copies has a slope.

    Args:
        films: uint8 (n, h, w, 1), n at least 1, h and w at least 8. Larger than 64 pixels, they are
            shrunk by a whole number. 50 views of each are kept, of 14 kB at most.
        bound: Distance from which on an image costs nothing, above 0.

    Reference:
        Bai et al. (2022), "Reducing training sample memorization in GANs by training with
        memorization rejection", arXiv 2210.12231, where such samples are left out of the
        generator's batch.
    """

    SIDE, SHIFTS = 64, 2

    def __init__(self, films, bound):
        small = self._shrunk(to_float(films))
        height, width = (side - 2 * self.SHIFTS for side in small.shape[1:3])
        views = [
            _standard(turned[:, i : i + height, j : j + width])
            for turned in (small, small[:, :, ::-1])
            for i, j in np.ndindex(2 * self.SHIFTS + 1, 2 * self.SHIFTS + 1)
        ]
        self.views, self.bound = tf.concat(views, 0), bound

    def __call__(self, images):
        """Returns the penalty on a batch of generated images.

        Args:
            images: float32 (n, h, w, 1) in [-1, 1], as large as the films.

        Returns:
            float32 scalar in [0, 1].
        """
        inner = slice(self.SHIFTS, -self.SHIFTS)
        middle = _standard(self._shrunk(images)[:, inner, inner])
        cosines = tf.matmul(tf.stop_gradient(middle), self.views, transpose_b=True)
        nearest = tf.gather(self.views, tf.argmax(cosines, 1))
        square = 2 - 2 * tf.reduce_sum(middle * nearest, 1)  # of unit vectors
        return tf.reduce_mean(tf.nn.relu(1 - square / self.bound**2))

    @classmethod
    def _shrunk(cls, images):
        images = tf.cast(images, tf.float32)
        parts = -(-min(images.shape[1:3]) // cls.SIDE)
        return tf.nn.avg_pool2d(images, parts, parts, "VALID")


def _standard(images):
    rows = tf.reshape(images, (tf.shape(images)[0], -1))
    return _unit(rows - tf.reduce_mean(rows, 1, keepdims=True), 1e-8)


def hog_maps(images, cell=8, bins=9):
    """Histograms of oriented gradients, differentiable: `quality.hog_features`, as maps.

    Args:
        images: float32 (n, h, w, 1) in [-1, 1], h and w at least `2 * cell`.
        cell: Side of a cell in pixels; a block, normalized together, is of 2 x 2 cells.
        bins: Orientations from 0 to 180 degrees.

    Returns:
        float32 (n, h // cell - 1, w // cell - 1, 4 * bins), blocks of unit length.

    Reference:
        Dalal and Triggs (2005), "Histograms of oriented gradients for human detection".
    """
    pixels = 127.5 * tf.cast(images[..., 0], tf.float32)
    dx = tf.pad(pixels[:, :, 2:] - pixels[:, :, :-2], ((0, 0), (0, 0), (1, 1)))
    dy = tf.pad(pixels[:, 2:] - pixels[:, :-2], ((0, 0), (1, 1), (0, 0)))
    square = dx**2 + dy**2
    size = tf.sqrt(square + 1e-20)  # a flat place has a slope, too, and a direction
    angle = tf.atan2(dy, tf.where(square > 1e-12, dx, 1e-6))
    angle = tf.math.floormod(angle, np.pi) / np.pi * bins - 0.5
    gap = tf.abs(angle[..., None] - tf.range(bins, dtype=tf.float32))
    votes = size[..., None] * tf.nn.relu(1 - tf.minimum(gap, bins - gap))
    cells = cell**2 * tf.nn.avg_pool2d(votes, cell, cell, "VALID")
    rows, columns = (side - 1 for side in cells.shape[1:3])
    corners = [cells[:, i : rows + i, j : columns + j] for i in (0, 1) for j in (0, 1)]
    return _unit(tf.minimum(_unit(tf.concat(corners, -1)), 0.2))


def _unit(rows, least=1e-5):
    return rows / tf.sqrt(tf.reduce_sum(tf.square(rows), -1, keepdims=True) + least)
