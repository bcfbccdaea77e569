"""Whatever a file or a command line holds: success, or an error of ours, and nothing half-written.

Each test runs on a few drawn cases by default and on 1,000 as a slow test.
"""

import io
import json
import os
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_reading import GREY, dicom

import kerasgan
from kerasgan.__main__ import main
from kerasgan.callbacks import Checkpoint
from kerasgan.crossval import read_predictions
from kerasgan.films import Films, save_films
from kerasgan.networks import build_generator
from kerasgan.preparation import prepare
from kerasgan.quality import stretch
from kerasgan.reading import image_size, read_square, read_with_remark
from kerasgan.report import check_tables
from kerasgan.runs import Run
from kerasgan.sources import load_films
from kerasgan.store import list_models, load_model, read_card, save_generator
from kerasgan.synthesis import load_samples

EXAMPLES = [10, pytest.param(1000, marks=pytest.mark.slow)]
PACKAGE = Path(kerasgan.__file__).parent


def fuzz(count, check, *strategies):
    """Calls `check(folder, *drawn)` for `count` cases, each with an empty folder of its own."""

    def once(values):
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), *values)
            left = [path for path in Path(folder).rglob("*") if "partial" in path.name]
            assert not left, left

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    limits = settings(max_examples=count, deadline=None, database=None, suppress_health_check=quiet)
    limits(given(st.tuples(*strategies))(once))()


@contextmanager
def clear_error(*kinds):
    """Passes on success and on an error that the package raised itself, with a message."""
    try:
        yield
    except (ValueError, OSError) as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = place.parent == PACKAGE or isinstance(error, OSError)
        assert ours and str(error).strip(), "".join(traceback.format_exception(error))


def damaged(content):
    """Strategy: bytes made from sound ones by cutting, flipping and inserting; or any bytes."""

    def apply(changes):
        data = bytearray(content)
        for place, kind, extra in changes:
            at = int(place * len(data))
            if kind == "cut":
                del data[at:]
            elif kind == "flip" and data:
                data[min(at, len(data) - 1)] ^= 1 + extra[0] % 255 if extra else 1
            else:
                data[at:at] = extra
        return bytes(data)

    change = st.tuples(
        st.floats(0, 1), st.sampled_from(["cut", "flip", "flip", "insert"]), st.binary(max_size=9)
    )
    return st.lists(change, max_size=4).map(apply) | st.binary(max_size=60)


