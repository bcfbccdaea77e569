"""Augmentation as Keras layers: they run on the device, on batches, inside the training step."""

import math

import keras
import tensorflow as tf


class _RandomLayer(keras.layers.Layer):
    """A layer that acts in training only and draws from an explicit seed where one is given."""

    def __init__(self, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=True, seed=None):
        if not training:
            return images
        if seed is None:
            seed = self.seed_generator.next()
        return self.augment(images, tf.cast(seed, tf.int32))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        """Returns the arguments that rebuild this layer."""
        return {**super().get_config(), "seed": self.seed}


def _uniform(seed, salt, shape, low=0.0, high=1.0):
    return tf.random.stateless_uniform(shape, tf.random.fold_in(seed, salt), low, high)


def _warp(images, matrices, fill_value):
    """Applies one 3 x 3 matrix per image (output pixel -> input pixel), bilinear."""
    flat = tf.reshape(matrices, (-1, 9))
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=(flat / flat[:, 8:])[:, :8],
        output_shape=tf.shape(images)[1:3],
        fill_value=fill_value,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _matrices(a, b, c, d, e, f):
    """Stacks 3 x 3 matrices [[a b c] [d e f] [0 0 1]] from vectors of one length."""
    zero, one = tf.zeros_like(a), tf.ones_like(a)
    return tf.reshape(tf.stack([a, b, c, d, e, f, zero, zero, one], axis=1), (-1, 3, 3))


class ClassicAugmentation(_RandomLayer):
    """The reference study's classic augmentation: jitter, rotation, flip, scale and shift.

    Twice a colour jitter (brightness and contrast within 50 %), twice a rotation within 5 degrees,
    twice a horizontal flip, four times a scale of 0.9 to 1.1 and four times a shift within 10 %,
    each with probability 0.5; black fills the border. The twelve geometric steps are composed into
    one warp, so an image is interpolated once; the study, which warped twelve times at double
    size, also lost what left the frame midway.

    Args:
        seed: Integer seed of the layer's own draws; unused where `call` is given a seed.

    Call arguments:
        images: float32 (n, h, w, 1) in [-1, 1].
        training: In inference mode the images pass through unchanged.
        seed: Optional pair of integers: makes the draw a pure function of it.

    Returns:
        float32 (n, h, w, 1) in [-1, 1].

    Example:
        >>> keras.Sequential([ClassicAugmentation(), build_classifier(64)])
    """

    def augment(self, images, seed):
        """Augments float32 (n, h, w, 1) images by the draws of `seed`, a pair of integers."""
        n = tf.shape(images)[0]
        x = self._jitter(images, seed, n)
        return _warp(x, self._geometry(seed, n, tf.shape(images)[1]), fill_value=-1.0)

    def _jitter(self, images, seed, n):
        x = (images + 1) / 2
        for turn in range(2):
            on = _uniform(seed, 10 + turn, (n, 1, 1, 1)) < 0.5
            bright = _uniform(seed, 20 + turn, (n, 1, 1, 1), 0.5, 1.5)
            contrast = _uniform(seed, 30 + turn, (n, 1, 1, 1), 0.5, 1.5)
            y = tf.clip_by_value(x * bright, 0, 1)
            mean = tf.reduce_mean(y, axis=(1, 2, 3), keepdims=True)
            x = tf.where(on, tf.clip_by_value(mean + contrast * (y - mean), 0, 1), x)
        return x * 2 - 1

    def _geometry(self, seed, n, size):
        size = tf.cast(size, tf.float32)
        centre = (size - 1) / 2 * tf.ones((n,))
        one, zero = tf.ones((n,)), tf.zeros((n,))

        def drawn(salt, low, high, neutral):
            on = _uniform(seed, salt, (n,)) < 0.5
            return tf.where(on, _uniform(seed, salt + 1, (n,), low, high), neutral)

        total = _matrices(one, zero, centre, zero, one, centre)
        limit = math.radians(5)
        for turn in range(2):
            angle = drawn(100 + 2 * turn, -limit, limit, 0.0)
            cos, sin = tf.cos(angle), tf.sin(angle)
            total = total @ _matrices(cos, -sin, zero, sin, cos, zero)
            flip = tf.where(_uniform(seed, 110 + turn, (n,)) < 0.5, -one, one)
            total = total @ _matrices(flip, zero, zero, zero, one, zero)
        for turn in range(4):
            scale = 1 / drawn(120 + 2 * turn, 0.9, 1.1, 1.0)
            total = total @ _matrices(scale, zero, zero, zero, scale, zero)
            dx = size * drawn(140 + 4 * turn, -0.1, 0.1, 0.0)
            # The study shifts both axes together or not at all.
            dy = tf.where(dx != 0, size * _uniform(seed, 142 + 4 * turn, (n,), -0.1, 0.1), 0.0)
            total = total @ _matrices(one, zero, dx, zero, one, dy)
        return total @ _matrices(one, zero, -centre, zero, one, -centre)


