import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgan import quality
from kerasgan.augment import AdaptiveAugment, DiffAugment
from kerasgan.callbacks import Checkpoint, SampleGrid
from kerasgan.films import to_float
from kerasgan.gan import GAN, draw
from kerasgan.losses import hog_maps
from kerasgan.networks import (
    build_classifier,
    build_discriminator,
    build_generator,
    build_projected_discriminator,
)


def small_gan(n_classes=None, compiled=True, rate=1e-3, **options):
    keras.utils.set_random_seed(0)
    gan = GAN(
        build_generator(16, latent=8, width=4, n_classes=n_classes),
        build_discriminator(16, width=4, n_classes=n_classes),
        **options,
    )
    if compiled:
        gan.compile(keras.optimizers.Adam(rate, 0.5), keras.optimizers.Adam(rate, 0.5))
    return gan


def weights(model):
    return [np.array(value) for value in model.get_weights()]


def changed(before, after):
    return [np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True)]


def test_one_step_changes_both_networks_and_the_average(films16):
    gan = small_gan(augment=DiffAugment())
    before = [weights(model) for model in (gan.generator, gan.discriminator, gan.averaged)]
    history = gan.fit(films16.batches(48), epochs=1, verbose=0).history
    after = [weights(model) for model in (gan.generator, gan.discriminator, gan.averaged)]
    for old, new in zip(before, after, strict=True):
        assert all(changed(old, new))
    assert set(history) == {"g_loss", "d_loss", "d_real", "d_fake"}
    assert 0 < history["d_real"][0] < 1 and np.isfinite(history["g_loss"][0])


def test_the_optimizers_are_built_at_compile():
    gan = small_gan()
    assert gan.generator_optimizer.built and gan.discriminator_optimizer.built


def test_a_training_is_a_function_of_its_seed(films16):
    def trained(seed):
        gan = small_gan(seed=seed, augment=DiffAugment())
        gan.fit(films16.batches(16), epochs=2, verbose=0)
        return gan.generate(4)

    np.testing.assert_array_equal(trained(1), trained(1))
    assert (trained(1) != trained(2)).any()


def test_updates_are_those_of_the_published_losses(films16):
    """One step by hand: discriminator first, then the generator against the updated one."""
    gan, hand = small_gan(), small_gan()
    real = to_float(films16.images[:8])
    gan.fit(tf.data.Dataset.from_tensors(real), verbose=0)
    latent = tf.random.stateless_normal((8, 8), (0, 0))
    fake = hand.generator(latent, training=True)
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        on_real, on_fake = (hand.discriminator(x, training=True) for x in (real, fake))
        loss = bce(tf.ones((8, 1)), on_real) + bce(tf.zeros((8, 1)), on_fake)
    variables = hand.discriminator.trainable_variables
    hand.discriminator_optimizer.apply(tape.gradient(loss, variables), variables)
    for a, b in zip(variables, gan.discriminator.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with tf.GradientTape() as tape:
        fake = hand.generator(latent, training=True)
        loss = bce(tf.ones((8, 1)), hand.discriminator(fake, training=True))
    variables = hand.generator.trainable_variables
    hand.generator_optimizer.apply(tape.gradient(loss, variables), variables)
    for a, b in zip(variables, gan.generator.trainable_variables, strict=True):
        agree = np.isclose(a, b, atol=1e-4).mean()
        assert agree > 0.97  # Adam's first step is the sign of the gradient: noise where it is 0


def test_the_average_warms_up_and_follows(films16):
    gan = small_gan(ema=0.999)
    gan.fit(films16.batches(16), epochs=1, verbose=0)
    away = max(
        np.abs(a - b).max()
        for a, b in zip(gan.averaged.get_weights(), gan.generator.get_weights(), strict=True)
    )
    first = small_gan().generator.get_weights()
    moved = max(np.abs(a - b).max() for a, b in zip(gan.averaged.get_weights(), first, strict=True))
    assert 0 < away < moved  # a fixed decay of 0.999 would have stayed at the start
    none = small_gan(ema=0)
    none.fit(films16.batches(16), epochs=1, verbose=0)
    for a, b in zip(none.averaged.get_weights(), none.generator.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_generators_of_any_layers_train(films16, tmp_path):
    latent, label = keras.Input((8,)), keras.Input((), dtype="int32")
    x = keras.layers.Concatenate()([latent, keras.layers.CategoryEncoding(4, "one_hot")(label)])
    x = keras.layers.Dropout(0.3)(keras.layers.Dense(256, activation="tanh")(x))
    generator = keras.Model([latent, label], keras.layers.Reshape((16, 16, 1))(x))
    gan = GAN(generator, build_discriminator(16, width=4, n_classes=4), ema=0.9)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    grids = SampleGrid(tmp_path, every=1)  # of as many classes as nobody knows
    gan.fit(films16.batches(16, labels=True), verbose=0, callbacks=[grids])
    assert gan.generate(2, 3).shape == (2, 16, 16, 1) and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("options", [{"r1": 5.0}, {"r1": 1.0, "r2": 1.0, "penalty_every": 2}])
def test_gradient_penalties_flatten_the_discriminator(films16, options):
    def slope(gan):
        gan.fit(films16.batches(16), epochs=15, verbose=0)
        images = tf.constant(to_float(films16.images))
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = gan.discriminator(images, training=True)
        return float(tf.norm(tape.gradient(logits, images)))

    assert slope(small_gan(**options)) < slope(small_gan())


def no_loss(real, fake):
    return fake[0, 0], 0 * real[0, 0]


@pytest.mark.parametrize("loss", ["hinge", "relativistic", no_loss])
def test_losses_by_name_and_by_function(films16, loss):
    gan = small_gan(compiled=False)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3), loss=loss)
    before = [np.array(weights) for weights in gan.generator.get_weights()]
    history = gan.fit(films16.batches(16), verbose=0).history
    assert np.isfinite([history["g_loss"], history["d_loss"]]).all()
    pairs = zip(before, gan.generator.get_weights(), strict=True)
    assert any((old != new).any() for old, new in pairs)