WORDS = ["", "a", "b", "A", "train", "test", "0.png", "1.png", "..", ".", "/", "../x", "a/0.png"]
WORDS += ["\0", "C:x", "é 胸", '"', "'", ",", "\n", "nan", "-1", "1e99", "\\", "x" * 300, "\udc80"]
words = st.sampled_from(WORDS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def objects(sound):
    """Strategy: the text of a JSON object like `sound`, some entries lost or replaced; or not."""

    def text(changes):
        return json.dumps({k: v for k, v in {**sound, **changes}.items() if v != "lost"}).encode()

    keys = st.sampled_from([*sound])
    changed = st.dictionaries(keys, json_values | st.just("lost"), max_size=3).map(text)
    return changed | damaged(json.dumps(sound).encode()) | st.just(b"[" * 50_000)


def png(value=9, side=16):
    return cv2.imencode(".png", np.full((side, side), value, np.uint8))[1].tobytes()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def used(films, folder):
    """Uses films in every way that reads their files, into a folder of their own."""
    with clear_error():
        films.images, films.counts(), films.hash  # noqa: B018
    with clear_error():
        prepare(films, folder / "out", 16, workers=1)
    made = [path for path in folder.parent.rglob("*.png") if folder not in path.parents]
    assert not made, "written outside its folder"


FILMS = {
    f"{split}/{kind}/{i}.png": png(i)
    for split in ("train", "test")
    for kind in "ab"
    for i in (0, 1)
}


@pytest.mark.parametrize("count", EXAMPLES)
def test_folders(count, capfd):
    names = st.sampled_from(["train", "test", "a", "b", "A", "é ' \" 胸", ".hidden", "x.png"])
    leaves = st.sampled_from(["0.png", "1.jpg", "z.dcm", "notes.txt", ".x.png", "u\nv.gif"])
    paths = st.lists(names, min_size=0, max_size=3).flatmap(
        lambda way: leaves.map(lambda leaf: "/".join([*way, leaf]))
    )
    contents = st.sampled_from([png(), png(3, 20), png()[:50], b"", b"text"])

    def check(folder, files):
        kept = {n: c for n, c in files.items() if not any(o.startswith(n + "/") for o in files)}
        write(folder / "in", kept)
        with clear_error():
            used(load_films(folder / "in"), folder / "in")
        for name, content in kept.items():
            assert (folder / "in" / name).read_bytes() == content, "a film was changed"

    fuzz(count, check, st.dictionaries(paths, contents, max_size=12))


@pytest.mark.parametrize("count", EXAMPLES)
@pytest.mark.parametrize("name", ["index.csv", "manifest.csv"])
def test_tables(count, name, capfd):
    rows = [["split", "class", "filename", "patient"]]
    rows += [[*path.split("/"), f"p{path[0]}"] for path in FILMS]

    def table(changes):
        cells = [list(row) for row in rows]
        for row, column, word in changes:
            cells[row][column] = word
        text = io.StringIO()
        text.writelines(",".join(row) + "\n" for row in cells)
        return text.getvalue().encode(errors="surrogatepass")

    change = st.tuples(st.integers(0, len(rows) - 1), st.integers(0, 3), words)
    contents = st.lists(change, max_size=5).map(table) | damaged(table([]))

    def check(folder, content):
        write(folder, {"secret.png": b"", "x/secret.png": b""})
        write(folder / "in", FILMS | {name: content})
        with clear_error():
            films = load_films(folder / "in")
            inside = (folder / "in").resolve()
            assert all(inside in Path(path).resolve().parents for path in films.index["path"])
            for target in ("secret.png", "x/secret.png"):
                (folder / target).unlink()
            (folder / "x").rmdir()
            used(films, folder / "in")

    fuzz(count, check, contents)


@pytest.mark.parametrize("count", EXAMPLES)
def test_about(count, capfd):
    about = {"name": "n", "note": "", "size": 16, "fit": "pad", "skipped": [["a", "why"]]}
    table = "split,class,filename\n" + "".join(f"{p.replace('/', ',')}\n" for p in FILMS)

    def check(folder, content):
        write(folder / "in", FILMS | {"index.csv": table.encode(), "about.json": content})
        with clear_error():
            used(load_films(folder / "in"), folder / "in")

    fuzz(count, check, objects(about))


@pytest.mark.parametrize("count", EXAMPLES)
def test_settings_and_marks_of_stages(count, capfd):
    def check(folder, content, mark):
        write(folder / "r", {"settings.json": content, "stages/01_data.json": mark})
        with clear_error():
            run = Run("r", None, root=folder)
            seconds = run.finished("01_data")
            assert seconds is None or 0 <= seconds < float("inf")

    mark = {"seconds": 2.5, "profile": {}, "at": 1.5}
    fuzz(count, check, objects({"profile": "smoke", "data": "x", "seed": 1}), objects(mark))


@pytest.mark.parametrize("count", EXAMPLES)
def test_notes_of_unfinished_sets(count, capfd):
    def check(folder, content):
        write(folder, {f"in/{name}": image for name, image in FILMS.items()})
        write(folder / "out", {"unfinished.json": content})
        with clear_error():
            prepare(load_films(folder / "in"), folder / "out", 16, workers=1)
        assert len([*folder.glob("in/*/*/*.png")]) == len(FILMS)

    fuzz(count, check, objects({"files": ["train/a/0-png.png", "train/a/1-png.png"]}))


@pytest.mark.parametrize("count", EXAMPLES)
def test_tables_of_evaluations(count, films16):
    facts = {"arm": ["real"] * 4, "kind": "real", "classifier": "cnn", "repeat": 0, "fold": 0}
    facts |= {"seed": 0, "filename": [*"abcd"], "patient": [*"abcd"], "class": films16.classes}
    cell = pd.DataFrame(facts | {f"p_{name}": 0.25 for name in films16.classes})
    columns = ["arm", "kind", "classifier", "repeat", "fold", "seed", "class"]
    table = cell[columns].assign(metric="f1", value=0.5, data_hash=films16.hash[:16])

    def check(folder, cell, table, made):
        write(folder, {"cv/repeat0-fold0/real.csv": cell, "comparison.json": made})
        write(folder, dict.fromkeys(("comparison.csv", "statistics.csv", "levels.csv"), table))
        with clear_error():
            read_predictions(folder / "cv")
        with clear_error():
            check_tables(folder, films16, 1, "cnn", 1, {"steps": 2})

    sound = [damaged(each.to_csv(index=False).encode()) for each in (cell, table)]
    fuzz(count, check, *sound, objects({"cnn": {"steps": 2}}))


@pytest.mark.parametrize("count", EXAMPLES)
def test_cards(count):
    card = {"role": "generator", "name": "n", "classes": ["a"], "size": 16, "parameters": 3}
    card["data"] = {"name": "d", "films": 3, "hash": "x", "patients": []}

    def check(folder, content):
        write(folder, {"m/card.json": content})
        assert len(list_models(folder)) == 1
        with clear_error():
            assert isinstance(read_card(folder / "m"), dict)

    fuzz(count, check, objects(card))


def encoded(kind):
    file = io.BytesIO()
    image = Image.fromarray(GREY).convert("CMYK" if kind == "TIFF" else "L")
    image.save(
        file, kind, **({"save_all": True, "append_images": [image]} if kind == "GIF" else {})
    )
    return file.getvalue()


@pytest.mark.parametrize("count", EXAMPLES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "DICOM"])
def test_images(count, kind, tmp_path, capfd):
    sound = encoded(kind) if kind != "DICOM" else None
    if sound is None:
        sound = dicom(tmp_path / "film.dcm", GREY.astype("<u2")).read_bytes()

    def check(folder, content):
        path = folder / "film"
        path.write_bytes(content)
        with clear_error():
            image_size(path)
        with clear_error():
            pixels, _ = read_with_remark(path)
            assert pixels.dtype == np.uint8 and pixels.ndim == 2
        with clear_error():
            assert read_square(path, 16)[0].shape == (16, 16)

    fuzz(count, check, damaged(sound))


