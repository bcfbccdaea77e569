import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgan import films as films_module
from kerasgan.__main__ import main
from kerasgan.augment import AdaptiveAugment, DiffAugment
from kerasgan.films import save_films, to_float
from kerasgan.gan import draw
from kerasgan.losses import LOSSES, ClassMMD, hog_maps
from kerasgan.networks import build_generator
from kerasgan.phantom import simulate_films
from kerasgan.quality import memorization
from kerasgan.sources import load_films
from kerasgan.store import load_model, read_card, save_generator
from kerasgan.training import (
    best_gan,
    epochs_of,
    fit_gan,
    keep_off,
    latent_walk,
    read_sample_grids,
    reference_gan,
)


def test_the_reference_recipe_is_the_studys():
    gan = reference_gan()
    adam = gan.generator_optimizer
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.5, 0.999, 1e-8)
    assert float(adam.learning_rate) == pytest.approx(2e-3)
    assert float(gan.discriminator_optimizer.learning_rate) == pytest.approx(2e-4)
    assert gan.augment is None and gan.latent == 100


def test_a_training_of_other_films_is_not_gone_on_with(films16, tmp_path):
    fit_gan(reference_gan(16, 2), films16.only("covid"), 1, tmp_path)
    for films, seed in ((films16.only("normal"), 0), (films16.only("covid"), 1)):
        with pytest.raises(ValueError, match="was begun with"):
            fit_gan(reference_gan(16, 2, seed=seed), films, 2, tmp_path)


def test_a_training_of_another_recipe_is_not_gone_on_with(films16, tmp_path):
    fit_gan(best_gan(16, 2, steps=10), films16, 1, tmp_path)
    others = {"steps": 20, "policy": ("cutout",), "loss": "hinge", "ema": 0.9, "momentum": 0.0}
    for changes in ({name: value} for name, value in others.items()):
        with pytest.raises(ValueError, match="was begun with"):
            fit_gan(best_gan(16, 2, **{"steps": 10, **changes}), films16, 2, tmp_path)
    settings = tmp_path / "settings.json"
    known = json.loads(settings.read_text())
    known["facts"] = {name: known["facts"][name] for name in ("films", "seed", "batch_size")}
    settings.write_text(json.dumps(known))  # as an older version wrote it: goes on
    assert len(fit_gan(best_gan(16, 2, steps=10), films16, 2, tmp_path)) == 2


def test_other_frozen_weights_are_not_overwritten_and_a_scaled_optimizer_is_fine(
    films16, tmp_path, small_encoder
):
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        encoder = small_encoder()
        gan = best_gan(16, 2, steps=10, encoder=encoder, moments=0, hog=0)
        optimizers = gan.generator_optimizer, gan.discriminator_optimizer
        gan.compile(*map(keras.optimizers.LossScaleOptimizer, optimizers), loss="hinge")
        if seed:
            with pytest.raises(ValueError, match="was begun with frozen="):
                fit_gan(gan, films16, 2, tmp_path)
        else:
            fit_gan(gan, films16, 1, tmp_path)


def test_a_change_of_the_best_recipe_is_a_word():
    plain, changed = best_gan(16, 2), best_gan(16, 2, norm="spectral", latent=12, adaptive=True)
    assert plain.latent == 100 and changed.latent == 12
    assert isinstance(plain.augment, DiffAugment) and isinstance(changed.augment, AdaptiveAugment)
    assert plain.augment.policy == changed.augment.policy == ("translation", "cutout")
    assert best_gan(16, 2, policy=()).augment is None
    with pytest.raises(ValueError, match="norms"):
        best_gan(16, 2, norms="spectral")


def test_fit_gan_goes_on_where_it_stopped(films16, tmp_path):
    films = films16.only("covid")

    def train(folder, *epochs):
        for count in epochs:
            gan = reference_gan(16, 4, (1e-3, 1e-3), DiffAugment(), seed=2)
            history = fit_gan(gan, films, count, folder, batch_size=4, every=1, grids=2)
        return gan.generate(3), history

    whole, history = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    first = tmp_path / "parts" / "samples" / "epoch-00001.png"
    drawn = first.stat().st_mtime_ns
    parts, again = train(tmp_path / "parts", 4, 4)
    assert first.stat().st_mtime_ns == drawn, "it began anew"
    np.testing.assert_array_equal(whole, parts)
    assert list(history["epoch"]) == list(again["epoch"]) == [1, 2, 3, 4]
    grids = read_sample_grids(tmp_path / "whole" / "samples")
    assert list(grids) == [2, 4] and grids[4].shape == (16, 128)


