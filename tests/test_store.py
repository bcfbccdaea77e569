import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest

from kerasgan import runs, store
from kerasgan.__main__ import main
from kerasgan.gan import GAN, draw
from kerasgan.networks import build_classifier, build_discriminator, build_generator, one_class
from kerasgan.reading import read_film
from kerasgan.store import (
    check_trained_on,
    list_models,
    load_model,
    read_card,
    save_classifier,
    save_generator,
    shared_patients,
    write_model,
)


@pytest.fixture
def saved(films16, tmp_path):
    generator = build_generator(16, width=4)
    folder = save_generator(
        generator, tmp_path / "dcgan-covid", films16.only("covid").split("train"), seed=7
    )
    return generator, folder


def test_a_reloaded_generator_draws_equal_images(saved):
    generator, folder = saved
    np.testing.assert_array_equal(draw(load_model(folder), 5), draw(generator, 5))
    assert read_film(folder / "samples.png").shape == (4 * 16, 8 * 16)
    assert sorted(os.listdir(folder)) == ["card.json", "generator.keras", "samples.png"]


def test_half_precision_saves_space_and_changes_a_grey_level_at_most(films16, tmp_path):
    keras.utils.set_random_seed(0)
    films, judge = films16.only("covid"), build_discriminator(16, width=2, n_classes=4)
    gan = GAN(build_generator(16, width=8, n_classes=4, framing=True), judge)
    generator = one_class(gan.averaged, 0)
    folders = [
        save_generator(generator, tmp_path / str(precision), films, precision=precision)
        for precision in (None, "float16", "bfloat16")
    ]
    sizes = [(folder / "generator.keras").stat().st_size for folder in folders]
    assert sizes[2] < 0.8 * sizes[1] < 0.7 * sizes[0]
    assert [read_card(folder).get("weights") for folder in folders] == [None, "float16", "bfloat16"]
    drawn = [draw(load_model(folder), 20).astype(int) for folder in folders]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and np.abs(drawn[0] - drawn[2]).max() <= 4
    np.testing.assert_array_equal(drawn[0], draw(generator, 20))
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        save_generator(gan, tmp_path / "wrong", films16, precision="int8")
    learnt = len(gan.generator.trainable_variables)
    for model in (gan, gan.averaged):  # the latter is frozen, as part of a GAN
        folder = save_generator(model, tmp_path / "gan", films16, precision="float16")
        assert len(load_model(folder).trainable_variables) == learnt < len(generator.variables)


def test_the_card_of_one_class_of_a_conditional_gan_names_all_patients(films16, tmp_path):
    train = films16.split("train")
    own = one_class(build_generator(16, width=4, n_classes=len(train.classes)), 0)
    card = read_card(save_generator(own, tmp_path / "g", train.only("covid"), trained_with=train))
    assert card["classes"] == ["covid"] and card["trained_with"] == list(train.classes)
    assert shared_patients(card, films16) == sorted(set(train.patients))
    assert not set(card["data"]["patients"]) & set(train.patients), "codes, not names"
    with pytest.raises(ValueError, match="patients of the test films"):
        check_trained_on(card, train.only("covid"), train.only("normal"))


def test_it_loads_with_plain_keras_without_this_package(saved):
    code = (
        "import sys, keras; m = keras.models.load_model(sys.argv[1]); print(m.output_shape);"
        "assert not any(name.startswith('kerasgan') for name in sys.modules)"
    )
    path = str(saved[1] / "generator.keras")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "(None, 16, 16, 1)" in done.stdout, done.stderr


def test_the_card_says_what_it_is(saved, films16):
    card = read_card(saved[1])
    trained_on = films16.only("covid").split("train")
    assert card["classes"] == ["covid"] and card["size"] == 16 and card["latent"] == 100
    assert card["pixel_range"] == [-1, 1] and card["seed"] == 7
    assert card["data"]["hash"] == trained_on.hash and card["data"]["films"] == 8
    assert shared_patients(card, trained_on) == sorted(set(trained_on.patients))
    assert "Not for diagnosis" in card["intended_use"] and "as the owner" in card["licence"]
    public = replace(trained_on, name="covid-xray-64")
    card = read_card(save_generator(saved[0], saved[1], public))
    assert "children" in card["limits"] and "CC BY" in card["licence"]
    assert {"tensorflow", "keras", "kerasgan", "python"} <= set(card["versions"])