class DiffAugment(_RandomLayer):
    """Differentiable augmentation of what the discriminator sees, real and generated alike.

    Because both are augmented, the generator learns the plain images; because every step is
    differentiable, it learns through them. Suits GANs on tens to hundreds of images.

    Args:
        policy: Subset of `("colour", "translation", "cutout", "flip", "rotation")`.
            colour: brightness within 0.5 and contrast of 0.5 to 1.5; translation: within 1/8 of
            the side; cutout: a square of half the side; flip: left to right, half of the time;
            rotation: within 5 degrees.
        seed: Integer seed of the layer's own draws; unused where `call` is given a seed.

    Call arguments:
        images: float32 (n, h, w, 1) in [-1, 1].
        training: In inference mode the images pass through unchanged.
        seed: Optional pair of integers: makes the draw a pure function of it.

    Returns:
        float32 (n, h, w, 1), not clipped.

    Raises:
        ValueError: If `policy` names an unknown step.

    Reference:
        Zhao et al. (2020), "Differentiable augmentation for data-efficient GAN training",
        arXiv 2006.10738.
    """

    STEPS = ("colour", "translation", "cutout", "flip", "rotation")

    def __init__(self, policy=("colour", "translation", "cutout"), seed=0, **kwargs):
        super().__init__(seed, **kwargs)
        self.policy = tuple(policy)
        if unknown := set(self.policy) - set(self.STEPS):
            raise ValueError(f"policy takes {self.STEPS}. Received: {sorted(unknown)}")

    def augment(self, images, seed):
        """Augments float32 (n, h, w, 1) images by the draws of `seed`, a pair of integers."""
        x, n = images, tf.shape(images)[0]
        if "colour" in self.policy:
            x += _uniform(seed, 1, (n, 1, 1, 1), -0.5, 0.5)
            mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
            x = mean + _uniform(seed, 2, (n, 1, 1, 1), 0.5, 1.5) * (x - mean)
        if {"translation", "flip", "rotation"} & set(self.policy):
            x = _warp(x, self._geometry(seed, n, tf.shape(x)[1]), fill_value=0.0)
        if "cutout" in self.policy:
            x *= self._mask(seed, n, tf.shape(x)[1])
        return x

    def _geometry(self, seed, n, size):
        one, zero = tf.ones((n,)), tf.zeros((n,))
        dx, dy, angle, flip = zero, zero, zero, one
        if "translation" in self.policy:
            # Whole pixels: no blur that would tell augmented from plain images.
            reach = size // 8
            shift = tf.random.stateless_uniform(
                (n, 2), tf.random.fold_in(seed, 3), -reach, reach + 1, tf.int32
            )
            dx, dy = tf.unstack(tf.cast(shift, tf.float32), axis=1)
        if "rotation" in self.policy:
            angle = _uniform(seed, 4, (n,), -math.radians(5), math.radians(5))
        if "flip" in self.policy:
            flip = tf.where(_uniform(seed, 5, (n,)) < 0.5, -one, one)
        centre = (tf.cast(size, tf.float32) - 1) / 2 * one
        cos, sin = tf.cos(angle), tf.sin(angle)
        to_centre = _matrices(one, zero, -centre, zero, one, -centre)
        turn = _matrices(flip * cos, -sin, centre + dx, flip * sin, cos, centre + dy)
        return turn @ to_centre

    def _mask(self, seed, n, size):
        corner = tf.random.stateless_uniform(
            (n, 2), tf.random.fold_in(seed, 6), -(size // 4), size - size // 4 + 1, tf.int32
        )
        pixel = tf.range(size)[None]
        inside = [(pixel >= c) & (pixel < c + size // 2) for c in (corner[:, :1], corner[:, 1:])]
        hole = inside[0][:, :, None] & inside[1][:, None, :]
        return 1.0 - tf.cast(hole, tf.float32)[..., None]

    def get_config(self):
        """Returns the arguments that rebuild this layer."""
        return {**super().get_config(), "policy": self.policy}
