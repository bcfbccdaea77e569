"""Classifiers of the honest evaluation: small networks, and a linear model on given features."""

import functools

import keras
import numpy as np
import tensorflow as tf

from kerasgan.augment import ClassicAugmentation
from kerasgan.films import to_float, to_uint8
from kerasgan.networks import build_classifier, build_resnet

CLASSIFIERS = {"cnn": build_classifier, "resnet": build_resnet}


def fit_steps(name, phases, n_classes, steps=600, batch_size=64, classic=True, seed=0):
    """Fits a classifier for a fixed number of gradient steps; nothing is chosen on the way.

    `"cnn"`: the study's network and optimizer (SGD, momentum 0.9, rate 0.01). `"resnet"`: a small
    residual network with AdamW on a cosine rate, label smoothing 0.1, mixup (Zhang et al. 2018)
    and averaged weights.

    Args:
        name: Name in `CLASSIFIERS`.
        phases: Sequence of (share of the steps, uint8 images, int labels); batches are drawn with
            replacement, a function of (seed, step).
        n_classes: Number of classes.
        steps: Gradient steps in all.
        batch_size: Images a step.
        classic: `True` augments every batch by `ClassicAugmentation`.
        seed: Integer seed of the weights, the batches and the augmentation.

    Returns:
        The fitted model, images -> logits.

    Raises:
        ValueError: If the name is unknown or a phase has no images.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {list(CLASSIFIERS)}. Received: {name!r}")
    if not phases or any(not len(labels) for _, _, labels in phases):
        raise ValueError("an arm has no images to learn from")
    keras.utils.set_random_seed(seed)
    size = phases[0][1].shape[1]
    model = CLASSIFIERS[name](size, n_classes)
    trained, optimizer, begun, step = _trainer(name, size, n_classes, steps, batch_size, classic)
    _copy(model.variables, trained.variables)
    _copy(begun, optimizer.variables)
    done = total = 0
    for share, images, labels in phases:
        with tf.device("CPU:0"):  # where uint8 can be gathered: a batch alone goes to the GPU
            images, labels = tf.constant(images), tf.constant(labels, tf.int32)
        total += share
        until = min(steps, round(total * steps))
        for number in range(done, until):
            step(images, labels, tf.constant(seed), tf.constant(number))
        done = until
    if optimizer.use_ema:
        optimizer.finalize_variable_values(trained.trainable_variables)
    _copy(trained.variables, model.variables)
    return model


def _copy(values, variables):
    for value, variable in zip(values, variables, strict=True):
        variable.assign(value)


def fit_transfer(encoder, images, labels, batches=16, batch_size=64, classic=True, seed=0):
    """Fits logistic regression to the features of a pretrained encoder: transfer learning.

    Args:
        encoder: `quality.Encoder`, best with ImageNet weights.
        images: uint8 (n, h, w, 1).
        labels: int (n,).
        batches: Augmented batches to learn from beside the images as they are.
        batch_size: Images a batch, drawn with replacement.
        classic: `True` adds the batches, by `ClassicAugmentation`.
        seed: Integer seed of the batches and the augmentation.

    Returns:
        Function from uint8 (m, h, w, 1) to probabilities, float (m, k), averaged over the image
        and its mirror; class k is the k-th of the labels present.

    Reference:
        Kornblith, Shlens and Le (2019), "Do better ImageNet models transfer better?", arXiv
        1805.08974. The penalty, C = 0.01 on standardized features, was fixed beforehand, and that
        the films are seen plain too (results/protocol.md).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classic:
        rng, augment = np.random.default_rng(seed), ClassicAugmentation()
        chosen = rng.integers(0, len(labels), (batches, batch_size))
        drawn = [
            to_uint8(augment(to_float(images[own]), seed=[seed, number]).numpy())
            for number, own in enumerate(chosen)
        ]
        images = np.concatenate([images, *drawn])
        labels = np.concatenate([labels, np.asarray(labels)[chosen.ravel()]])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(encoder(images), labels)

    def chances(images):
        return np.mean(
            [model.predict_proba(encoder(view)) for view in (images, images[:, :, ::-1])], axis=0
        )

    return chances


