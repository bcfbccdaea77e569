import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgan.augment import DiffAugment
from kerasgan.gan import GAN, draw
from kerasgan.networks import (
    MinibatchDeviation,
    build_classifier,
    build_discriminator,
    build_generator,
    build_imagenet_encoder,
    build_projected_discriminator,
    build_resnet,
    one_class,
    truncated,
)
from kerasgan.store import load_safely


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def channels(model, kind):
    return [layer.filters for layer in model.layers if isinstance(layer, kind)]


def test_the_classifier_is_the_studys():
    model = build_classifier(64, 4)
    assert trainable(model) == 2_191_556
    assert model.layers[-1].activation is keras.activations.linear
    assert [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)] == [0.5]


def test_the_dcgan_is_the_studys():
    generator, discriminator = build_generator(), build_discriminator()
    assert generator.input_shape == (None, 100) and generator.output_shape == (None, 64, 64, 1)
    assert channels(generator, keras.layers.Conv2DTranspose) == [512, 256, 128, 64, 1]
    assert channels(discriminator, keras.layers.Conv2D)[:4] == [64, 128, 256, 512]
    # Sums by hand: kernels 4 x 4 without bias, and two BatchNorm weights a channel.
    kernels = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64)
    assert trainable(generator) == kernels + 2 * (512 + 256 + 128 + 64)
    kernels = 16 * (64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert trainable(discriminator) == kernels + 2 * (128 + 256 + 512)
    norms = [x for x in discriminator.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 3 and all(x.epsilon == 1e-5 and x.momentum == 0.9 for x in norms)


def test_initial_weights_are_the_dcgans():
    keras.utils.set_random_seed(0)
    generator = build_generator(64)
    kernel = generator.layers[2].kernel.numpy()
    assert abs(kernel.std() - 0.02) < 0.001 and abs(kernel.mean()) < 0.001


def test_the_fast_norm_is_keras_own():
    keras.utils.set_random_seed(0)
    fast = build_resnet(16, width=4, dropout=0.0)
    plain = keras.models.clone_model(fast)
    plain.set_weights(fast.get_weights())
    images = tf.random.normal((8, 16, 16, 1))
    gradients = []
    for model in (fast, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(images, training=True)))
        gradients.append(tape.gradient(loss, model.trainable_variables))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(fast.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [16, 32, 128, 256])
def test_one_argument_changes_the_resolution(size):
    generator, discriminator = build_generator(size, width=2), build_discriminator(size, width=2)
    image = generator(np.zeros((2, 100), "float32"))
    assert image.shape == (2, size, size, 1) and np.abs(image).max() <= 1
    assert discriminator(image).shape == (2, 1)


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_conditional_networks_read_the_class(norm):
    keras.utils.set_random_seed(1)
    generator = build_generator(16, width=4, n_classes=3)
    discriminator = build_discriminator(16, width=4, n_classes=3, norm=norm)
    latent = np.ones((3, 100), "float32")
    images = generator([latent, np.arange(3)])
    assert np.abs(images[0] - images[1]).max() > 0
    same = np.repeat(images[:1], 3, 0)
    logits = discriminator([same, np.arange(3)]).numpy()
    assert logits.shape == (3, 1) and len(np.unique(logits)) == 3


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (build_generator, {"size": 60}, "size=60"),
        (build_generator, {"latent": 0}, "latent"),
        (build_generator, {"n_classes": -1}, "n_classes"),
        (build_discriminator, {"width": 0}, "width"),
        (build_discriminator, {"norm": "layer"}, "norm='layer'"),
        (build_classifier, {"size": 8}, "size=8"),
    ],
)
def test_bad_arguments_are_named(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("framing", (False, True))
def test_one_class_draws_what_the_conditional_generator_draws_of_it(framing):
    generator = build_generator(16, latent=10, width=4, n_classes=3, framing=framing)
    own, latent = one_class(generator, 2), np.random.default_rng(0).normal(size=(5, 10))
    expected = generator([latent, np.full(5, 2)], training=False)
    np.testing.assert_allclose(own(latent, training=False), expected, atol=1e-6)
    generator.set_weights([weight * 0 for weight in generator.get_weights()])
    assert np.abs(own(latent, training=False)).max() > 0, "weights of its own"
    for label in (3, -1):
        with pytest.raises(ValueError, match="no class"):
            one_class(generator, label)
    with pytest.raises(ValueError, match="no class"):
        one_class(build_generator(16, 6, 4), 0)


def test_eight_latents_frame_the_canvas_and_draw_nothing(tmp_path):
    keras.utils.set_random_seed(0)
    generator = build_generator(32, latent=12, width=4, framing=True)
    canvas = next(x for x in reversed(generator.layers) if "transpose" in x.name).output
    latent = np.random.default_rng(0).normal(size=(1, 12)).astype("float32")

    def drawn(**places):
        latent[:, :8] = 0
        for place, value in places.items():
            latent[:, int(place[1:])] = value
        return np.asarray(generator(latent))[0, ..., 0]

    def alike(one, other):
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    whole = np.asarray(keras.Model(generator.input, canvas)(latent))[0, ..., 0]
    assert whole.shape == (40, 40) and drawn().shape == (32, 32)
    # A shift of one standard deviation is of 1/24 of the side; the filter reads a pixel softly.
    assert alike(drawn(), whole[4:36, 4:36]) > 0.98
    assert alike(drawn(p0=2.25), whole[4:36, 7:39]) > 0.98
    assert alike(drawn(p4=-1.5), whole[2:34, 4:36]) > 0.98
    at, t = np.arange(32) + 4, np.arange(-15.5, 16) / 15.5
    moves = {"p1": t * 32 / 48, "p2": (3 * t**2 - 1) / 2 * 32 / 72, "p3": (5 * t**3 - 3 * t) / 6}
    for place, move in moves.items():
        expected = np.stack([np.interp(at + 2 * move, np.arange(40), row) for row in whole[4:36]])
        assert alike(drawn(**{place: 2}), expected) > max(0.95, alike(drawn(), expected))
    fixed = [x for x in generator.layers if isinstance(x, keras.layers.Dense | keras.layers.Conv1D)]
    assert len(fixed) == 4 and not any(layer.trainable for layer in fixed)
    path = tmp_path / "generator.keras"
    generator.save(path)
    np.testing.assert_array_equal(load_safely(path)(latent), generator(latent))
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed = build_generator(32, latent=12, width=4, framing=True)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    mixed.set_weights(generator.get_weights())
    image = np.asarray(mixed(latent))[0, ..., 0]
    assert image.dtype == np.float32 and alike(image, np.asarray(generator(latent))) > 0.99
    with pytest.raises(ValueError, match="framing needs more than 8 latents"):
        build_generator(32, latent=8, framing=True)


def test_a_truncated_generator_draws_what_draw_truncates(tmp_path):
    generator = build_generator(32, width=4, framing=True)
    truncated_for_good = truncated(generator, 0.8)
    expected = draw(generator, 20, truncation=0.8)
    np.testing.assert_array_equal(draw(truncated_for_good, 20), expected)
    truncated_for_good.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # safe mode: stock layers
    np.testing.assert_array_equal(draw(loaded, 20), expected)
    twice = draw(truncated(loaded, 0.5), 20).astype(int)
    assert np.abs(twice - draw(generator, 20, truncation=0.4)).max() <= 1
    for factor in (0, 1.1):
        with pytest.raises(ValueError, match="truncation must be in"):
            truncated(generator, factor)
    with pytest.raises(ValueError, match="several classes"):
        truncated(build_generator(32, width=4, n_classes=2), 0.8)


def test_doubled_pixels_draw_no_checkerboard():
    """Of constant features each inner pixel gets the same sum of weights, whatever the weights."""
    keras.utils.set_random_seed(0)
    for upsampling in ("nearest", "transposed"):
        generator = build_generator(32, width=2, n_classes=3, upsampling=upsampling)
        last = generator.layers[-2:] if upsampling == "nearest" else generator.layers[-1:]
        x = np.ones((1, 16, 16, 2), "float32")
        for layer in last:
            x = layer(x)
        inner = np.asarray(x)[0, 4:-4, 4:-4, 0]
        assert (np.ptp(inner) < 1e-6) == (upsampling == "nearest")
        alone = one_class(generator, 1)
        latent = np.random.default_rng(0).normal(size=(4, 100)).astype("float32")
        both = alone(latent), generator([latent, np.ones(4, "int32")])
        np.testing.assert_allclose(*both, atol=1e-5)
    with pytest.raises(ValueError, match="upsampling must be"):
        build_generator(32, upsampling="bicubic")


def test_minibatch_deviation_sees_samples_that_are_alike(tmp_path):
    layer = MinibatchDeviation()
    rng = np.random.default_rng(0)
    varied = rng.normal(size=(8, 4, 4, 3)).astype("float32")
    alike = np.repeat(varied[:1], 8, axis=0)
    for x, deviation in ((varied, varied.std(0).mean()), (alike, 0)):
        out = np.asarray(layer(x))
        np.testing.assert_array_equal(out[..., :3], x)
        np.testing.assert_allclose(out[..., 3], deviation, atol=1e-3)
    model = build_discriminator(16, width=2, deviation=True)
    model.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    images = rng.normal(size=(4, 16, 16, 1)).astype("float32")
    np.testing.assert_allclose(again(images), model(images), rtol=1e-5)


def _trains_as_if_each_update_encoded_the_images(encoder, images):
    trained = []
    for shared in (True, False):
        keras.utils.set_random_seed(1)
        judge = build_projected_discriminator(encoder, 32, width=4, pixels=True)
        gan = GAN(build_generator(32, width=2), judge, DiffAugment(), r1=1.0)
        gan.compile(*(keras.optimizers.SGD(0.1) for _ in range(2)), loss="hinge")
        if not shared:
            gan.frozen, gan.heads = None, judge
        gan.fit(images, epochs=2, batch_size=6, shuffle=False, verbose=0)
        trained.append([*gan.generator.get_weights(), *judge.get_weights()])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_projected_discriminator_judges_frozen_features(tmp_path, small_encoder):
    keras.utils.set_random_seed(0)
    encoder = small_encoder(64, width=4)
    model = build_projected_discriminator(encoder, 32, width=4, n_classes=3)
    assert model.output_shape[1] > 16, "a logit for each place of each head"
    frozen = model.get_layer("frozen_maps")
    before = [weight.copy() for weight in frozen.get_weights()]
    images = np.random.default_rng(0).uniform(-1, 1, (6, 32, 32, 1)).astype("float32")
    same = np.repeat(images[:1], 3, axis=0)
    assert np.ptp(model([same, np.arange(3)]), axis=0).max() > 0, "it reads the class"
    gan = GAN(build_generator(32, width=2, n_classes=3), model, ema=0.0)
    start = gan.generator.get_weights()
    gan.compile(*(keras.optimizers.Adam(1e-2) for _ in range(2)), loss="hinge")
    history = gan.fit(images, np.arange(6) % 3, epochs=2, verbose=0).history
    assert np.isfinite(history["d_loss"]).all()
    for weight, was in zip(frozen.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, was)
    assert any((a != b).any() for a, b in zip(gan.generator.get_weights(), start, strict=True))
    assert gan.heads is not model, "generated images are encoded once for both updates"
    _trains_as_if_each_update_encoded_the_images(encoder, images)
    image = keras.Input((32, 32, 1))
    trained = keras.Model(image, build_discriminator(32, width=2)(image))
    whole = GAN(build_generator(32, width=2), trained)
    assert whole.frozen is None and whole.heads is trained, "a nested model may learn"
    model.save(tmp_path / "discriminator.keras")
    again = load_safely(tmp_path / "discriminator.keras")
    inputs = [images, np.arange(6) % 3]
    np.testing.assert_allclose(again(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    plain = build_projected_discriminator(encoder, 32, width=4, pixels=True)
    assert plain(images).shape == (6, model.output_shape[1] + 16), "a head for the image"
    image = keras.Input((32, 32, 1))
    loaded = keras.Model(image, keras.layers.Conv2D(2, 3, 4, "same", name="conv2d")(image))
    keras.utils.clear_session()  # as in a process that has made no layer yet
    assert build_projected_discriminator(loaded, 32, 4)(images).shape == (6, 16)
    mobile = build_imagenet_encoder(32, weights=None)
    assert build_projected_discriminator(mobile, 32, 4, 3)(inputs).shape == (6, 64 // 4 * 3)
    with pytest.raises(ValueError, match="32 to 512"):
        build_imagenet_encoder(16)
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="takes no grey images"):
        build_projected_discriminator(dense, 32)
    with pytest.raises(ValueError, match="one size only"):
        build_projected_discriminator(build_classifier(16), 32)
    image = keras.Input((64, 64, 1))
    flat = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="flat")
    with pytest.raises(ValueError, match="flat has no feature maps"):
        build_projected_discriminator(flat, 32)
