import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kerasgan.compare import _samples
from kerasgan.films import (
    CLASSES,
    Films,
    check_size,
    epoch_numbers,
    inner_path,
    save_films,
    stored_paths,
    to_float,
    to_uint8,
)
from kerasgan.preparation import prepare
from kerasgan.runs import write_bytes
from kerasgan.sources import load_films


def test_conversions_are_inverse_on_all_levels():
    levels = np.arange(256, dtype=np.uint8)
    assert to_float(levels).dtype == np.float32
    assert to_float(levels).min() == -1 and to_float(levels).max() == 1
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)


def test_nan_images_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="with NaN"):
        Films.from_arrays(np.full((2, 16, 16), np.nan), [0, 1], CLASSES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 16, 16), np.uint8), [0, 1], "one length"),
        (np.zeros((2, 16, 12), np.uint8), [0, 1], r"\(n, h, h, 1\)"),
        (np.zeros((2, 16, 16), np.uint8), [0, 4], "positions in"),
        (np.zeros((2, 16, 16), np.float32), [0, 1], "uint8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Films.from_arrays(images, labels, CLASSES)


def test_misspelt_and_misplaced_arguments_are_named(films16):
    with pytest.raises(ValueError, match="uint8 in .*float32"):
        to_float(to_float(films16.images))  # twice would turn every film black
    with pytest.raises(ValueError, match="splits are .*'tset'"):
        films16.split("tset")
    assert not len(films16.split("val"))
    with pytest.raises(TypeError, match="patient"):
        Films.from_arrays(films16.images, films16.labels, CLASSES, patient=films16.patients)
    for labels in (films16.labels * 1.0, films16.index["class"].to_numpy(str)):
        with pytest.raises(ValueError, match="labels must be positions"):
            Films.from_arrays(films16.images, labels, CLASSES)
    with pytest.raises(ValueError, match="batch_size"):
        films16.batches(0)


def test_a_stored_set_has_the_hash_that_it_is_loaded_with(films16, tmp_path):
    names = films16.index["filename"].str.replace(".png", ".jpg")
    films = dataclasses.replace(films16, index=films16.index.assign(filename=names), _pixels={})
    films._pixels["images"] = films16.images
    assert films.hash != (stored := save_films(films, tmp_path)).hash, "it covers file names"
    assert stored.hash == load_films(tmp_path).hash


def test_a_stored_set_is_replaced_whole(films16, tmp_path):
    save_films(films16, tmp_path)
    (tmp_path / "train" / "mine.png").write_bytes(b"not of the set")
    few = save_films(films16.first(2), tmp_path)
    left = {path for path in tmp_path.rglob("*.png") if path.name != "mine.png"}
    assert {str(path) for path in left} == set(few.index["path"])
    assert (tmp_path / "train" / "mine.png").is_file()
    for other in (dataclasses.replace(few, name="other"), films16.only("covid")):
        folder = tmp_path
        if other.name == films16.name:  # prepared films are nobody's to replace
            folder = tmp_path / "prepared"
            prepare(films16, folder, 16)
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match="holds the films of sixteen: choose another folder"):
            save_films(other, folder)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_selection_keeps_pixels_and_labels_together(films16):
    part = films16.only("normal", "covid").split("test")
    assert part.classes == ("covid", "normal") and len(part) == 8
    brightness = part.images.mean((1, 2, 3))
    assert brightness[part.labels == 1].min() > brightness[part.labels == 0].max()
    assert len(films16.first(3)) == 12
    again = films16.first(3).repeated(7).only("normal").images
    np.testing.assert_array_equal(again, films16.only("normal").images[[0, 1, 2, 0, 1, 2, 0]])
    assert len(films16.repeated(1)) == len(films16)
    with pytest.raises(ValueError, match="no films of \\['pneumonia_bac'\\] to repeat"):
        films16.take(films16.labels != 2).repeated(3)
    assert set(films16.take(films16.labels == 2).index["class"]) == {"pneumonia_bac"}
    with pytest.raises(ValueError, match="classes are"):
        films16.only("flu")


def test_patients_leave_whole(films16):
    gone = films16.patients[3]
    rest = films16.without_patients([gone])
    assert gone not in rest.patients and len(rest) == len(films16) - 2


def test_a_patient_on_both_sides_is_in_test_alone():
    split, patients = ["train", "train", "test", "train"], ["a", "b", "a", "c"]
    images = np.arange(4, dtype=np.uint8)[:, None, None] + np.zeros((16, 16), np.uint8)
    films = Films.from_arrays(images, [0, 0, 1, 1], CLASSES[:2], patients=patients, split=split)
    train, test = films.train_test()
    assert [*train.patients] == ["b", "c"] and [*test.patients] == ["a"]
    alone, none = films.take([1, 3]).train_test()
    assert len(alone) == 2 and not len(none)