@functools.lru_cache(maxsize=4)
def _trainer(name, size, n_classes, steps, batch_size, classic):
    """A model to train in, its optimizer, the state this begins with, and one step of both.

    Arms, folds and seeds of one shape share them: tracing a step costs as much as dozens of steps.
    """
    model, modern = CLASSIFIERS[name](size, n_classes), name != "cnn"
    if modern:
        rate = keras.optimizers.schedules.CosineDecay(2e-3, steps, alpha=0.01)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.02, use_ema=True, ema_momentum=0.99)
    else:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    loss = keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1 if modern else 0.0)
    optimizer.build(model.trainable_variables)
    begun = [variable.numpy() for variable in optimizer.variables]
    augment, mixup = ClassicAugmentation(), 0.2 if modern else 0.0
    specs = [tf.TensorSpec((None, size, size, 1), tf.uint8)]
    specs += [tf.TensorSpec(shape, tf.int32) for shape in ((None,), (), ())]

    @tf.function(input_signature=specs)
    def step(images, labels, seed, number):
        key = tf.stack([seed, number])
        chosen = tf.random.stateless_uniform((batch_size,), key, 0, tf.shape(labels)[0], tf.int32)
        with tf.device("CPU:0"):
            x = tf.gather(images, chosen)
        x = tf.cast(x, tf.float32) / 127.5 - 1
        y = tf.one_hot(tf.gather(labels, chosen), n_classes)
        if classic:
            x = augment(x, seed=tf.random.fold_in(key, 1))
        if mixup:
            # Beta(a, a) from two gammas; the partner of an image is its mirror in the batch.
            gammas = tf.random.stateless_gamma((2, batch_size), tf.random.fold_in(key, 2), mixup)
            share = gammas[0] / (gammas[0] + gammas[1] + 1e-9)
            share = tf.maximum(share, 1 - share)[:, None]
            x = x * share[..., None, None] + x[::-1] * (1 - share[..., None, None])
            y = y * share + y[::-1] * (1 - share)
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(value, variables), variables)
        return value

    return model, optimizer, begun, step


def predict_mean(model, images, flips=True):
    """Predicts class probabilities in inference mode, averaged over the image and its mirror.

    Args:
        model: Classifier, float32 images -> logits.
        images: uint8 (n, h, w, 1).
        flips: `False` looks at the image alone.

    Returns:
        float32 (n, k), rows summing to 1.
    """
    views = [images, images[:, :, ::-1]] if flips else [images]
    logits = [model.predict(to_float(view), batch_size=256, verbose=0) for view in views]
    return np.mean([tf.nn.softmax(each).numpy() for each in logits], axis=0)


def grad_cam(model, images, kinds):
    """Maps what in each image speaks for a class: Grad-CAM at the last layer that has a place.

    Args:
        model: Classifier, float32 images -> logits, functional.
        images: uint8 (n, h, w, 1).
        kinds: int (n,), the class asked about for each image.

    Returns:
        float32 (n, h, w) in [0, 1]; an image in which nothing speaks for its class is all 0.

    Raises:
        ValueError: If `kinds` are not one of the model's classes for each image.

    Reference:
        Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks",
        arXiv 1610.02391.
    """
    kinds = np.asarray(kinds)
    if kinds.shape != (len(images),) or not np.isin(kinds, range(model.output_shape[-1])).all():
        raise ValueError(
            f"kinds must be {len(images)} classes, one an image, of 0 to "
            f"{model.output_shape[-1] - 1}. Received: {kinds}"
        )
    last = [layer for layer in model.layers if len(layer.output.shape) == 4][-1]
    both = keras.Model(model.input, [last.output, model.output])
    with tf.GradientTape() as tape:
        features, logits = both(tf.constant(to_float(images)), training=False)
        chosen = tf.gather(logits, tf.constant(kinds, tf.int32), batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, images.shape[1:3])[..., 0]
    return tf.math.divide_no_nan(heat, tf.reduce_max(heat, (1, 2), keepdims=True)).numpy()
