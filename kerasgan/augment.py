"""Augmentation as Keras layers: they run on the device, on batches, inside the training step."""

import math

import keras
import tensorflow as tf


class _RandomLayer(keras.layers.Layer):
    """A layer that acts in training only and draws from an explicit seed where one is given.

    It keeps its images in float32 under a mixed precision policy, unless a `dtype` is given.
    """

    def __init__(self, seed=0, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
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


def _affine(size, angle, flip, scale, shift):
    """Maps (n, 2, 3), output to input pixel: about the centre scaled, flipped, turned; shifted."""
    cos, sin = tf.cos(angle), tf.sin(angle)
    linear = tf.stack([flip * cos, -sin, flip * sin, cos], axis=1) * scale[:, None]
    linear = tf.reshape(linear, (-1, 2, 2))
    centre = (tf.cast(size, tf.float32) - 1) / 2
    offset = centre - tf.reduce_sum(linear, axis=2) * centre + shift
    return tf.concat([linear, offset[..., None]], axis=2)


def _warp(images, maps, fill_value):
    """Applies one map of `_affine` per image, bilinear."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.pad(tf.reshape(maps, (-1, 6)), [[0, 0], [0, 2]]),
        output_shape=tf.shape(images)[1:3],
        fill_value=fill_value,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _move(images, shift, flip):
    """Shifts by whole pixels, and mirrors where `flip` is -1; zeros fill the border.

    The same pixels as `_warp` without a rotation, at a part of its cost and of its gradient's: one
    matrix product picks the rows and one the columns, a row of zeros where there is none to pick.
    """
    size = tf.shape(images)[1]
    pixel = tf.range(size)[None]
    column = tf.where(flip[:, None] < 0, pixel[:, ::-1], pixel) + shift[:, :1]
    rows, columns = tf.one_hot(pixel + shift[:, 1:], size), tf.one_hot(column, size, axis=1)
    return (rows @ images[..., 0] @ columns)[..., None]


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
        draws = _uniform(seed, 10, (2, 3, n, 1, 1, 1))
        # A turn that is left out is one with factors of 1: no pass over the images to choose.
        factors = tf.where(draws[:, :1] < 0.5, draws[:, 1:] + 0.5, 1.0)
        x = images + 1  # black is 0, white 2
        for turn in range(2):
            bright, contrast = factors[turn, 0], factors[turn, 1]
            x = tf.minimum(x * bright, 2)
            mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
            x = tf.clip_by_value(contrast * x + (1 - contrast) * mean, 0, 2)
        return x - 1

    def _geometry(self, seed, n, size):
        def drawn(salt, turns, low, high, neutral, axes=1):
            on = _uniform(seed, salt, (n, turns, 1)) < 0.5
            return tf.where(on, _uniform(seed, salt + 1, (n, turns, axes), low, high), neutral)

        limit, size = math.radians(5), tf.cast(size, tf.float32)
        flip = drawn(20, 2, -1.0, -1.0, 1.0)[..., 0]
        angle = drawn(30, 2, -limit, limit, 0.0)[..., 0]
        # A turn after a flip turns the other way, so both turns and both flips become one of each.
        angle = angle[:, 0] + flip[:, 0] * angle[:, 1]
        flip = flip[:, 0] * flip[:, 1]
        scale = tf.math.cumprod(1 / drawn(40, 4, 0.9, 1.1, 1.0), axis=1)
        # The study shifts both axes together or not at all.
        shift = size * tf.reduce_sum(scale * drawn(50, 4, -0.1, 0.1, 0.0, axes=2), axis=1)
        linear = _affine(1, angle, flip, tf.ones((n,)), tf.zeros((n, 2)))[..., :2]
        return _affine(size, angle, flip, scale[:, -1, 0], tf.linalg.matvec(linear, shift))


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

    def __init__(self, policy=("translation", "cutout"), seed=0, **kwargs):
        super().__init__(seed, **kwargs)
        self.policy = tuple(policy)
        if unknown := set(self.policy) - set(self.STEPS):
            raise ValueError(f"policy takes {self.STEPS}. Received: {sorted(unknown)}")

    def augment(self, images, seed):
        """Augments float32 (n, h, w, 1) images by the draws of `seed`, a pair of integers."""
        x, n = images, tf.shape(images)[0]
        if "colour" in self.policy:
            bright = _uniform(seed, 1, (n, 1, 1, 1), -0.5, 0.5)
            contrast = _uniform(seed, 2, (n, 1, 1, 1), 0.5, 1.5)
            mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
            x = contrast * x + (bright + (1 - contrast) * mean)
        if {"translation", "flip", "rotation"} & set(self.policy):
            x = self._displace(x, seed, n, tf.shape(x)[1])
        if "cutout" in self.policy:
            x *= self._mask(seed, n, tf.shape(x)[1])
        return x

    def _displace(self, images, seed, n, size):
        # Whole pixels: no blur that would tell augmented from plain images.
        reach = size // 8 if "translation" in self.policy else 0
        shift = tf.random.stateless_uniform(
            (n, 2), tf.random.fold_in(seed, 3), -reach, reach + 1, tf.int32
        )
        flip = tf.ones((n,))
        if "flip" in self.policy:
            flip = tf.where(_uniform(seed, 5, (n,)) < 0.5, -1.0, 1.0)
        if "rotation" not in self.policy:
            return _move(images, shift, flip)
        angle = _uniform(seed, 4, (n,), -math.radians(5), math.radians(5))
        maps = _affine(size, angle, flip, tf.ones((n,)), tf.cast(shift, tf.float32))
        return _warp(images, maps, fill_value=0.0)

    def _mask(self, seed, n, size):
        corner = tf.random.stateless_uniform(
            (n, 2), tf.random.fold_in(seed, 6), -(size // 4), size - size // 4 + 1, tf.int32
        )
        pixel = tf.range(size)[None]
        corners = corner[:, :1], corner[:, 1:]
        inside = [tf.cast((pixel >= c) & (pixel < c + size // 2), tf.float32) for c in corners]
        return 1.0 - (inside[0][:, :, None] * inside[1][:, None, :])[..., None]

    def get_config(self):
        """Returns the arguments that rebuild this layer."""
        return {**super().get_config(), "policy": self.policy}


class AdaptiveAugment(_RandomLayer):
    """Augments each image with a probability that follows the discriminator's overfitting (ADA).

    The probability starts at 0; it rises while the discriminator is right about more than a
    target's worth of the real images, and falls while it is not.

    Args:
        policy: Steps of `DiffAugment`.
        target: Wanted mean sign of the logits of real images.
        images: Real images over which the probability could rise from 0 to 1.
        seed: Integer seed of the layer's own draws; unused where `call` is given a seed.

    Call arguments: as of `DiffAugment`.

    Raises:
        ValueError: If `policy` names an unknown step.

    Reference:
        Karras et al. (2020), "Training generative adversarial networks with limited data", arXiv
        2006.06676. Their 500,000 images are far more than a run on a few dozen films sees.
    """

    def __init__(self, policy=DiffAugment.STEPS, target=0.6, images=20_000, seed=0, **kwargs):
        super().__init__(seed, **kwargs)
        self.policy, self.target, self.images = tuple(policy), target, images
        self.inner = DiffAugment(policy, seed)
        self.probability = self.add_weight(
            shape=(), initializer="zeros", trainable=False, aggregation="mean", name="probability"
        )

    def build(self, input_shape):
        """Builds the augmentation within."""
        self.inner.build(input_shape)
        super().build(input_shape)

    def augment(self, images, seed):
        """Augments float32 (n, h, w, 1) images by the draws of `seed`, a pair of integers."""
        on = _uniform(seed, 90, (tf.shape(images)[0], 1, 1, 1)) < self.probability
        return tf.where(on, self.inner.augment(images, seed), images)

    def adapt(self, real_logits):
        """Moves the probability, after a step in which real images got these logits, (n, 1)."""
        devices = tf.distribute.get_replica_context().num_replicas_in_sync
        count = devices * tf.cast(tf.shape(real_logits)[0], tf.float32)
        excess = tf.sign(tf.reduce_mean(tf.sign(real_logits)) - self.target)
        moved = self.probability + excess * count / self.images
        self.probability.assign(tf.clip_by_value(moved, 0.0, 1.0))

    def get_config(self):
        """Returns the arguments that rebuild this layer."""
        config = {"policy": self.policy, "target": self.target, "images": self.images}
        return {**super().get_config(), **config}
