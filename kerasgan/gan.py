"""The GAN: a Keras model trained with plain `compile` and `fit`."""

import keras
import numpy as np
import tensorflow as tf

from kerasgan.augment import AdaptiveAugment
from kerasgan.films import to_uint8
from kerasgan.losses import LOSSES, ClassMMD, ClassMoments, hog_maps
from kerasgan.networks import check_truncation, class_embedding, copied, thawed


class GAN(keras.Model):
    """A generator and a discriminator trained against each other, and an averaged generator.

    `fit` takes batches of images, or of (images, classes) when the networks are conditional.
    Every random draw of a step is a function of (seed, step), so a run restored from a checkpoint
    goes on exactly as it would have. Samples come from `averaged`, the exponential moving average
    of the generator's weights (Karras et al. 2018), whose short memory at the start grows with
    the steps, so that short runs are not held back by their first weights.

    Args:
        generator: Model (latent (n, k)[, class (n,)]) -> float32 (n, h, w, 1) in [-1, 1].
        discriminator: Model (image (n, h, w, 1)[, class (n,)]) -> logits (n, 1); or, of an ACGAN
            (Odena et al. 2017), image -> logits (n, 1) and class logits (n, k): both networks then
            also learn to make the class recognisable. One of a frozen and a trained model, as of
            `build_projected_discriminator`, looks at generated images once for both updates.
        augment: `None`, or a layer called as `augment(images, seed=...)` on all the discriminator
            sees, such as `DiffAugment()` or `AdaptiveAugment()`.
        ema: Decay of the average, in [0, 1); 0 keeps it equal to the generator.
        r1: Weight of the gradient penalty on real images, as augmented, 0 for none (Mescheder et
            al. 2018). Of a discriminator without BatchNorm, by which an image's logit and gradient
            hang on the rest of its batch.
        r2: Weight of the same penalty on generated images, 0 for none.
        penalty_every: Steps from one penalty to the next; its weight is scaled to match (Karras
            et al. 2020, "lazy regularization").
        moments: Weight of `losses.ClassMoments` in the generator's loss, 0 for none: generated
            images, as they are, are held to the real ones' moments of the maps of a frozen part.
            `adapt` notes these before the training.
        hog: Weight of `losses.ClassMMD` of `losses.hog_maps`, likewise; 0 for none. It needs
            images of at least 16 pixels a side, but no frozen part.
        seed: Integer seed of all noise and augmentation.

    Raises:
        ValueError: If only one of the networks is conditional, or they disagree on the size, or
            `moments` finds no frozen part.

    Example:
        >>> gan = GAN(build_generator(64), build_discriminator(64), augment=DiffAugment())
        >>> gan.compile(keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5))
        >>> gan.fit(films.split("train").batches(32), epochs=200)
        >>> images = gan.generate(1000, seed=0)
    """

    def __init__(
        self,
        generator,
        discriminator,
        augment=None,
        ema=0.999,
        r1=0.0,
        r2=0.0,
        penalty_every=1,
        moments=0.0,
        hog=0.0,
        seed=0,
        name="gan",
    ):
        super().__init__(name=name)
        if generator.output_shape[1:] != _first(discriminator.input_shape)[1:]:
            raise ValueError(
                "generator and discriminator must agree on the image shape. Received: "
                f"{generator.output_shape[1:]} and {_first(discriminator.input_shape)[1:]}"
            )
        self.auxiliary = len(discriminator.outputs) > 1
        if len(generator.inputs) != len(discriminator.inputs) + self.auxiliary:
            raise ValueError(
                "generator and discriminator must both be conditional, or neither. Received: "
                f"{len(generator.inputs)} and {len(discriminator.inputs)} inputs"
            )
        self.generator, self.discriminator = generator, discriminator
        self.frozen, self.heads = _parts(discriminator)
        if moments and self.frozen is None:
            raise ValueError("moments= needs a discriminator of frozen maps: projected, or 0")
        self.moments, self.distance = moments, None
        self.hog, self.mmd = hog, None
        self.averaged = copied(generator)
        self.averaged.trainable = False
        self.augment = augment
        if not getattr(augment, "built", True):
            # Else `fit` under tf.distribute would call this model on images to build it.
            augment.build((None, *generator.output_shape[1:]))
        self.ema, self.r1, self.r2, self.penalty_every = ema, r1, r2, penalty_every
        self.seed = seed
        self.latent = _first(generator.input_shape)[-1]
        self.conditional = len(generator.inputs) > 1
        self.trackers = [
            keras.metrics.Mean(name=name) for name in ("g_loss", "d_loss", "d_real", "d_fake")
        ]
        self.built = True
        build_by_hand(self)

    @property
    def metrics(self):
        """The running means shown by `fit`: both losses, mean D(x) and mean D(G(z))."""
        return self.trackers

    def compile(
        self, generator_optimizer, discriminator_optimizer, loss="non_saturating", **kwargs
    ):
        """Sets the optimizers and the loss.

        Args:
            generator_optimizer: Keras optimizer of the generator.
            discriminator_optimizer: Keras optimizer of the discriminator, another object.
            loss: Name in `kerasgan.losses.LOSSES`, or a function
                `(real_logits, fake_logits) -> (g_loss, d_loss)`.
            **kwargs: `jit_compile`, `run_eagerly`, `steps_per_execution` as in Keras;
                `jit_compile` is off unless asked for.

        Raises:
            ValueError: If `loss` names no loss, or one optimizer is given twice.
        """
        if isinstance(loss, str):
            if loss not in LOSSES:
                raise ValueError(f"loss must be one of {sorted(LOSSES)}. Received: loss={loss!r}")
            loss = LOSSES[loss]
        if generator_optimizer is discriminator_optimizer:
            raise ValueError("each network needs an optimizer of its own. Received one for both")
        # Keras wants an optimizer of the whole; its default's unused slots would fill checkpoints.
        unused = keras.optimizers.SGD(0.0)
        super().compile(**{"optimizer": unused, "jit_compile": False, **kwargs})
        self.gan_loss = loss
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        # Built here, so that a checkpoint restored before the first step finds all the slots.
        generator_optimizer.build(self.generator.trainable_variables)
        discriminator_optimizer.build(self.discriminator.trainable_variables)

    def adapt(self, films, batch_size=64, cache=True):
        """Notes what generated images are held to: `moments` and `hog` of the films.

        Args:
            films: The training `Films`.
            batch_size: Films a pass.
            cache: `False` reads files batch by batch, as of `Films.batches`.

        Raises:
            ValueError: If a class has no films.
        """

        def looked_at(look):
            batches = films.batches(batch_size, labels=self.conditional, cache=cache)
            return ((look(real), labels) for real, labels in map(self._unpack, batches))

        n_classes = len(films.classes) if self.conditional else 1
        if self.moments:
            maps = looked_at(lambda real: tf.nest.flatten(self._seen(real)))
            self.distance = ClassMoments(maps, n_classes)
        if self.hog:
            self.mmd = ClassMMD(looked_at(hog_maps), n_classes)
        self.train_function = None  # it was traced with those of before

    def call(self, inputs, training=False):
        """Draws images from the averaged generator: latents[, classes] -> float32 images."""
        return self.averaged(inputs, training=training)

    def train_step(self, data):
        """Updates the discriminator, then the generator, then the average, on one batch."""
        real, labels = self._unpack(data)
        step = tf.cast(self.discriminator_optimizer.iterations, tf.int32)
        seed = tf.stack([tf.constant(self.seed, tf.int32), step])
        latent, seed, share = self._part(tf.shape(real)[0], seed)
        with tf.GradientTape() as g_tape:
            fake = self.generator(self._inputs(latent, labels), training=True)
            shown = self._shown(fake, tf.random.fold_in(seed, 2))  # once, for both updates

            with tf.GradientTape() as d_tape:
                real_logits, real_class = self._judge(
                    self._shown(real, tf.random.fold_in(seed, 1)), labels
                )
                fake_logits, fake_class = self._judge(
                    tf.nest.map_structure(tf.stop_gradient, shown), labels
                )
                _, d_loss = self.gan_loss(real_logits, fake_logits)
                total = (
                    d_loss + real_class + fake_class + self._penalty(real, fake, labels, step, seed)
                )
                total = self.discriminator_optimizer.scale_loss(share * total)
            variables = self.discriminator.trainable_variables
            self.discriminator_optimizer.apply(d_tape.gradient(total, variables), variables)

            again, again_class = self._judge(shown, labels)
            g_loss, _ = self.gan_loss(tf.stop_gradient(real_logits), again)
            total = g_loss + again_class + self._apart(fake, shown, labels)
            total = self.generator_optimizer.scale_loss(share * total)
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply(g_tape.gradient(total, variables), variables)
        if isinstance(self.augment, AdaptiveAugment):
            self.augment.adapt(real_logits)
        self._average(step)
        return self._track(g_loss, d_loss, real_logits, fake_logits)

    def _part(self, count, seed):
        """This replica's latents, seed and share of the loss, of those of the global batch."""
        replica = tf.distribute.get_replica_context()
        replicas = replica.num_replicas_in_sync
        if replicas == 1:
            return tf.random.stateless_normal((count, self.latent), seed), seed, 1.0
        tf.debugging.assert_positive(count, "a replica got no images: drop the last, short batch")
        place = replica.replica_id_in_sync_group
        number = tf.cast(count, tf.float32)
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, number)
        # Those before this one have as many images each, the last of an uneven batch fewer.
        first = place * tf.cast(tf.math.ceil(total / replicas), tf.int32)
        latent = tf.random.stateless_normal((first + count, self.latent), seed)[first:]
        return latent, tf.random.fold_in(seed, 10 + place), number / total

    def test_step(self, data):
        """Scores one batch without an update: held-out images against the averaged generator."""
        real, labels = self._unpack(data)
        latent = tf.random.stateless_normal((tf.shape(real)[0], self.latent), (self.seed, -1))
        fake = self.averaged(self._inputs(latent, labels), training=False)
        logits = [
            self._judge(self._seen(images), labels, training=False)[0] for images in (real, fake)
        ]
        return self._track(*self.gan_loss(*logits), *logits)

    def generate(self, count, labels=None, seed=0, batch_size=256):
        """Draws `count` images, uint8 (count, h, w, 1), from the averaged generator.

        Args:
            count: Number of images, >= 0.
            labels: For a conditional GAN, one class or int (count,) classes.
            seed: Integer; equal seeds draw equal images, and a longer draw begins with a shorter.
            batch_size: Images a pass.

        Returns:
            uint8 array (count, h, w, 1).

        Raises:
            ValueError: If `labels` are missing, superfluous or of another length.
        """
        return draw(self.averaged, count, labels, seed, batch_size)

    def _unpack(self, data):
        images, labels = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
        shape = (None, *self.generator.output_shape[1:])
        if not tf.TensorShape(shape).is_compatible_with(images.shape):
            raise ValueError(f"this GAN takes images {shape}. Received: {tuple(images.shape)}")
        if self.conditional and labels is None:
            raise ValueError("a conditional GAN needs (images, classes): use batches(labels=True)")
        # Again as it runs: Keras traces a step once or twice, and then for any sides.
        return tf.ensure_shape(images, shape), labels if self.conditional else None

    def _inputs(self, first, labels):
        inputs = [*first] if isinstance(first, list | tuple) else [first]
        inputs += [labels] if self.conditional else []
        return inputs if len(inputs) > 1 else inputs[0]

    def _shown(self, images, seed):
        # Real and generated go in apart: BatchNorm over a mixed batch would leak which is which.
        return self._seen(self._augmented(images, seed))

    def _augmented(self, images, seed):
        return images if self.augment is None else self.augment(images, seed=seed)

    def _seen(self, images):
        """What the trained part of the discriminator is given of images."""
        return images if self.frozen is None else self.frozen(images, training=False)

    def _judge(self, seen, labels, training=True):
        """Logits, and the loss of the classes where the discriminator names them."""
        if not self.auxiliary:
            logits = self.heads(self._inputs(seen, labels), training=training)
            return tf.cast(logits, tf.float32), 0.0
        outputs = self.heads(seen, training=training)
        logits, classes = (tf.cast(output, tf.float32) for output in outputs)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, classes)
        return logits, tf.reduce_mean(loss)

    def _apart(self, fake, shown, labels):
        """What the generated images, as they are, cost for their distance from the real ones."""
        total = 0.0
        needs = (self.moments, self.distance), (self.hog, self.mmd)
        if any(weight and noted is None for weight, noted in needs):
            raise ValueError("moments= and hog= need adapt(films), of the training films")
        if self.moments:
            plain = shown if self.augment is None else self._seen(fake)
            total += self.moments * self.distance(tf.nest.flatten(plain), labels)
        if self.hog:
            total += self.hog * self.mmd(hog_maps(fake), labels)
        return total

    def _penalty(self, real, fake, labels, step, seed):
        """Squared gradient norms of the logits of augmented images, every `penalty_every` steps."""
        if not self.r1 and not self.r2:
            return 0.0

        def norm(images, weight, number):
            if not weight:
                return 0.0
            images = self._augmented(images, tf.random.fold_in(seed, number))
            images = tf.identity(images)  # a tensor of this branch, which a tape can watch
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(self._judge(self._seen(images), labels)[0])
            gradient = tape.gradient(total, images)
            squared = tf.reduce_sum(tf.square(gradient), axis=(1, 2, 3))
            return weight / 2 * self.penalty_every * tf.reduce_mean(squared)

        def penalty():
            return norm(real, self.r1, 1) + norm(tf.stop_gradient(fake), self.r2, 2)

        if self.penalty_every == 1:
            return penalty()
        return tf.cond(step % self.penalty_every == 0, penalty, lambda: 0.0)

    def _average(self, step):
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.ema, (1 + step) / (10 + step)) if self.ema else 0.0
        for average, value in zip(self.averaged.weights, self.generator.weights, strict=True):
            average.assign(value + decay * (average - value))

    def _track(self, g_loss, d_loss, real_logits, fake_logits):
        values = (g_loss, d_loss, tf.sigmoid(real_logits), tf.sigmoid(fake_logits))
        for tracker, value in zip(self.trackers, values, strict=True):
            tracker.update_state(value)
        return workers_logs({tracker.name: tracker.result() for tracker in self.trackers})