def test_a_projected_gan_that_matches_moments_goes_on_where_it_stopped(
    films16, tmp_path, small_encoder
):
    encoder = small_encoder()

    def train(folder, *epochs):
        for count in epochs:
            gan = best_gan(16, 2, steps=6, encoder=encoder)
            fit_gan(gan, films16, count, folder, every=1, grids=1)
        return gan

    whole, parts = train(tmp_path / "whole", 3), train(tmp_path / "parts", 1, 3)
    assert (whole.moments, whole.hog) == (2.0, 4.0)
    assert whole.gan_loss is LOSSES["hinge"]
    np.testing.assert_array_equal(whole.generate(3, labels=1), parts.generate(3, labels=1))
    with pytest.raises(ValueError, match="moments=2.0"):
        fit_gan(best_gan(16, 2, encoder=encoder, moments=0.0), films16, 4, tmp_path / "parts")
    with pytest.raises(ValueError, match="hog=4.0"):
        fit_gan(best_gan(16, 2, encoder=encoder, hog=0.0), films16, 4, tmp_path / "parts")


def copying_generator(films):
    """One that blends two films, so that some of its samples come near to one."""
    generator = build_generator(16, width=4, latent=4)
    latents = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    share = 1 / (1 + np.exp(-2 * latents[:, :1, None, None]))
    first, second = to_float(films.images[:2])
    images, optimizer = share * first + (1 - share) * second, keras.optimizers.Adam(5e-3)
    for _ in range(150):
        with tf.GradientTape() as tape:
            drawn = generator(latents, training=False)
            loss = tf.reduce_mean(tf.square(drawn - images))
        variables = generator.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
    return generator


def test_a_generator_is_kept_off_its_films_and_else_stays_as_it_was():
    films = simulate_films(12, size=16, test_per_class=0).only("normal")
    generator = copying_generator(films)
    weights = generator.get_weights()
    options = {"draws": 400, "seed": 3, "hog": 0}
    models = {"before": generator, "after": keep_off(generator, films, 3, 60, **options)}
    images = {name: draw(model, 400, seed=0) for name, model in models.items()}
    before, after = (
        memorization(drawn, films.images, patients=films.patients) for drawn in images.values()
    )
    assert before["flagged"].mean() > 0.1
    assert after["flagged"].mean() < 0.3 * before["flagged"].mean()
    far = (before["distance"] > 1.5 * before["limit"]).to_numpy()
    moved = np.abs(np.subtract(*images.values(), dtype=float)).mean((1, 2, 3))
    assert far.sum() > 20 and moved[far].mean() < min(4, moved[~far].mean())
    for was, now in zip(weights, generator.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now, "the generator given was changed")
    again = keep_off(generator, films, 3, 60, **options)
    np.testing.assert_array_equal(draw(again, 20), images["after"][:20])


def test_keeping_off_brings_gradients_nearer_and_truncates_for_good():
    films = simulate_films(12, size=32, test_per_class=0).only("normal")
    keras.utils.set_random_seed(0)
    generator = build_generator(32, width=8)
    tuned = keep_off(generator, films, 1, 60, draws=100, truncation=0.7)
    alone = keep_off(generator, films, 1, 60, draws=100, truncation=0.7, hog=0)
    distance = ClassMMD([(hog_maps(to_float(films.images)), None)], 1)
    before, after = (
        float(distance(hog_maps(to_float(draw(model, 200, seed=5))), None))
        for model in (alone, tuned)
    )
    assert after < 0.7 * before
    np.testing.assert_array_equal(draw(alone, 20), draw(generator, 20, truncation=0.7))
    for wrong, message in (
        ({"truncation": 1.5}, "must be in"),
        ({"hog": -1}, "0 or above"),
        ({"margin": 0.5}, "1 or above"),
    ):
        with pytest.raises(ValueError, match=message):
            keep_off(generator, films, **wrong)