def test_models_are_listed(saved, films16, tmp_path):
    save_classifier(build_classifier(16), tmp_path / "classifier-O1", films16, arm="O1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    table = list_models(tmp_path).set_index("name")
    assert table.loc["classifier-O1", "role"] == "classifier"
    assert "not JSON" in table.loc["broken", "data"]
    assert load_model(tmp_path / "classifier-O1", "classifier").output_shape == (None, 4)
    with pytest.raises(FileNotFoundError, match="no folder of models"):
        list_models(tmp_path / "nowhere")


def test_other_films_and_seen_test_patients_are_refused(saved, films16):
    card, covid = read_card(saved[1]), films16.only("covid")
    check_trained_on(card, covid.split("train"))
    with pytest.raises(ValueError, match="trained on other films"):
        check_trained_on(card, covid)
    with pytest.raises(ValueError, match="patients of the test films"):
        check_trained_on(card, covid.split("train"), held_out=covid.split("test"))


def test_what_is_not_there_is_named(tmp_path, films16):
    with pytest.raises(FileNotFoundError, match="models` lists"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="no card"):
        read_card(tmp_path)
    for content, message in (("[1]", "no JSON object"), ('{"role": "x"}', "no model card")):
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_card(tmp_path)


def test_a_damaged_file_is_named(saved):
    path = saved[1] / "generator.keras"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_model(saved[1])


def test_a_model_of_another_role_is_refused(saved, films16, tmp_path):
    save_classifier(build_classifier(16), tmp_path / "c", films16)
    with pytest.raises(ValueError, match="is no generator"):
        load_model(tmp_path / "c" / "classifier.keras")


def test_code_in_a_model_is_not_run(tmp_path):
    inputs = keras.Input((4,))
    outputs = keras.layers.Reshape((2, 2, 1))(keras.layers.Lambda(lambda x: x)(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "generator.keras")
    with pytest.raises(ValueError, match="could run code"):
        load_model(tmp_path)


def repacked(path, name, change):
    """Writes a model anew with a part of it changed, as by one who means harm."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    parts[name] = change(parts[name])
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def with_layer(path, change):
    def apply(content):
        config = json.loads(content)
        change(config["config"]["layers"][1])
        return json.dumps(config).encode()

    repacked(path, "config.json", apply)


def test_a_custom_object_is_refused(saved):
    other = {"module": "os", "class_name": "system"}
    with_layer(saved[1] / "generator.keras", lambda layer: layer.update(other))
    with pytest.raises(ValueError, match="not Keras' own"):
        load_model(saved[1])


@pytest.mark.parametrize("at", ["hidden", "compile_config", "build_config"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.layers", "TFSMLayer"),
        ("keras.layers", "StringLookup"),
        ("keras.utils", "get_file"),
        ("keras", "get_file"),
        ("builtins", "function"),
    ],
)
def test_what_keras_itself_could_be_made_to_open_is_refused(saved, module, name, at, monkeypatch):
    own = {at: [{"module": module, "class_name": name}]}
    with_layer(saved[1] / "generator.keras", lambda layer: layer["config"].update(own))
    monkeypatch.setattr(keras.models, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=f"{name}.*could run code or read files"):
        load_model(saved[1])


def test_a_model_too_large_to_be_one_is_refused(saved, monkeypatch):
    monkeypatch.setattr(runs, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="the limit is 1,000"):
        load_model(saved[1])


def with_weights(path, change):
    def apply(content):
        weights = io.BytesIO(content)
        with h5py.File(weights, "r+") as file:
            change(file)
        return weights.getvalue()

    repacked(path, "model.weights.h5", apply)


def test_weights_that_unpack_to_too_much_or_lie_elsewhere_are_refused(saved, tmp_path, monkeypatch):
    path = saved[1] / "generator.keras"
    monkeypatch.setattr(keras.models, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr(store, "MAX_BYTES", 10**6)
    with_weights(
        path, lambda file: file.create_dataset("zeros", (1000, 1000), "f4", compression="gzip")
    )
    with pytest.raises(ValueError, match="unpack to more than 1,000,000 bytes"):
        load_model(saved[1])
    (tmp_path / "secret").write_bytes(bytes(40))

    def link(file):
        del file["zeros"]
        file["link"] = h5py.ExternalLink("other.h5", "/x")

    with_weights(path, link)
    with pytest.raises(ValueError, match="link to another file or place, link"):
        load_model(saved[1])

    def lie_outside(file):
        del file["link"]
        place = [(str(tmp_path / "secret"), 0, 40)]
        file.create_dataset("far", (10,), "f4", external=place)

    with_weights(path, lie_outside)
    with pytest.raises(ValueError, match="far are in another file"):
        load_model(saved[1])


def test_classes_of_a_card_write_nothing_outside(saved, tmp_path, capsys):
    card = read_card(saved[1]) | {"classes": ["../../escaped"]}
    (saved[1] / "card.json").write_text(json.dumps(card))
    assert main(["synthesise", str(saved[1]), str(tmp_path / "out"), "--count", "2"]) == 1
    assert "may not point outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("escaped"))


def test_a_save_that_fails_leaves_the_old_model(saved, films16, monkeypatch):
    before = (saved[1] / "generator.keras").read_bytes()

    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    other = build_generator(16, width=4)
    monkeypatch.setattr(other, "save", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        save_generator(other, saved[1], films16.only("covid"))
    assert (saved[1] / "generator.keras").read_bytes() == before and read_card(saved[1])
    assert not list(saved[1].glob(".*"))


def test_a_model_never_stands_under_the_card_of_another(films16, tmp_path, monkeypatch):
    save_generator(build_generator(16, width=4), tmp_path, films16.only("covid"))
    monkeypatch.setattr(store, "_png_grid", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_generator(build_generator(16, width=4), tmp_path, films16.only("normal"))
    with pytest.raises(FileNotFoundError, match="card.json"):
        read_card(tmp_path)


def test_films_are_known_again_when_their_patients_get_names(films16, tmp_path):
    unnamed = films16.only("covid")
    unnamed = replace(unnamed, index=unnamed.index.assign(patient=""))
    folder = save_generator(build_generator(16, width=4), tmp_path / "g", unnamed.split("train"))
    named = replace(unnamed, index=unnamed.index.assign(patient="someone", split="test"))
    assert shared_patients(read_card(folder), named) == ["someone"]
    others = replace(named, _pixels={"images": 255 - named.images})
    assert not shared_patients(read_card(folder), others)


def test_a_model_leaves_other_files_and_old_samples_do_not_stay(films16, tmp_path):
    (tmp_path / "plain.keras").write_bytes(b"mine")
    write_model(build_generator(16, width=4), tmp_path / "partial.keras")
    assert (tmp_path / "plain.keras").read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"plain.keras", "partial.keras"}
    films = films16.only("covid")
    folder = save_generator(build_generator(16, width=4), tmp_path / "g", films)
    assert (folder / "samples.png").is_file()
    film = films.images[0, ..., 0].ravel() / 127.5 - 1
    latent = keras.Input((100,))
    copy = keras.layers.Dense(256, kernel_initializer="zeros")(latent)
    copier = keras.Model(latent, keras.layers.Reshape((16, 16, 1))(copy))
    copier.layers[1].set_weights([np.zeros((100, 256)), film])
    save_generator(copier, folder, films)
    assert not (folder / "samples.png").exists() and "copies" in read_card(folder)["samples"]