def test_a_picture_on_both_sides_is_in_test_alone():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)
    images[3] = images[1]
    split = ["train", "train", "train", "test"]
    films = Films.from_arrays(images, [0, 0, 1, 0], CLASSES[:2], split=split)
    train, test = films.train_test()
    assert [*train.index["filename"]] == ["film-00000.png", "film-00002.png"] and len(test) == 1
    assert train.hash == films.take([0, 2]).hash  # what is kept of the films goes along


@pytest.mark.parametrize("patients", [None, [None, "", np.nan, None]])
def test_unknown_patients_are_one_per_film(patients):
    images = np.zeros((4, 16, 16), np.uint8)
    films = Films.from_arrays(images, [0, 0, 1, 1], CLASSES[:2], patients=patients)
    assert len(set(films.patients)) == 4


def test_hash_depends_on_pixels_and_classes_not_on_order(films16):
    order = np.random.default_rng(0).permutation(len(films16))
    assert films16.take(order).hash == films16.hash
    assert films16.take(order[1:]).hash != films16.hash
    changed = films16.images.copy()
    changed[3, 2, 2] ^= 1
    names = list(films16.index["filename"])
    other = Films.from_arrays(changed, films16.labels, CLASSES, filenames=names)
    assert other.hash != films16.hash


def test_more_folds_than_patients_are_refused(films16):
    with pytest.raises(ValueError, match="patients .*'covid': 10"):
        next(films16.folds(11))


def test_folds_keep_patients_whole_and_use_every_film(films16):
    seen = []
    for train, test in films16.folds(3, repeats=2, seed=1):
        assert not set(train.patients) & set(test.patients)
        assert set(test.labels) == set(range(4))
        seen += list(test.index["class"] + test.index["filename"])
    counts = pd.Series(seen).value_counts()
    assert len(counts) == len(films16) and (counts == 2).all()


def test_batches_cover_each_epoch_in_an_order_of_seed_and_epoch(films16):
    def epochs(first, count, seed=0):
        data = films16.batches(7, seed=seed, first_epoch=first, labels=True)
        return [np.concatenate([y for _, y in data.as_numpy_iterator()]) for _ in range(count)]

    first, second, third = epochs(0, 3)
    np.testing.assert_array_equal(np.sort(first), np.sort(films16.labels))
    assert (first != second).any()
    np.testing.assert_array_equal(epochs(2, 1)[0], third)
    assert (epochs(0, 1, seed=1)[0] != first).any()
    assert (epochs(256, 1)[0] != first).any() and (epochs(0, 1, seed=256)[0] != first).any()


def test_batches_from_files_equal_batches_from_memory(films16, tmp_path):
    stored = load_films(save_films(films16, tmp_path / "films") and tmp_path / "films")
    assert stored.hash == films16.hash

    def batches(films, **options):
        data = films.batches(10, seed=3, labels=True, **options).as_numpy_iterator()
        return [(x.copy(), y) for x, y in data]

    kept = next(films16.batches(3, cache=False).as_numpy_iterator())
    assert kept.shape == (3, 16, 16, 1)  # in memory they stay
    for (x, y), (u, v) in zip(batches(films16), batches(stored, cache=False), strict=True):
        assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)


def test_no_films_make_no_batches(films16):
    with pytest.raises(ValueError, match="no films"):
        films16.take([]).batches(4)
    with pytest.raises(ValueError, match="differ in size"):
        dataclasses.replace(films16, size=None, _pixels={}).batches(4, cache=False)


def test_epoch_numbers_count_iterations():
    data = epoch_numbers(5)
    assert [next(iter(data)).numpy() for _ in range(3)] == [5, 6, 7]


