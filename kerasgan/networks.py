"""Networks: functions that return named functional Keras models of stock layers."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kerasgan.films import check_size

_MAX_MULTIPLE = 8  # widest layer of the DCGAN, in multiples of `width`
_PLACES = 8  # latents that frame the canvas: a shift, a scale and two bends along each axis
_FRAME = "frame"  # what the names of the fixed layers begin with that show a part of the canvas
_DRAWING = (
    layers.Conv2DTranspose,
    layers.Conv2D,
    layers.UpSampling2D,
    layers.BatchNormalization,
    layers.ReLU,
)  # the layers that draw it, from the first on


def _levels(size):
    """Number of halvings from `size` down to 4 x 4."""
    check_size(size, most=512)
    return int(math.log2(size)) - 2


def _positive(**values):
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer. Received: {name}={value!r}")


def _dcgan_init():
    return keras.initializers.RandomNormal(0.0, 0.02)


def _batch_norm(x, fused=False, **kwargs):
    # Momentum 0.9, not Keras' 0.99: the moving statistics must catch up within a few hundred steps.
    # Built for several devices, it takes the statistics of the global batch, not of each part.
    synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1
    layer = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, synchronized=synchronized, **kwargs
    )
    if fused and not synchronized:
        # The layer stays Keras' own, so that models save as stock layers; only its call is faster.
        # Not in a GAN: it hides NaN from the ReLU after it, and gains little there.
        layer.call = functools.partial(_fused_norm, layer)
    return layer(x)


def _fused_norm(layer, inputs, training=None, mask=None):
    """What a BatchNormalization of float32 images does, in one operation in place of a dozen."""
    if not (training and layer.trainable) or inputs.dtype != tf.float32:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma,
        offset=layer.beta,
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    count = tf.cast(tf.size(inputs) / tf.size(mean), tf.float32)
    variance *= (count - 1) / count  # the operation's is unbiased, Keras' is not
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + value * (1 - layer.momentum))
    return outputs


def _dcgan_norm(x):
    return _batch_norm(x, gamma_initializer=keras.initializers.RandomNormal(1.0, 0.02))


def build_generator(
    size=64, latent=100, width=64, n_classes=None, upsampling="transposed", framing=False
):
    """Builds the DCGAN generator: transposed 4 x 4 convolutions, BatchNorm, ReLU, tanh.

    At size 64 and width 64 its layers are the reference study's: 512-256-128-64-1 channels.

    Args:
        size: Side of the square images in pixels, a power of two from 16 to 512.
        latent: Length of the latent vector, drawn from N(0, 1).
        width: Channels of the last hidden layer; the widest has 8 times as many.
        n_classes: `None` for an unconditional generator; otherwise the number of classes, and the
            model takes a second input, int32 (n,): the class, in the order of the training data.
        upsampling: `"transposed"` convolutions, or `"nearest"`: pixels doubled, then a 3 x 3
            convolution, which draws no checkerboard (Odena et al. 2016).
        framing: `True` draws a canvas a quarter larger from all latents but eight, which say what
            part of it is shown, shifted, scaled and a little bent, as films differ in framing and
            build. Without it the networks of a few dozen films draw each rib at one place.

    Returns:
        A functional model, (n, latent)[, (n,)] -> float32 (n, size, size, 1) in [-1, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> build_generator(64).output_shape
        (None, 64, 64, 1)

    Reference:
        Radford, Metz and Chintala (2016), "Unsupervised representation learning with deep
        convolutional generative adversarial networks", arXiv 1511.06434; Odena, Dumoulin and Olah
        (2016), "Deconvolution and checkerboard artifacts", Distill; the frame's Gaussian filters:
        Gregor et al. (2015), "DRAW", arXiv 1502.04623, section 3.2.
    """
    if upsampling not in ("transposed", "nearest"):
        raise ValueError(f"upsampling must be 'transposed' or 'nearest'. Received: {upsampling!r}")
    levels = _levels(size)
    _positive(latent=latent, width=width)
    if framing and latent <= _PLACES:
        raise ValueError(f"framing needs more than {_PLACES} latents. Received: latent={latent}")
    inputs = [layers.Input((latent,), name="latent")]
    places, x = _split(inputs[0]) if framing else (None, inputs[0])
    if n_classes is not None:
        _positive(n_classes=n_classes)
        inputs.append(layers.Input((), dtype="int32", name="class"))
        x = layers.Concatenate()([x, layers.Embedding(n_classes, x.shape[-1])(inputs[1])])
    x = layers.Reshape((1, 1, x.shape[-1]))(x)

    def doubled(x, channels, **options):
        options = {"use_bias": False, "kernel_initializer": _dcgan_init(), **options}
        if upsampling == "transposed":
            return layers.Conv2DTranspose(channels, 4, 2, "same", **options)(x)
        return layers.Conv2D(channels, 3, padding="same", **options)(layers.UpSampling2D()(x))

    channels = [width * min(_MAX_MULTIPLE, 2**level) for level in reversed(range(levels))]
    first = layers.Conv2DTranspose(
        channels[0], 5 if framing else 4, use_bias=False, kernel_initializer=_dcgan_init()
    )
    x = layers.ReLU()(_dcgan_norm(first(x)))
    for count in channels[1:]:
        x = layers.ReLU()(_dcgan_norm(doubled(x, count)))
    # float32 whatever the policy: half precision has too few greys.
    x = doubled(x, 1, activation="tanh", dtype="float32")
    if framing:
        x = _framed(x, places)
    return keras.Model(inputs if n_classes else inputs[0], x, name="dcgan_generator")


def _split(latent):
    """The latents that frame the canvas, and the others."""
    column, others = layers.Reshape((-1, 1))(latent), latent.shape[-1] - _PLACES
    return [
        layers.Flatten()(layers.Cropping1D(crop)(column)) for crop in ((0, others), (_PLACES, 0))
    ]


def _framed(canvas, places):
    """The part of a canvas that `places` frame, of 4/5 of its side in the mean, by fixed weights.

    Along each axis the places read are a straight line of slope 1 plus N(0, 1) times Legendre
    polynomials: a shift, a scale and two bends, of a standard deviation at the edge of 1/24, 1/48,
    1/72 and 1/96 of the side.

    Args:
        canvas: (n, s, s, 1).
        places: (n, 8), N(0, 1).
    """
    blur = 0.4  # standard deviation of the filter that reads between the pixels, in pixels
    side, count = canvas.shape[1], _PLACES // 2
    size = side * 4 // 5
    seen, drawn = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in (size, side))
    moves = np.polynomial.legendre.legvander(seen / seen[-1], count - 1).T
    moves *= size / (24 * np.arange(1, count + 1)[:, None])
    single = {"dtype": "float32"}  # whatever the policy, as the canvas
    x = layers.Reshape((side, side), **single)(canvas)
    for axis in range(2):
        # Where each column, then each row, is read, and the weights of the pixels there.
        fixed = {"trainable": False, **single}
        centre = layers.Dense(size, name=f"{_FRAME}_centre_{axis}", **fixed)
        weigh = layers.Conv1D(side, 1, activation="softmax", name=f"{_FRAME}_weigh_{axis}", **fixed)
        filters = weigh(layers.Reshape((size, 1), **single)(centre(places)))
        kernel = np.zeros((_PLACES, size))
        kernel[count * axis : count * (axis + 1)] = moves
        centre.set_weights([kernel, seen])
        # exp(-(centre - pixel)^2 / 2 blur^2), less what the softmax takes away.
        weigh.set_weights([drawn[None, None] / blur**2, -(drawn**2) / (2 * blur**2)])
        x = layers.Dot(2, **single)([filters, x])  # which swaps rows and columns
    return layers.Reshape((size, size, 1), **single)(x)


def copied(model):
    """Returns a model of the same layers and weights, with variables of its own."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def thawed(generator):
    """Returns a copy of a generator, all but its frame trainable, or one that is so as it is."""
    if generator.trainable_variables:
        return generator
    copy = copied(generator)
    copy.trainable = True
    for layer in copy.layers:
        layer.trainable = not layer.name.startswith(_FRAME)
    return copy


def class_embedding(generator):
    """Returns the layer by which a conditional generator knows its classes, or `None`."""
    return next((x for x in generator.layers if isinstance(x, layers.Embedding)), None)


def one_class(generator, label):
    """Makes an unconditional generator of one class from a conditional one of `build_generator`.

    The class's embedding becomes the bias of a first dense layer, so the images stay the same to
    rounding, and the layer of the other classes is left out.

    Args:
        generator: Conditional generator of `build_generator`.
        label: The class, from 0.

    Returns:
        A functional model with weights of its own, (n, latent) -> float32 (n, size, size, 1).

    Raises:
        ValueError: If the generator has no such class.
    """
    embedding = class_embedding(generator)
    if embedding is None or not 0 <= label < embedding.input_dim:
        raise ValueError(f"{generator.name} has no class {label!r} of its own")
    copy = copied(thawed(generator))
    first, *rest = [x for x in copy.layers if isinstance(x, _DRAWING)]
    latent = generator.inputs[0].shape[-1]
    kernel = first.kernel.numpy()  # (side, side, channels, latent and embedding)
    side, _, channels, _ = kernel.shape
    flat = kernel.reshape(side * side * channels, -1).T
    noise = layers.Input((latent,), name="latent")
    framing = any(isinstance(x, layers.Cropping1D) for x in copy.layers)
    places, drawing = _split(noise) if framing else (None, noise)
    dense = layers.Dense(side * side * channels)
    x = dense(drawing)
    own, of_class = np.split(flat, [drawing.shape[-1]])
    dense.set_weights([own, embedding.get_weights()[0][label] @ of_class])
    x = layers.Reshape((side, side, channels))(x)
    for layer in rest:
        x = layer(x)
    if framing:
        x = _framed(x, places)
    return keras.Model(noise, x, name="dcgan_generator")


def check_truncation(factor):
    """Raises ValueError unless the factor on the latents is in (0, 1]."""
    if not 0 < factor <= 1:
        raise ValueError(f"truncation must be in (0, 1]. Received: {factor}")


def truncated(generator, factor):
    """Makes a generator that draws always what `draw` draws of the given one at `truncation`.

    Args:
        generator: Unconditional functional generator, latent (n, k) -> images.
        factor: Factor on the latents, in (0, 1].

    Returns:
        A functional model with weights of its own and a `Rescaling` behind its input.

    Raises:
        ValueError: If the factor is out of range, or the generator is conditional.
    """
    check_truncation(factor)
    if len(generator.inputs) > 1:
        raise ValueError(f"{generator.name} draws several classes: give the generator of one")
    latent, scale = layers.Input(generator.input_shape[1:], name="latent"), layers.Rescaling(factor)

    def call(layer, *args, **kwargs):
        return layer(*(scale(x) if x is latent else x for x in args), **kwargs)

    copy = keras.models.clone_model(generator, input_tensors=latent, call_function=call)
    copy.set_weights(generator.get_weights())
    return copy


@keras.saving.register_keras_serializable("kerasgan")
class MinibatchDeviation(layers.Layer):
    """Adds a channel: the mean over all features of their deviation in the batch.

    A discriminator that sees it notices samples that are all alike.

    Reference:
        Karras et al. (2018), "Progressive growing of GANs for improved quality, stability, and
        variation", arXiv 1710.10196, section 3.
    """

    def call(self, x):
        """Features (n, h, w, c) -> (n, h, w, c + 1)."""
        variance = tf.math.reduce_variance(tf.cast(x, tf.float32), axis=0)
        deviation = tf.cast(tf.reduce_mean(tf.sqrt(variance + 1e-8)), x.dtype)
        return tf.concat([x, tf.fill(tf.shape(x[..., :1]), deviation)], axis=-1)

    def compute_output_shape(self, input_shape):
        """One channel more."""
        return (*input_shape[:-1], input_shape[-1] + 1)


def build_discriminator(
    size=64, width=64, n_classes=None, norm="batch", head="projection", deviation=False
):
    """Builds the DCGAN discriminator: strided 4 x 4 convolutions and LeakyReLU, one logit out.

    The reference study's sigmoid belongs to the loss here (see `kerasgan.losses`).

    Args:
        size: Side of the square images in pixels, a power of two from 16 to 512.
        width: Channels of the first layer; they double up to 8 times as many.
        n_classes: `None`, or the number of classes of a conditional GAN: the model then takes the
            class, int32 (n,), as a second input and judges by projection (Miyato and Koyama).
            With `head="auxiliary"` it takes images alone and names their class itself (ACGAN).
        norm: `"batch"` (the reference: BatchNorm except first and last), `"spectral"`
            (Miyato et al. 2018, every layer) or `"none"`.
        head: Of a conditional GAN: `"projection"` or `"auxiliary"`.
        deviation: `True` puts `MinibatchDeviation` before the last layers.

    Returns:
        A functional model, float32 (n, size, size, 1) in [-1, 1][, (n,)] -> logits (n, 1), and of
        an auxiliary head class logits (n, n_classes).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> build_discriminator(64, n_classes=4, norm="spectral").output_shape
        (None, 1)

    Reference:
        Radford et al. (2016), arXiv 1511.06434; Miyato and Koyama (2018), "cGANs with projection
        discriminator", arXiv 1802.05637; Miyato et al. (2018), "Spectral normalization for
        generative adversarial networks", arXiv 1802.05957; Odena, Olah and Shlens (2017),
        "Conditional image synthesis with auxiliary classifier GANs", arXiv 1610.09585.
    """
    levels = _levels(size)
    _positive(width=width)
    if norm not in ("batch", "spectral", "none"):
        raise ValueError(f"norm must be 'batch', 'spectral' or 'none'. Received: norm={norm!r}")
    if head not in ("projection", "auxiliary"):
        raise ValueError(f"head must be 'projection' or 'auxiliary'. Received: head={head!r}")

    def linear(layer):
        return layers.SpectralNormalization(layer) if norm == "spectral" else layer

    image = layers.Input((size, size, 1), name="image")
    x = image
    for level in range(levels):
        channels = width * min(_MAX_MULTIPLE, 2**level)
        # A bias would be undone by the BatchNorm that follows.
        use_bias = norm != "batch"
        conv = layers.Conv2D(
            channels, 4, 2, "same", use_bias=use_bias, kernel_initializer=_dcgan_init()
        )
        x = linear(conv)(x)
        if norm == "batch" and level > 0:
            x = _dcgan_norm(x)
        x = layers.LeakyReLU(negative_slope=0.2)(x)
    if deviation:
        x = MinibatchDeviation()(x)
    if n_classes is None:
        score = linear(
            layers.Conv2D(1, 4, use_bias=norm != "batch", kernel_initializer=_dcgan_init())
        )(x)
        return keras.Model(image, layers.Flatten()(score), name="dcgan_discriminator")
    _positive(n_classes=n_classes)
    features = linear(layers.Dense(channels))(layers.Flatten()(x))
    features = layers.LeakyReLU(negative_slope=0.2)(features)
    if head == "auxiliary":
        outputs = [linear(layers.Dense(units))(features) for units in (1, n_classes)]
        return keras.Model(image, outputs, name="acgan_discriminator")
    label = layers.Input((), dtype="int32", name="class")
    projection = layers.Dot(1)([features, layers.Embedding(n_classes, channels)(label)])
    score = layers.Add()([linear(layers.Dense(1))(features), projection])
    return keras.Model([image, label], score, name="projection_discriminator")


def build_projected_discriminator(encoder, size=64, width=32, n_classes=None, pixels=False):
    """Builds a discriminator that judges the feature maps of a frozen encoder, not the pixels.

    The last maps of each side, of at least 4 x 4, are mixed by fixed random 1 x 1 convolutions;
    a small head for each, with spectral and batch normalization, gives logits place by place. On
    a few dozen images it learns in far fewer steps than `build_discriminator` (results/DETAILS.md).

    Args:
        encoder: Functional model, float32 (n, h, h, 1) in [-1, 1] -> features, of convolutions
            that take images of any side, such as one with ImageNet weights; a copy is frozen.
        size: Side of the square images in pixels, a power of two from 16 to 512.
        width: Channels of a head's first layer.
        n_classes: `None`, or the number of classes of a conditional GAN: the model then takes the
            class, int32 (n,), as a second input and judges by projection (Miyato and Koyama).
        pixels: `True` adds a head for the image itself.

    Returns:
        A functional model, float32 (n, size, size, 1) in [-1, 1][, (n,)] -> logits (n, k), one for
        each place of each head.

    Raises:
        ValueError: If an argument is out of range, or the encoder has no maps of such images.

    Reference:
        Sauer, Chitta, Mueller and Geiger (2021), "Projected GANs converge faster", arXiv
        2111.01007, without their mixing across scales.
    """
    _levels(size)
    _positive(width=width)
    frozen = _frozen_maps(encoder, size, width, pixels)
    seen, label = [layers.Input(x.shape[1:]) for x in frozen.outputs], []
    if n_classes is not None:
        _positive(n_classes=n_classes)
        label = [layers.Input((), dtype="int32", name="class")]
    linear, logits = layers.SpectralNormalization, []
    for x in seen:
        channels = width
        while x.shape[1] > 4:
            x = linear(layers.Conv2D(channels, 4, 2, "same", use_bias=False))(x)
            x = layers.LeakyReLU(negative_slope=0.2)(_batch_norm(x))
            channels = min(2 * channels, 4 * width)
        x = linear(layers.Conv2D(channels, 3, padding="same"))(x)
        x = layers.Reshape((-1, channels))(layers.LeakyReLU(negative_slope=0.2)(x))
        score = layers.Flatten()(linear(layers.Dense(1))(x))
        if label:
            of_class = layers.Embedding(n_classes, channels)(label[0])
            score = layers.Add()([score, layers.Dot((2, 1))([x, of_class])])
        logits.append(score)
    logits = layers.Concatenate()(logits) if len(logits) > 1 else logits[0]
    heads = keras.Model([*seen, *label], logits, name="heads")
    inputs = [layers.Input((size, size, 1), name="image"), *label]
    logits = heads([*frozen(inputs[0]), *label])
    return keras.Model(inputs if label else inputs[0], logits, name="projected_discriminator")


def build_imagenet_encoder(size=64, weights="imagenet"):
    """Builds MobileNetV2 of Keras Applications for grey images, to judge by or to learn from.

    Args:
        size: Side of the square images in pixels, a power of two from 32 to 512.
        weights: `"imagenet"`, which Keras downloads once (14 MB), or `None` for random ones.

    Returns:
        A functional model, float32 (n, size, size, 1) in [-1, 1] -> features (n, 1280).

    Raises:
        OSError: If the weights are neither cached nor downloaded.
        ValueError: If the size is out of range.

    Reference:
        Sandler et al. (2018), "MobileNetV2: inverted residuals and linear bottlenecks", arXiv
        1801.04381.
    """
    from kerasgan.quality import weights_of

    if _levels(size) < 3:
        raise ValueError(f"size must be a power of two from 32 to 512. Received: size={size!r}")
    image = layers.Input((size, size, 1), name="image")
    colour = layers.Concatenate()([image] * 3)
    options = {"include_top": False, "pooling": "avg", "input_tensor": colour, "weights": weights}
    with weights_of("MobileNetV2"):
        return keras.applications.MobileNetV2(**options)


def _frozen_maps(encoder, size, width, pixels):
    """A frozen copy of the encoder: images of this size -> mixed last maps of each side from 4."""
    image = layers.Input((size, size, 1))
    if len(encoder.inputs) > 1 or encoder.inputs[0].shape[3:] != (1,):
        raise ValueError(f"{encoder.name} takes no grey images: its input is {encoder.input_shape}")
    own = [image] if isinstance(encoder.input, list) else image
    copy = keras.models.clone_model(encoder, input_tensors=own)
    try:
        copy.set_weights(encoder.get_weights())
    except ValueError as error:
        raise ValueError(f"{encoder.name} takes images of one size only, not of {size}") from error
    sides = [2**level for level in range(2, _levels(size) + 2)]  # not those of padded maps
    last = {
        layer.output.shape[1]: layer.output
        for layer in copy.layers
        if len(layer.output.shape) == 4 and layer.output.shape[1] in sides
    }
    if not last:
        raise ValueError(f"{encoder.name} has no feature maps of images of {size} pixels")
    mixed = [  # by names of their own, as a loaded encoder may have any of Keras' own
        layers.Conv2D(width, 1, use_bias=False, name=f"mixed_{side}")(x) for side, x in last.items()
    ]
    maps = keras.Model(image, [image] * pixels + mixed, name="frozen_maps")
    maps.trainable = False
    return maps


def build_classifier(size=64, n_classes=4, dropout=0.5):
    """Builds the reference study's CNN: three blocks Conv - ReLU - BatchNorm - MaxPool, two Dense.

    It ends in logits: the softmax belongs to the loss (`from_logits=True`). Initial weights follow
    PyTorch's defaults (Kaiming uniform, He et al. 2015). At size 64 with four classes it has
    2,191,556 trainable parameters.

    Args:
        size: Side of the square images in pixels, a power of two from 16 to 512.
        n_classes: Number of classes.
        dropout: Rate of the dropout before the last layer, in [0, 1).

    Returns:
        A functional model, float32 (n, size, size, 1) in [-1, 1] -> logits (n, n_classes).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> build_classifier(64, 4).count_params() - 448  # less BatchNorm's moving statistics
        2191556
    """
    _levels(size)
    _positive(n_classes=n_classes)
    image = layers.Input((size, size, 1), name="image")
    x, fan_in = image, 9
    for channels in (32, 64, 128):
        conv = layers.Conv2D(channels, 3, padding="same", activation="relu", **_kaiming(fan_in))
        x = layers.MaxPooling2D()(_batch_norm(conv(x), fused=True))
        fan_in = 9 * channels
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu", **_kaiming(x.shape[-1]))(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(image, layers.Dense(n_classes, **_kaiming(256))(x), name="reference_cnn")


def _kaiming(fan_in):
    """PyTorch's default initial kernel and bias: U(-1, 1) / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return {
        "kernel_initializer": keras.initializers.RandomUniform(-bound, bound),
        "bias_initializer": keras.initializers.RandomUniform(-bound, bound),
    }


def build_resnet(size=64, n_classes=4, width=16, dropout=0.2):
    """Builds a small residual network: a strided stem, three stages of two blocks, mean pooling.

    It ends in logits. Pre-activation blocks with BatchNorm; each stage halves the side and doubles
    the channels.

    Args:
        size: Side of the square images in pixels, a power of two from 16 to 512.
        n_classes: Number of classes.
        width: Channels of the first stage.
        dropout: Rate of the dropout before the last layer, in [0, 1).

    Returns:
        A functional model, float32 (n, size, size, 1) in [-1, 1] -> logits (n, n_classes).

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        He et al. (2016), "Identity mappings in deep residual networks", arXiv 1603.05027.
    """
    _levels(size)
    _positive(n_classes=n_classes, width=width)

    def conv(x, channels, kernel=3, strides=1):
        return layers.Conv2D(
            channels, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal"
        )(x)

    norm = functools.partial(_batch_norm, fused=True)
    image = layers.Input((size, size, 1), name="image")
    x = conv(image, width, strides=2)
    for stage in range(3):
        for block in range(2):
            channels, strides = width * 2**stage, 2 if stage and not block else 1
            y = layers.ReLU()(norm(x))
            if x.shape[-1] != channels:
                x = conv(layers.AveragePooling2D(2)(y), channels, kernel=1)
            y = layers.ReLU()(norm(conv(y, channels, strides=strides)))
            x = layers.Add()([x, conv(y, channels)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm(x)))
    x = layers.Dense(n_classes)(layers.Dropout(dropout)(x))
    return keras.Model(image, x, name="small_resnet")