def test_a_conditional_gan_draws_the_class_it_is_asked_for(films16):
    gan = small_gan(n_classes=4, rate=3e-3)
    gan.fit(films16.batches(16, labels=True), epochs=60, verbose=0)
    means = [gan.generate(64, labels=label).mean() for label in range(4)]
    assert np.argsort(means).tolist() == [0, 1, 2, 3]
    assert means[3] - means[0] > 60


def test_an_acgan_learns_to_name_the_class_of_films_and_samples(films16):
    keras.utils.set_random_seed(0)
    discriminator = build_discriminator(16, 4, n_classes=4, head="auxiliary")
    gan = GAN(build_generator(16, 8, 4, 4), discriminator)
    gan.compile(keras.optimizers.Adam(3e-3, 0.5), keras.optimizers.Adam(3e-3, 0.5))
    gan.fit(films16.batches(16, labels=True), epochs=60, verbose=0)
    _, named = discriminator(films16.images / 127.5 - 1, training=False)
    assert (np.argmax(named, 1) == films16.labels).mean() > 0.5
    means = [gan.generate(64, labels=label).mean() for label in range(4)]
    assert means[3] - means[0] > 60
    with pytest.raises(ValueError, match="conditional"):
        GAN(build_generator(16), discriminator)


def test_augmentation_does_not_leak_into_the_samples():
    """Films of one bright square in the middle: samples have no shifts, holes or other greys."""
    film = np.full((1, 16, 16, 1), -0.5, np.float32)
    film[:, 4:12, 4:12] = 0.5
    films = tf.data.Dataset.from_tensors(np.repeat(film, 16, 0)).repeat(4)
    keras.utils.set_random_seed(0)
    augment = DiffAugment(("colour", "translation", "cutout"))
    gan = GAN(build_generator(16, 8, 8), build_discriminator(16, 8), augment, ema=0.98)
    gan.compile(keras.optimizers.Adam(2e-3, 0.5), keras.optimizers.Adam(2e-3, 0.5))
    gan.fit(films, epochs=240, verbose=0)
    samples = gan.generate(64) / 127.5 - 1
    assert np.abs(samples.mean(0) - film[0]).mean() < 0.15
    assert samples.std(0).mean() < 0.15, "every sample is the same film"
    augmented = augment(np.repeat(film, 64, 0), training=True).numpy()
    assert augmented.std(0).mean() > 2 * samples.std(0).mean()