def _parts(discriminator):
    """A discriminator as a frozen model that feeds a trained one, or `None` and the whole."""
    inputs = keras.layers.InputLayer
    parts = [layer for layer in discriminator.layers if not isinstance(layer, inputs)]
    nested = len(parts) == 2 and all(isinstance(part, keras.Model) for part in parts)
    return parts if nested and not parts[0].trainable_variables else (None, discriminator)


def build_by_hand(model):
    """Keeps Keras' `fit` from building a built model on several workers, which fails on pairs.

    Its private method averages the first batch over the workers; `(images, labels)` is no tensor.
    """
    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        model._maybe_symbolic_build = lambda **_: _build_optimizer(model)


def _build_optimizer(model):
    with model.distribute_strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def workers_logs(logs):
    """Returns a step's logs in the shape in which Keras can average them over several workers."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        # It averages along a first axis, which a scalar has not.
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}
    return logs


def trainable(generator):
    """A `GAN`'s averaged generator, or a model, with its trained layers marked as such."""
    if not hasattr(generator, "averaged"):
        return thawed(generator)
    model = copied(generator.generator)
    model.set_weights(generator.averaged.get_weights())
    return model


def draw(generator, count, labels=None, seed=0, batch_size=256, truncation=1.0):
    """Draws images from a generator model, saved or in training.

    Args:
        generator: `GAN`, or model (latent (n, k)[, class (n,)]) -> float32 (n, h, w, 1) in [-1, 1].
        count: Number of images, >= 0.
        labels: For a conditional generator, one class or int (count,) classes.
        seed: Integer; equal seeds draw equal images, and a longer draw begins with a shorter one.
        batch_size: Images a pass.
        truncation: Factor on the latents, in (0, 1]: below 1 it trades variety for fidelity.

    Returns:
        uint8 array (count, h, w, 1).

    Raises:
        ValueError: If `labels` are missing, superfluous, of another length or of no class, or
            `count` or `truncation` is out of range.

    Reference:
        Brock et al. (2019), "Large scale GAN training for high fidelity natural image synthesis",
        arXiv 1809.11096, and for a factor in place of a threshold Karras et al. (2019), "A
        style-based generator architecture for generative adversarial networks", arXiv 1812.04948.
    """
    generator = getattr(generator, "averaged", generator)
    check_truncation(truncation)
    if count < 0:
        raise ValueError(f"count must be at least 0. Received: {count}")
    conditional = len(generator.inputs) > 1
    if conditional != (labels is not None):
        need = "needs labels" if conditional else "takes no labels"
        raise ValueError(f"{generator.name} {need}. Received: labels={labels!r}")
    latent = np.random.default_rng(seed).standard_normal(
        (count, generator.inputs[0].shape[-1]), np.float32
    )
    latent *= np.float32(truncation)
    if conditional:
        labels = np.broadcast_to(np.asarray(labels, np.int32), (count,))
        known = classes_of(generator)
        if count and not 0 <= labels.min() <= labels.max() < known:
            raise ValueError(f"labels are 0 to {known - 1}. Received: {np.unique(labels)[:5]}")
    return images_of(generator, latent, labels, batch_size)


def images_of(generator, latents, labels=None, batch_size=256):
    """Draws the images of given latents, float32 (n, k), as `draw` does of random ones."""
    images = np.empty((len(latents), *generator.output_shape[1:]), np.uint8)
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        inputs = latents[part] if labels is None else [latents[part], labels[part]]
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        images[part] = to_uint8(generator(inputs, training=False).numpy())
    return images


def classes_of(generator):
    """Returns the number of classes that a conditional generator draws; infinity if unknown."""
    embedding = class_embedding(generator)
    return np.inf if embedding is None else embedding.input_dim


def _first(shape):
    return shape[0] if isinstance(shape, list) else shape