def test_batches_leave_malloc_as_it_was():
    code = (
        "import numpy as np, kerasgan as kg\n"
        "films = kg.Films.from_arrays(np.zeros((4, 16, 16), 'uint8'), [0] * 4, ['covid'])\n"
        "assert len(list(films.batches(2))) == 2"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Memory patch applied" not in done.stderr, "every free would give memory back"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_reads_films_too(films16, tmp_path):
    save_films(films16.first(6), tmp_path)
    code = (
        "import os, sys, kerasgan as kg\n"
        "films = kg.load_films(sys.argv[1], size=16)\n"
        "first = films.images\n"
        "if not os.fork(): os._exit(int(kg.load_films(sys.argv[1], size=16).images.sum() == 0))\n"
        "assert os.wait()[1] == 0"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)


def test_no_tuner_of_batches_holds_up_the_end_of_an_epoch(films16):
    drawn = _samples(films16.images, films16.labels, 4, batches=2, seed=0, first_epoch=0)
    for batches in (films16.batches(4), drawn):
        assert batches.map(lambda *batch: batch).options().autotune.enabled is False


@pytest.mark.parametrize("size", [60, 8, 512, 64.0, "64", True])
def test_odd_sizes_are_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        check_size(size)


def test_a_set_that_is_replaced_in_part_does_not_pass_for_whole(films16, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    save_films(films16, old)
    other = dataclasses.replace(films16.first(6), _pixels={"images": 255 - films16.first(6).images})
    written = []

    def full(path, content):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_bytes(path, content)

    monkeypatch.setattr("kerasgan.films.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_films(other, old)
    with pytest.raises(ValueError, match="not whole"):
        load_films(old)
    written.clear()
    with pytest.raises(OSError, match="No space"):
        save_films(other, new)
    with pytest.raises(ValueError, match="not whole"):
        load_films(new)
    monkeypatch.undo()
    again = load_films(save_films(other, old) and old)
    assert again.hash == other.hash and not again.skipped, "no file of the old set is left"
    fewer = load_films(save_films(films16.first(1), new) and new)
    assert len(fewer) == 4 and not fewer.skipped, "nor of one that was never whole"


def test_concat_joins_and_refuses_others(films16):
    joined = Films.concat([films16.split("train"), films16.split("test")])
    assert joined.hash == films16.hash
    with pytest.raises(ValueError, match="same classes"):
        Films.concat([films16, films16.only("covid")])


def test_names_that_differ_in_their_ending_only_are_kept_apart(tmp_path):
    films = Films.from_arrays(
        np.zeros((2, 16, 16), np.uint8), [0, 0], ("a",), filenames=["x.jpg", "x.png"]
    )
    assert len(set(stored_paths(films, tmp_path))) == 2


def test_names_of_any_script_survive(tmp_path):
    names = ['it\'s "one".png', "röntgen 胸部.png", "a b,c.png"]
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16), np.uint8)
    classes = ("gesund, 'ja'", "krank ü")
    save_films(Films.from_arrays(images, [0, 1, 1], classes, filenames=names), tmp_path / "ü x")
    again = load_films(tmp_path / "ü x")
    assert sorted(again.index["filename"]) == sorted(names) and again.classes == classes
    assert {image.tobytes() for image in again.images} == {x.tobytes() for x in images}


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png", "a\\b.png", "C:x.png"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="may not point outside"):
        inner_path("train", "a", name)
    films = Films.from_arrays(np.zeros((1, 16, 16), np.uint8), [0], ("../b",))
    with pytest.raises(ValueError, match="may not point outside"):
        save_films(films, tmp_path / "in")
    assert not list(tmp_path.iterdir())


def test_a_stored_set_is_brought_up_to_date_and_a_foreign_film_is_not_touched(films16, tmp_path):
    save_films(films16, tmp_path / "own")
    changed = Films.from_arrays(
        255 - films16.images,
        films16.labels,
        CLASSES,
        split=list(films16.index["split"]),
        filenames=list(films16.index["filename"]),
        name=films16.name,
    )
    save_films(changed, tmp_path / "own")
    assert load_films(tmp_path / "own").hash == changed.hash
    path = stored_paths(films16, tmp_path / "foreign")[3]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"foreign holds {path.parent.parent.name}"):
        save_films(films16, tmp_path / "foreign")
    assert path.read_bytes() == b"mine"
    path.rename(tmp_path / "foreign" / "index.csv")
    with pytest.raises(ValueError, match="foreign holds index.csv"):
        save_films(films16, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "index.csv").read_bytes() == b"mine"
    save_films(films16.first(1), tmp_path / "own")  # a smaller set takes its place
    path = stored_paths(films16, tmp_path / "own")[3]
    assert not path.exists()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is another film"):
        save_films(films16, tmp_path / "own")
    assert path.read_bytes() == b"mine" and len(load_films(tmp_path / "own")) == 4


def test_films_of_equal_names_on_both_sides_are_of_different_patients(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in "ab":
            for i in range(count):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.full((16, 16), 9 * i + (split == "test"), np.uint8))
    films = load_films(tmp_path, size=16)
    train, _ = films.train_test()
    assert len(train) == 6 and len(set(films.patients)) == len(films) == 10


def test_a_damaged_film_is_named_when_it_is_read(films16, tmp_path):
    stored = save_films(films16, tmp_path)
    path = stored.index["path"][5]
    Path(path).write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=f"{path}.*prepare"):
        load_films(tmp_path).images  # noqa: B018