def packed(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 16]), max_size=5).map(tuple)
dtypes = st.sampled_from(["u1", "f4", "i8", "U3", "?", "c8", "M8[s]"])
arrays = st.builds(np.zeros, shapes, dtypes)


@pytest.mark.parametrize("count", EXAMPLES)
def test_samples_by_class(count):
    sound = packed({kind: np.zeros((3, 16, 16), np.uint8) for kind in "ab"})
    names = st.sampled_from(["a", "b", "c", "é", "a/b"])
    contents = st.dictionaries(names, arrays, max_size=3).map(packed) | damaged(sound)

    def check(folder, content):
        path = write(folder, {"samples.npz": content}) / "samples.npz"
        with clear_error():
            samples = load_samples(path, ("a", "b"))
            for kind in samples.classes:
                stretch(samples.only(kind).images)

    fuzz(count, check, contents)


@pytest.mark.parametrize("count", EXAMPLES)
def test_checkpoints(count, tmp_path, capfd):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    saver = Checkpoint(tmp_path)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, callbacks=[saver], verbose=0)
    state = dict(np.load(saver.path))
    before = model.get_weights()

    def check(folder, changes, content):
        newest = packed(state | changes) if changes else content
        write(folder, {"checkpoint.npz": newest, "previous.npz": content})
        with clear_error():
            epoch = Checkpoint(folder).restore(model)
            aside = not list(folder.glob("*.npz"))
            assert epoch or aside or "epoch" in changes, "a damaged file was not set aside"
        assert all(
            np.shape(a) == np.shape(b) for a, b in zip(before, model.get_weights(), strict=True)
        )

    changes = st.dictionaries(st.sampled_from([*state, "v9"]), arrays, max_size=3)
    fuzz(count, check, changes, damaged(saver.path.read_bytes()))


@pytest.mark.parametrize("count", EXAMPLES)
def test_models(count, films16, tmp_path):
    folder = save_generator(build_generator(16, width=2), tmp_path / "m", films16.only("covid"))
    sound = (folder / "generator.keras").read_bytes()

    def check(folder, content):
        with clear_error():
            load_model(write(folder, {"generator.keras": content}))

    fuzz(count, check, damaged(sound))


COMMANDS = ("run", "prepare", "audit", "train", "synthesise", "quality", "models", "x")
COMMANDS += ("compare", "reproduction")
OPTIONS = ["--size", "--seed", "--steps", "--count", "--profile", "--folds", "--encoder", "--data"]
OPTIONS += ["--cards", "--classifiers", "--out", "--width", "--fit", "--help", "-x", "--"]
OPTIONS += ["--screen", "--truncation", "--patients", "--authors", "--discriminator", "--further"]
OPTIONS += ["--gan-encoder", "--synthetic", "--first-seed", "--seeds"]
# No word names a collection: whatever else is right, the films are missing and nothing long begins.
VALUES = [word for word in WORDS if word not in ("\udc80", "/", "..")]  # no tour of the machine
VALUES += ["60", "16", "0", "hog", "nowhere", "~no-such-user", "smoke"]


@pytest.mark.parametrize("count", EXAMPLES)
def test_command_lines(count, capsys, monkeypatch):
    def check(folder, command, values):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("KERASGAN_RUNS", str(folder / "runs"))
        try:
            first = ["nowhere"] if command in ("compare", "reproduction") else []
            last = ["--data", "nowhere"] if command == "run" else []
            status = main([command, *first, *values, *last])
        except SystemExit as stop:
            status = stop.code
        text = capsys.readouterr()
        assert status in (0, 1, 2) and "Traceback" not in text.err
        if status == 1:
            assert text.err.startswith("kerasgan: ") and text.err.count("\n") == 1, text.err
        os.chdir("/")

    values = st.lists(st.sampled_from(VALUES) | st.sampled_from(OPTIONS), max_size=6)
    fuzz(count, check, st.sampled_from(COMMANDS), values)


@pytest.mark.parametrize("count", EXAMPLES)
def test_films_in_memory_are_stored_inside_their_folder(count):
    def check(folder, names, kinds, split):
        with clear_error():
            films = Films.from_arrays(
                np.zeros((2, 16, 16), np.uint8), [0, 1], kinds, split=split, filenames=names
            )
            save_films(films, folder / "in")
        outside = [path for path in folder.rglob("*.png") if folder / "in" not in path.parents]
        assert not outside

    pair = st.tuples(words, words)
    fuzz(count, check, pair.map(list), pair, words)