def test_it_learns_where_the_films_are(films16):
    gan = small_gan(rate=3e-3, ema=0.9)
    dark = films16.only("covid")
    gan.fit(dark.batches(12), epochs=120, verbose=0)
    assert abs(gan.generate(64).mean() - dark.images.mean()) < 20


def test_evaluate_scores_without_an_update(films16):
    gan = small_gan()
    before = weights(gan.generator)
    scores = gan.evaluate(films16.batches(16), verbose=0, return_dict=True)
    assert set(scores) == {"g_loss", "d_loss", "d_real", "d_fake"}
    assert not any(changed(before, weights(gan.generator)))


def test_one_step_with_xla(films16):
    gan = small_gan(compiled=False)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3), jit_compile=True)
    gan.fit(films16.batches(48), verbose=0)
    assert np.isfinite(gan.metrics[0].result())


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["mixed_bfloat16", "mixed_float16", "xla"])
def test_half_precision_and_xla_learn_as_well(films16, setting):
    dark, away = films16.only("covid"), {}
    for name in ("float32", setting):
        keras.mixed_precision.set_global_policy("float32" if name == "xla" else name)
        try:
            gan = small_gan(compiled=False, ema=0.9)
            optimizers = [keras.optimizers.Adam(3e-3, 0.5) for _ in range(2)]
            if name == "mixed_float16":
                optimizers = [keras.optimizers.LossScaleOptimizer(each) for each in optimizers]
            gan.compile(*optimizers, jit_compile=name == "xla")
            gan.fit(dark.batches(12), epochs=120, verbose=0)
        finally:
            keras.mixed_precision.set_global_policy("float32")
        assert all(weight.dtype == np.float32 for weight in gan.get_weights())
        drawn, real = (x.reshape(len(x), -1) / 255 for x in (gan.generate(64), dark.images))
        away[name] = quality.fid(drawn[:, ::8], real[:, ::8]) / quality.fid(
            np.full((64, 32), 0.5), real[:, ::8]
        )
    assert away["float32"] < 0.6 and away[setting] < 1.5 * away["float32"] + 0.1, away


def test_draws_are_seeded_and_begin_alike():
    gan = small_gan()
    few, many = draw(gan.generator, 5, seed=3), draw(gan.generator, 9, seed=3, batch_size=4)
    assert many.shape == (9, 16, 16, 1) and many.dtype == np.uint8
    assert np.abs(few.astype(int) - many[:5]).max() <= 1
    assert (few != draw(gan.generator, 5, seed=4)).any()
    assert draw(gan.generator, 0).shape == (0, 16, 16, 1)
    np.testing.assert_array_equal(draw(gan, 3), draw(gan.averaged, 3))


def test_truncation_draws_closer_to_the_middle_and_is_checked():
    generator = build_generator(16, latent=8, width=4)
    last = generator.layers[-1].kernel
    last.assign(last * 1_000)  # an untrained generator draws one grey
    spread = [
        draw(generator, 64, seed=1, truncation=factor).astype(float).std(axis=0).mean()
        for factor in (1.0, 0.5, 0.1)
    ]
    assert spread[0] > spread[1] > spread[2]
    for wrong in (0, 1.5, -1, float("nan")):
        with pytest.raises(ValueError, match="truncation must be in"):
            draw(generator, 1, truncation=wrong)