def test_the_command_keeps_saved_generators_off_their_films(tmp_path, capsys):
    save_films(simulate_films(16, size=16).only("normal"), tmp_path / "films")
    films, _ = load_films(tmp_path / "films").train_test()
    generator = copying_generator(films)
    save_generator(generator, tmp_path / "copy-normal", films, kind="copy")
    words = ["keep-off", str(tmp_path / "copy"), str(tmp_path / "films"), str(tmp_path / "kept")]
    words += ["--truncation", "0.9"]
    assert main(words) == 0
    told = capsys.readouterr().out
    before, now = map(int, re.search(r"samples: (\d+) before, (\d+) now", told).groups())
    assert before > 100 and now < 0.3 * before
    card = read_card(tmp_path / "kept" / "copy-normal")
    assert card["kind"] == "copy" and card["truncation"] == 0.9
    assert "keep-off MODELS" in card["command"] and "--truncation 0.9" in card["command"]
    kept = load_model(tmp_path / "kept" / "copy-normal")
    assert not np.array_equal(draw(kept, 5), draw(generator, 5))
    assert main(words) == 0 and "kept off before" in capsys.readouterr().out
    was = draw(kept, 5)
    for others in [*words, "--seed", "1"], [*words[:3], str(tmp_path)]:
        assert main(others) == 1
        assert "give another folder" in capsys.readouterr().err
    np.testing.assert_array_equal(draw(load_model(tmp_path / "kept" / "copy-normal"), 5), was)


def test_keeping_off_needs_a_generator_of_one_class_and_films_of_patients():
    films = simulate_films(12, size=16, test_per_class=0).only("normal")
    plain = build_generator(16, width=2)
    same = draw(keep_off(plain, films, draws=20, hog=0), 5)
    np.testing.assert_array_equal(same, draw(plain, 5), "noise comes near no film")
    with pytest.raises(ValueError, match="several classes"):
        keep_off(build_generator(16, width=2, n_classes=4), films)
    with pytest.raises(ValueError, match="at least 3 patients"):
        keep_off(plain, films.take([0, 1]))
    with pytest.raises(ValueError, match="one size"):
        keep_off(build_generator(32, width=2), films, draws=20)
    gan = reference_gan(16, 2)
    both = [draw(keep_off(each, films, draws=20), 5) for each in (gan, gan.averaged)]
    np.testing.assert_array_equal(*both)


def test_steps_are_rounded_up_to_whole_epochs(films16):
    per_epoch = -(-len(films16) // 32)
    assert epochs_of(1, films16) == epochs_of(per_epoch, films16) == 1
    assert epochs_of(per_epoch + 1, films16) == 2
    assert epochs_of(10, films16, batch_size=len(films16)) == 10


def test_a_diverged_training_says_so(films16, tmp_path):
    gan = reference_gan(16, 4, (float("nan"), 1e-3))
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        fit_gan(gan, films16, 3, tmp_path)


def test_a_walk_is_on_the_sphere_between_two_draws():
    generator = build_generator(16, width=4)
    walk = latent_walk(generator, 5, seed=1)
    assert walk.shape == (5, 16, 16, 1) and walk.dtype == np.uint8
    ends = np.random.default_rng(1).standard_normal((2, 100)).astype("float32")
    drawn = np.rint((generator(ends, training=False) + 1) * 127.5)
    assert np.abs(drawn - walk[[0, -1]]).max() <= 1


def test_no_grids_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="SampleGrid"):
        read_sample_grids(tmp_path)


def test_films_beyond_memory_are_read_batch_by_batch_to_the_same_end(
    films16, tmp_path, monkeypatch
):
    stored, ends = save_films(films16.only("covid"), tmp_path / "films"), []
    for limit in (2**28, 0):
        monkeypatch.setattr(films_module, "MEMORY", limit)
        own = load_films(tmp_path / "films")
        gan = reference_gan(16, 2)
        fit_gan(gan, own, 2, tmp_path / str(limit))
        assert ("images" in own._pixels) == bool(limit) and own.hash == stored.hash
        ends.append(gan.get_weights())
    for cached, streamed in zip(*ends, strict=True):
        np.testing.assert_array_equal(cached, streamed)
