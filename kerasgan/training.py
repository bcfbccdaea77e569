"""Training recipes: the reference study's GAN, and a `fit` that resumes."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from kerasgan.augment import AdaptiveAugment, DiffAugment
from kerasgan.callbacks import Checkpoint, SampleGrid, StopOnNaN, is_chief
from kerasgan.gan import GAN, images_of, trainable
from kerasgan.losses import ClassMMD, CopyPenalty, hog_maps
from kerasgan.networks import (
    build_discriminator,
    build_generator,
    build_projected_discriminator,
    copied,
    one_class,
    truncated,
)
from kerasgan.runs import begin, short_hash


def reference_gan(size=64, width=64, learning_rates=(2e-3, 2e-4), augment=None, ema=0.999, seed=0):
    """Builds and compiles the reference study's DCGAN for one class.

    Args:
        size: Side of the images in pixels.
        width: Width of both networks; the study's is 64.
        learning_rates: Adam's rates of the generator and the discriminator.
        augment: `None` as in the study, or a layer such as `DiffAugment()`.
        ema: Decay of the averaged generator; 0 for the study's plain generator.
        seed: Integer seed of the initial weights, the noise and the augmentation.

    Returns:
        A compiled `GAN`.

    Raises:
        ValueError: If a size is out of range.
    """
    keras.utils.set_random_seed(seed)
    gan = GAN(
        build_generator(size, width=width),
        build_discriminator(size, width),
        augment=augment,
        ema=ema,
        seed=seed,
    )
    optimizers = [keras.optimizers.Adam(rate, beta_1=0.5, epsilon=1e-8) for rate in learning_rates]
    gan.compile(*optimizers)
    return gan


RECIPE = {
    "norm": "batch",
    "policy": ("translation", "cutout"),
    "adaptive": False,
    "loss": "non_saturating",
    "rate": 4e-4,
    "latent": 100,
    "ema": 0.999,
    "r1": 0.0,
    "r2": 0.0,
    "penalty_every": 1,
    "upsampling": "transposed",
    "framing": True,
    "deviation": False,
    "encoder": None,
    "pixels": False,
    "momentum": 0.5,
    "moments": 0.0,
    "hog": 0.0,
}

HELD = {"moments": 2.0, "hog": 4.0}  # weights of the films' features that samples are held to
_PROJECTED = {"loss": "hinge", **HELD}  # what changes with an encoder
_OF_GAN = ("ema", "r1", "r2", "penalty_every")


def best_gan(size=64, width=32, n_classes=4, steps=6000, head="projection", seed=0, **changes):
    """Builds and compiles the best GAN found for a few dozen films a class (results/DETAILS.md).

    One class-conditional DCGAN for all classes, which frames its canvas anew for each sample; a
    projection discriminator with BatchNorm behind DiffAugment (translation and cutout); Adam at
    4e-4 on a cosine rate; an averaged generator.

    Args:
        size: Side of the images in pixels.
        width: Width of the generator, and of a discriminator of pixels.
        n_classes: Number of classes, >= 1.
        steps: Steps over which the rates fall, the training's length.
        head: `"projection"`, or `"auxiliary"` for an ACGAN.
        seed: Integer seed of the initial weights, the noise and the augmentation.
        **changes: Changes of `RECIPE`: `norm`, `latent`, `upsampling`, `framing` and `deviation`
            of the networks, `policy` of DiffAugment, or of ADA if `adaptive`, `ema`, `r1`, `r2`,
            `penalty_every`, `moments` and `hog` of `GAN`, `loss`, the `rate` that Adam begins
            with and its `momentum` (beta 1), and an `encoder` whose features the discriminator
            judges, and `pixels` too if True (without `norm`, `head`, `deviation`; see
            `build_projected_discriminator`); the `loss` is then the hinge loss, and the weights are
            those of `HELD`, unless said otherwise. `fit_gan` trains it; a plain `fit` needs
            `gan.adapt(films)` first where these count.

    Returns:
        A compiled conditional `GAN`.

    Raises:
        ValueError: If a size is out of range or a change is of something unknown.

    Example:
        >>> gan = best_gan(steps=6120)
        >>> fit_gan(gan, train, epochs=720, folder="runs/best")
    """
    if unknown := set(changes) - set(RECIPE):
        raise ValueError(f"changes are of {sorted(RECIPE)}. Received: {sorted(unknown)}")
    projected = changes.get("encoder") is not None
    recipe = RECIPE | (_PROJECTED if projected else {}) | changes
    augment = AdaptiveAugment if recipe["adaptive"] else DiffAugment
    keras.utils.set_random_seed(seed)
    if projected:
        options = {"n_classes": n_classes, "pixels": recipe["pixels"]}
        judge = build_projected_discriminator(recipe["encoder"], size, **options)
    else:
        options = recipe["norm"], head, recipe["deviation"]
        judge = build_discriminator(size, width, n_classes, *options)
    gan = GAN(
        build_generator(
            size, recipe["latent"], width, n_classes, recipe["upsampling"], recipe["framing"]
        ),
        judge,
        augment=augment(recipe["policy"]) if recipe["policy"] else None,
        **{name: recipe[name] for name in (*_OF_GAN, *HELD)},
        seed=seed,
    )
    rates = [
        keras.optimizers.schedules.CosineDecay(recipe["rate"], steps, alpha=0.1) for _ in range(2)
    ]
    optimizers = [keras.optimizers.Adam(rate, recipe["momentum"], 0.99) for rate in rates]
    gan.compile(*optimizers, loss=recipe["loss"])
    return gan


def fit_gan(gan, films, epochs, folder, batch_size=32, every=10, grids=8):
    """Trains a GAN on films, with progress, sample grids and exact resume.

    Args:
        gan: A compiled `GAN`.
        films: The training `Films`.
        epochs: Epochs in all; a training found in `folder` goes on to them.
        folder: Folder of `checkpoint/` and of the grids, `samples/epoch-*.png`.
        batch_size: Films a step.
        every: Epochs from one checkpoint to the next.
        grids: Number of sample grids over the training.

    Returns:
        The history, a DataFrame `epoch, g_loss, d_loss, d_real, d_fake`.

    Raises:
        FloatingPointError: If the training produced NaN; the last good checkpoint is kept.
        ValueError: If the folder's training is of other films, another seed, recipe (loss, rates,
            augmentation and the like) or network, or a class has no films to hold its samples to.
    """
    folder = Path(folder)
    if is_chief(gan):  # of several workers that share the folder, one writes
        facts = {"films": films.hash, "seed": gan.seed, "batch_size": batch_size}
        facts |= {name: getattr(gan, name) for name in HELD}
        begin(folder, {}, **facts, **_recipe(gan))
    checkpoint, stop = Checkpoint(folder / "checkpoint", every), StopOnNaN()
    first = checkpoint.restore(gan)
    if first < epochs:
        gan.adapt(films, cache=films.in_memory)
        options = {"labels": gan.conditional, "cache": films.in_memory}
        gan.fit(
            films.batches(batch_size, gan.seed, first, **options),
            initial_epoch=first,
            epochs=epochs,
            callbacks=[
                stop,
                SampleGrid(folder / "samples", max(1, epochs // grids)),
                checkpoint,  # after the grid: killed between the two, the epoch is done again
                Progress(" + ".join(films.classes)),
            ],
            verbose=0,
            shuffle=False,
        )
    if stop.reason:
        raise FloatingPointError(f"{stop.reason}. The last good state is in {folder}")
    return pd.DataFrame(checkpoint.history)


def _recipe(gan):
    """What else a training must go on with: loss, rates, augmentation, penalties, averaging."""
    optimizers = gan.generator_optimizer, gan.discriminator_optimizer
    inner = (getattr(optimizer, "inner_optimizer", optimizer) for optimizer in optimizers)
    configs = [optimizer.get_config() for optimizer in inner]
    own = gan.augment.get_config() if gan.augment is not None else {}
    frozen = [] if gan.frozen is None else gan.frozen.get_weights()
    return {
        "loss": getattr(gan.gan_loss, "__name__", type(gan.gan_loss).__name__),
        "rates": [config["learning_rate"] for config in configs],
        "momenta": [config.get("beta_1") for config in configs],
        "frozen": short_hash(b"".join(weights.tobytes() for weights in frozen)),
        "augment": {name: own[name] for name in own if name not in ("name", "dtype", "trainable")},
        **{name: getattr(gan, name) for name in _OF_GAN},
    }


def fit_best(films, steps, folder, width=32, encoder=None, seed=0, **changes):
    """Trains `best_gan` on all classes at once, with exact resume.

    Args:
        films: The training `Films`.
        steps: Batches of 32 films, rounded up to whole epochs.
        folder: Folder of the checkpoint and the grids, as in `fit_gan`.
        width: Width of the generator, and of a discriminator of pixels.
        encoder: `None`, or a Keras encoder whose features the discriminator judges; the samples
            are then held to the films' features too, as of `best_gan`.
        seed: Integer seed of everything random.
        **changes: Changes of the recipe, as of `best_gan`.

    Returns:
        `(gan, history, generators)`: the conditional `GAN`, the history as of `fit_gan`, and a
        dict from each class to its own unconditional generator.

    Raises:
        FloatingPointError: If the training produced NaN.
        ValueError: If there are no films, or the folder's training is of other films, another seed,
            recipe or network.

    Example:
        >>> gan, history, generators = fit_best(train, 3000, "runs/best", encoder=encoder)
    """
    if not len(films):
        raise ValueError(f"{films.name} has no films to train on: has it a split called train?")
    changes |= {"seed": seed, "encoder": encoder}
    gan = best_gan(films.size, width, len(films.classes), steps, **changes)
    history = fit_gan(gan, films, epochs_of(steps, films), folder)
    own = {name: one_class(gan.averaged, label) for label, name in enumerate(films.classes)}
    return gan, history, own


def keep_off(
    generator,
    films,
    rounds=2,
    steps=100,
    draws=12_000,
    seed=0,
    truncation=1.0,
    hog=0.5,
    margin=1.12,
):
    """Moves a generator's near copies of its films off these, and its gradients nearer to theirs.

    In each round, latents whose samples `quality.memorization` flags, or would at `margin` times
    its limit, are looked for. From batches of 16 of these, the nearest most often, and 112 fresh
    ones, the generator then learns `losses.CopyPenalty` (weight 2), to draw what it drew before
    (mean squared change, weight 10), and the fresh ones' oriented gradients to be the films', all
    together (`losses.ClassMMD` of `losses.hog_maps`).

    Args:
        generator: Unconditional `GAN` or generator, latent (n, k) -> float32 (n, h, w, 1) in
            [-1, 1].
        films: The training `Films` of the one class that it draws.
        rounds: Number of rounds, fewer where no sample comes near a film any more.
        steps: Steps of Adam a round, whose rate falls from 1e-3.
        draws: Latents looked at a round; `draw` of the same seed draws others. Near copies rarer
            than one in so many are not found, and some that are found may stay near.
        seed: Integer seed of all draws.
        truncation: As of `networks.truncated`, from the first round on.
        hog: Weight of the oriented gradients, 0 for near copies alone.
        margin: How far off samples are kept, as a multiple of the screen's limit, at least 1.

    Returns:
        A generator of the same layers, and a factor on the latents where `truncation` is below 1,
        with weights of its own.

    Raises:
        ValueError: If the generator is conditional or of another size, truncation, hog
            or margin is out of range, or the films are of fewer than 3 patients or all the same.

    Example:
        >>> generator = keep_off(generators["covid"], train.only("covid"))
    """
    from kerasgan.quality import check_patients, memorization

    check_patients(films)
    if not 0 <= hog < np.inf:
        raise ValueError(f"hog is a weight, 0 or above. Received: {hog}")
    if not 1 <= margin < np.inf:
        raise ValueError(f"margin is a multiple of the limit, 1 or above. Received: {margin}")
    generator = trainable(generator)
    if len(generator.inputs) > 1:
        raise ValueError(f"{generator.name} draws several classes: give the generator of one")
    if truncation != 1:
        generator = truncated(generator, truncation)
    tuned = copied(generator)
    distance = ClassMMD(((hog_maps(x), None) for x in films.batches(64)), 1) if hog else None
    rng, shape = np.random.default_rng([seed, 1]), (draws, generator.inputs[0].shape[-1])
    for number in range(1, rounds + 1):
        latents = rng.standard_normal(shape, np.float32)
        found = memorization(images_of(tuned, latents), films.images, patients=films.patients)
        bound = margin * found["limit"][0]
        near = found[found["distance"] < bound].nsmallest(1_000, "distance").sort_index()
        if near.empty:
            if not hog:
                break
            near = found.nsmallest(16, "distance")  # which cost nothing
        odds = np.maximum(1e-6, 1 - (near["distance"].to_numpy(float) / bound) ** 2)
        penalty = CopyPenalty(films.images[near["nearest"].unique()], bound)

        def cost(images, off=penalty):
            return 2 * off(images) + (hog * distance(hog_maps(images[16:]), None) if hog else 0)

        step = _step_off(generator, tuned, cost, steps)
        title = f"{' + '.join(films.classes)}, round {number} of {rounds}"
        for _ in tqdm(range(steps), desc=title, unit="step"):
            often = latents[rng.choice(near.index, 16, p=odds / odds.sum())]
            step(np.concatenate([often, rng.standard_normal((112, shape[1]), np.float32)]))
    return tuned


def _step_off(generator, tuned, cost, steps):
    """A step, of latents, by which `tuned` learns a cost of images, held to `generator`."""
    rate, variables = keras.optimizers.schedules.CosineDecay(1e-3, steps), tuned.trainable_variables
    optimizer = keras.optimizers.Adam(rate, beta_1=0.5, beta_2=0.99)
    optimizer.build(variables)

    @tf.function
    def step(latents):
        before = tf.cast(generator(latents, training=False), tf.float32)
        with tf.GradientTape() as tape:
            images = tf.cast(tuned(latents, training=False), tf.float32)
            loss = cost(images) + 10 * tf.reduce_mean(tf.square(images - before))
        optimizer.apply(tape.gradient(loss, variables), variables)

    return step


def epochs_of(steps, films, batch_size=32):
    """Returns the epochs of so many steps on films, rounded up to whole epochs."""
    return -(-steps // -(-len(films) // batch_size))


def read_sample_grids(folder):
    """Reads the grids that `SampleGrid` wrote.

    Args:
        folder: Folder of `epoch-*.png`.

    Returns:
        Dict from epoch to grid, uint8 (h, w), in order.

    Raises:
        FileNotFoundError: If there is none.
    """
    from kerasgan.reading import read_film

    paths = sorted(Path(folder).glob("epoch-*.png"))
    if not paths:
        raise FileNotFoundError(f"no sample grids in {folder}: train with SampleGrid first")
    return {int(path.stem.split("-")[1]): read_film(path) for path in paths}


def latent_walk(generator, steps=10, label=None, seed=0):
    """Draws images along the great circle between two random latents.

    Args:
        generator: `GAN` or generator, latent (n, k)[, class (n,)] -> images.
        steps: Images of the walk, >= 2.
        label: The class drawn by a conditional generator.
        seed: Integer seed of both ends: equal seeds walk equally, whatever the generator.

    Returns:
        uint8 (steps, h, w, 1).

    Reference:
        White (2016), "Sampling generative networks", arXiv 1609.04468.
    """
    if steps < 2:
        raise ValueError(f"a walk has at least 2 steps. Received: steps={steps}")
    generator = getattr(generator, "averaged", generator)
    latent = generator.inputs[0].shape[-1]
    start, end = np.random.default_rng(seed).standard_normal((2, latent))
    cosine = start @ end / (np.linalg.norm(start) * np.linalg.norm(end))
    angle, way = np.arccos(cosine), np.linspace(0, 1, steps)[:, None]
    latents = (np.sin((1 - way) * angle) * start + np.sin(way * angle) * end) / np.sin(angle)
    labels = None if label is None else np.full(steps, label, np.int32)
    return images_of(generator, latents.astype("float32"), labels)


class Progress(keras.callbacks.Callback):
    """One tqdm bar over a training's epochs, with the newest numbers and the time left.

    Args:
        title: What is trained.
    """

    def __init__(self, title=""):
        super().__init__()
        self.title, self.bar = title, None

    def on_epoch_begin(self, epoch, logs=None):
        """Begins the bar before the first epoch, so that this one's time counts too."""
        if self.bar is None:
            total = self.params.get("epochs")
            self.bar = tqdm(total=total, initial=epoch, desc=self.title, unit="epoch")

    def on_epoch_end(self, epoch, logs=None):
        """Moves the bar on by an epoch."""
        shown = {name: f"{value:.3g}" for name, value in (logs or {}).items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None):
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
