import keras
import numpy as np
import pytest

from kerasgan.films import CLASSES, Films, save_films
from kerasgan.networks import build_generator
from kerasgan.phantom import simulate_films
from kerasgan.sources import load_films
from kerasgan.store import save_generator
from kerasgan.synthesis import classic_set, draw_fresh, load_samples, screen, synthesise


def test_classic_sets_are_cumulative_and_keep_patients(films16, tmp_path):
    train = films16.split("train")
    small, large = (classic_set(train, n, tmp_path / str(n), seed=1) for n in (5, 11))
    np.testing.assert_array_equal(large.first(5).images, small.images)
    assert len(large) == 44 and set(large.patients) <= set(train.patients)
    brightness = [large.only(name).images.mean() for name in CLASSES]
    assert brightness == sorted(brightness)  # each image comes from its own class
    stored = load_films(tmp_path / "11")
    assert stored.hash == large.hash and set(stored.index["split"]) == {"train"}


def test_classic_images_differ_from_their_film_and_from_each_other(films16, tmp_path):
    made = classic_set(films16, 24, tmp_path, seed=0)
    assert len({image.tobytes() for image in made.images}) > 90


def test_a_class_without_films_is_named(films16, tmp_path):
    rest = films16.take(films16.labels != 2)
    with pytest.raises(ValueError, match="pneumonia_bac has no film"):
        classic_set(rest, 3, tmp_path)


def test_synthesis_draws_each_class_from_its_generator(films16, tmp_path):
    generators = {name: build_generator(16, width=2) for name in CLASSES}
    made = synthesise(generators, films16, 6, tmp_path / "a", seed=1)
    assert len(made) == 24 and made.counts()["films"].tolist() == [6] * 4
    assert load_films(tmp_path / "a").hash == made.hash
    more = synthesise(generators, films16, 9, tmp_path / "b", seed=1)
    assert np.abs(more.first(6).images.astype(int) - made.images).max() <= 1
    with pytest.raises(ValueError, match="no generator for class covid"):
        synthesise({}, films16, 6, tmp_path / "c")
    with pytest.raises(ValueError, match="16 pixels, the films have 32"):
        synthesise(generators, simulate_films(4, 32, test_per_class=1), 6, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_samples_are_read_from_files_folders_and_generators(films16, tmp_path):
    sets = {name: films16.only(name).images for name in CLASSES}
    np.savez(tmp_path / "given.npz", **sets, other=np.arange(3))
    np.savez(tmp_path / "flat.npz", **{name: x[..., 0] for name, x in sets.items()})
    save_films(films16, tmp_path / "folder")
    for path in ("given.npz", "flat.npz", "folder"):
        samples = load_samples(tmp_path / path, CLASSES)
        assert samples.classes == CLASSES and set(samples.index["split"]) == {"train"}
        for name in CLASSES:
            np.testing.assert_array_equal(samples.only(name).images, sets[name])
    for name in CLASSES:
        save_generator(build_generator(16, width=2), tmp_path / f"gan-{name}", films16.only(name))
    assert load_samples(tmp_path / "gan", CLASSES, 3).images.shape == (12, 16, 16, 1)


def test_samples_that_do_not_fit_are_named(films16, tmp_path):
    sets = {name: films16.only(name).images for name in CLASSES}
    np.savez(tmp_path / "few.npz", covid=sets["covid"])
    with pytest.raises(ValueError, match="lacks the classes \\['normal'"):
        load_samples(tmp_path / "few.npz", CLASSES)
    np.savez(tmp_path / "mixed.npz", **{**sets, "covid": sets["covid"][:, :8, :8]})
    with pytest.raises(ValueError, match="all of one size and dtype"):
        load_samples(tmp_path / "mixed.npz", CLASSES)
    np.savez(tmp_path / "colour.npz", **{name: x.repeat(3, axis=-1) for name, x in sets.items()})
    with pytest.raises(ValueError, match=r"\(n, h, h, 1\)"):
        load_samples(tmp_path / "colour.npz", CLASSES)


def test_the_screen_flags_copies_and_only_copies():
    train = simulate_films(30, size=32, seed=1, test_per_class=0)
    fresh = simulate_films(30, size=32, seed=2, test_per_class=0).first(10).images.copy()
    labels = np.repeat(np.arange(4), 10)
    for label in range(4):  # the first two of each class are copies, one shifted and flipped
        own = train.images[train.labels == label]
        fresh[10 * label] = own[3]
        fresh[10 * label + 1] = np.roll(own[5][:, ::-1], 1, axis=1)
    table = screen(Films.from_arrays(fresh, labels, CLASSES), train)
    assert table["flagged"][[0, 1, 10, 11, 20, 21, 30, 31]].all()
    assert table["flagged"].sum() <= 10
    np.testing.assert_array_equal(train.images[table["nearest"][10]], fresh[10])
    with pytest.raises(ValueError, match="no films of.*covid.*to screen"):
        screen(Films.from_arrays(fresh, labels, CLASSES), train.only("normal"))


def replaying(film, share):
    """A generator that draws noise, and one film for about `share` of the latents."""
    latent = keras.Input((4,))
    flat = keras.layers.Dense(1024, activation="tanh", trainable=False)(latent)
    copy = keras.layers.Dense(1, activation="sigmoid", name="gate")(latent)
    noise = keras.layers.Reshape((32, 32, 1))(flat)
    known = keras.layers.Dense(1024, kernel_initializer="zeros", name="film")(latent)
    known = keras.layers.Reshape((32, 32, 1))(known)
    gate = keras.layers.Reshape((1, 1, 1))(copy)
    rest = keras.layers.Rescaling(-1.0, 1.0)(gate)
    out = keras.layers.Add()(
        [keras.layers.Multiply()([known, gate]), keras.layers.Multiply()([noise, rest])]
    )
    model = keras.Model(latent, out)
    pixels = film.astype("float32").ravel() / 127.5 - 1
    model.get_layer("film").set_weights([np.zeros((4, 1024)), pixels])
    cut = float(np.quantile(np.random.default_rng(0).standard_normal(4000), share))
    model.get_layer("gate").set_weights(
        [np.array([[-500.0], [0], [0], [0]]), np.array([500.0 * cut])]
    )
    return model


def test_samples_that_come_near_a_film_are_left_out():
    train = simulate_films(30, size=32, seed=1, test_per_class=0).only("normal")
    images, table = draw_fresh(replaying(train.images[3], 0.4), train, 20, seed=3)
    assert len(images) == len(table) == 20 and (table["distance"] >= table["limit"]).all()
    assert set(table["nearest"]) <= set(train.index["filename"])
    assert not any((image == train.images[3]).mean() > 0.5 for image in images)
    with pytest.raises(ValueError, match="the generator copies"):
        draw_fresh(replaying(train.images[3], 1.0), train, 20)