def test_misuse_is_named(films16):
    with pytest.raises(ValueError, match="agree on the image shape"):
        GAN(build_generator(16, width=2), build_discriminator(32, width=2))
    with pytest.raises(ValueError, match="both be conditional"):
        GAN(build_generator(16, width=2), build_discriminator(16, 2, n_classes=2))
    gan = small_gan(compiled=False)
    with pytest.raises(ValueError, match="loss='wgan'"):
        gan.compile(keras.optimizers.Adam(), keras.optimizers.Adam(), loss="wgan")
    one = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="of its own"):
        gan.compile(one, one)
    with pytest.raises(ValueError, match="takes no labels"):
        gan.generate(2, labels=1)
    conditional = small_gan(n_classes=4)
    with pytest.raises(ValueError, match="needs labels"):
        conditional.generate(2)
    for wrong in (-1, 4, [0, 7]):
        with pytest.raises(ValueError, match="labels are 0 to 3"):
            conditional.generate(2, wrong)
    with pytest.raises(ValueError, match="labels=True"):
        conditional.fit(films16.batches(16), verbose=0)
    gan = small_gan()
    gan.fit(films16.batches(16), verbose=0)
    large = np.zeros((4, 32, 32, 1), np.float32)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"shape \[\?,16,16,1\]"
    ):  # once traced
        gan.fit(large, verbose=0)
    with pytest.raises(ValueError, match=r"takes images \(None, 16, 16, 1\)"):
        small_gan().fit(large, verbose=0)


def test_adaptive_augmentation_rises_while_real_films_are_told(films16, tmp_path):
    def gan():
        keras.utils.set_random_seed(0)
        both = build_generator(16, 8, 2), build_discriminator(16, 4, deviation=True)
        gan = GAN(*both, AdaptiveAugment(target=0.1, images=64), ema=0.9)
        gan.compile(keras.optimizers.Adam(1e-5), keras.optimizers.Adam(1e-2))
        return gan

    first, checkpoint = gan(), Checkpoint(tmp_path)
    first.fit(films16.batches(12), epochs=3, callbacks=[checkpoint], verbose=0)
    reached = first.augment.probability.numpy()
    assert 0 < reached <= 1
    again = gan()
    assert Checkpoint(tmp_path).restore(again) == 3
    assert again.augment.probability.numpy() == reached


def projected_gan(moments, n_classes=4):
    keras.utils.set_random_seed(0)
    encoder = build_classifier(16)
    encoder = keras.Model(encoder.input, encoder.layers[-3].output)
    judge = build_projected_discriminator(encoder, 16, 4, n_classes)
    gan = GAN(build_generator(16, 8, 4, n_classes), judge, moments=moments)
    gan.compile(keras.optimizers.Adam(5e-3, 0.5), keras.optimizers.Adam(1e-9), loss=no_loss)
    return gan


def test_moments_alone_teach_a_generator_the_classes(films16):
    gan = projected_gan(1.0)
    gan.adapt(films16)
    labels = np.repeat(np.arange(4), 32)

    def apart():
        images = to_float(gan.generate(len(labels), labels=labels))
        return float(gan.distance(gan.frozen(images), labels))

    before = apart()
    gan.fit(films16.batches(48, labels=True), epochs=80, verbose=0)
    assert apart() < 0.3 * before
    means = [gan.generate(64, labels=label).mean() for label in range(4)]
    assert means[3] - means[0] > 30
    gan.adapt(films16.split("test"))
    assert gan.train_function is None, "a step traced before would match the other films"
    one = projected_gan(1.0, None)
    one.adapt(films16)
    one.fit(films16.batches(48), verbose=0)


def test_hog_alone_teaches_a_generator_of_any_discriminator(films16):
    gan = small_gan(hog=1.0)
    with pytest.raises(ValueError, match="adapt"):
        gan.fit(films16.batches(48), verbose=0)
    films = films16.only(films16.classes[0])
    gan.adapt(films)
    gan.compile(keras.optimizers.Adam(5e-3, 0.5), keras.optimizers.Adam(1e-9), loss=no_loss)

    def apart():
        return float(gan.mmd(hog_maps(to_float(gan.generate(100))), None))

    before = apart()
    gan.fit(films.batches(12), epochs=80, verbose=0)
    assert apart() < 0.5 * before


def test_moments_need_frozen_maps_and_films(films16):
    with pytest.raises(ValueError, match="frozen maps"):
        small_gan(moments=1.0)
    with pytest.raises(ValueError, match="adapt"):
        projected_gan(1.0).fit(films16.batches(48, labels=True), verbose=0)
