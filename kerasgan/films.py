"""Films: an index of images with class, split and patient, and the batches made from it."""

import functools
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kerasgan.reading import SUFFIXES, read_square
from kerasgan.runs import absolute, read_json, read_table, write_bytes, write_text

CLASSES = ("covid", "normal", "pneumonia_bac", "pneumonia_vir")
COLUMNS = ("path", "filename", "class", "split", "patient")
TABLES = ("index.csv", "manifest.csv")  # either names the films of a folder
MEMORY = 2**28  # bytes of pixels; films beyond are read from their files batch by batch


def to_float(images):
    """Converts uint8 images in [0, 255] to float32 in [-1, 1].

    Args:
        images: uint8 array of any shape.

    Returns:
        float32 array of the same shape.

    Raises:
        ValueError: If the images are of another dtype, such as floats that were converted already.
    """
    return check_uint8(images).astype(np.float32) / np.float32(127.5) - np.float32(1)


def check_uint8(images):
    """Returns images as an array; raises `ValueError` unless they are uint8."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        floats = np.issubdtype(images.dtype, np.floating)
        nan = " (with NaN)" if floats and np.isnan(images).any() else ""
        raise ValueError(
            "images must be uint8 in [0, 255]; floats in [-1, 1] become that by to_uint8. "
            f"Received: {images.dtype}{nan}"
        )
    return images


def to_uint8(images):
    """Converts float images in [-1, 1] to uint8 in [0, 255], rounded and clipped.

    Args:
        images: float array of any shape.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: If a value is NaN.
    """
    images = np.asarray(images)
    if np.isnan(images).any():
        raise ValueError("images hold NaN; the network that made them has diverged: train it again")
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Films:
    """Images of a collection with their class, split and patient; pixels are read when needed.

    Attributes:
        index: DataFrame `path, filename, class, split, patient`, one row per film. `path` is empty
            for films in memory, `patient` where it is unknown.
        classes: Class names; a class's label is its position.
        size: Side in pixels when all films are square and equal, else `None`: prepare them first.
        name: The collection's name.
        note: A banner that belongs wherever these films are shown, or empty.
        skipped: Pairs (file, reason) of files passed over.
    """

    index: pd.DataFrame
    classes: tuple
    size: int | None
    name: str
    note: str = ""
    skipped: tuple = ()
    _pixels: dict = field(default_factory=dict, repr=False)

    @classmethod
    def from_arrays(
        cls,
        images,
        labels,
        classes,
        patients=None,
        split="train",
        *,
        name="arrays",
        note="",
        filenames=None,
    ):
        """Makes films from arrays.

        Args:
            images: uint8 (n, h, h) or (n, h, h, 1).
            labels: int (n,), positions in `classes`.
            classes: Class names.
            patients: n patient ids, or `None` if unknown.
            split: One split name for all, or n of them.
            name: Name of the collection.
            note: A banner that belongs wherever the films are shown.
            filenames: n file names, or `None` for numbers.

        Returns:
            `Films` in memory.

        Raises:
            ValueError: If shapes, lengths, dtypes or labels do not fit.
        """
        images, labels = check_uint8(images), np.asarray(labels)
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 1:
            raise ValueError(f"images must be (n, h, h, 1). Received: shape {images.shape}")
        if len(images) != len(labels):
            raise ValueError(
                "images and labels must be of one length. "
                f"Received: {len(images)} and {len(labels)}"
            )
        whole = labels.dtype.kind in "iu"
        if len(labels) and not (whole and 0 <= labels.min() <= labels.max() < len(classes)):
            raise ValueError(
                f"labels must be positions in {tuple(classes)}, integers. Received: "
                f"{labels.dtype} {np.unique(labels)[:5]}"
            )
        n = len(images)
        numbered = (f"film-{i:05d}.png" for i in range(n))
        names = list(numbered if filenames is None else filenames)
        patients = [""] * n if patients is None else patients
        patients = ["" if pd.isna(patient) else str(patient) for patient in patients]
        splits = [split] * n if isinstance(split, str) else list(split)
        kinds = [classes[label] for label in labels]
        columns = ([""] * n, names, kinds, splits, patients)
        if {len(column) for column in columns} != {n}:
            raise ValueError("patients, splits and filenames must be as many as the images")
        index = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
        films = cls(index, tuple(classes), images.shape[1], name, note)
        films._pixels["images"] = images
        return films

    @staticmethod
    def concat(parts):
        """Joins films of the same classes and size, in order.

        Args:
            parts: Sequence of `Films`, at least one.

        Returns:
            `Films` under the first's name and note.

        Raises:
            ValueError: If classes or sizes differ.
        """
        parts = list(parts)
        first = parts[0]
        for part in parts[1:]:
            if (part.classes, part.size) != (first.classes, first.size):
                raise ValueError(
                    "films to join must have the same classes and size. Received: "
                    f"{first.classes} at {first.size} and {part.classes} at {part.size}"
                )
        index = pd.concat([part.index for part in parts], ignore_index=True)
        joined = replace(first, index=index, _pixels={})
        joined._pixels["images"] = np.concatenate([part.images for part in parts])
        return joined

    def __len__(self):
        return len(self.index)

    @property
    def images(self):
        """The pixels, uint8 (n, size, size, 1), read once and kept."""
        if "images" not in self._pixels:
            if self.size is None:
                raise ValueError(
                    f"the films of {self.name} differ in size: prepare them, or load with size=64"
                )
            self._pixels["images"] = self._read(range(len(self)))
        return self._pixels["images"]

    def _read(self, positions):
        paths = self.index["path"].to_numpy()[list(positions)]

        def read(path):
            try:
                return read_square(path, self.size)[0]
            except ValueError as error:
                raise ValueError(
                    f"{path}: {error}; remove it, or prepare the films: that passes it over"
                ) from None

        images = list(_readers().map(read, paths))
        return np.array(images, np.uint8).reshape(-1, self.size, self.size, 1)

    @property
    def labels(self):
        """The labels, int32 (n,), positions in `classes`."""
        codes = pd.Categorical(self.index["class"], categories=self.classes).codes
        return codes.astype(np.int32)

    @property
    def patients(self):
        """The patients, (n,) strings; a film of an unknown patient is a patient by itself."""
        index = self.index  # train/ and test/ folders may number their films alike
        own = "film:" + index["split"] + "/" + index["class"] + "/" + index["filename"]
        known = index["patient"] != ""
        return index["patient"].where(known, own).to_numpy(object)

    @property
    def in_memory(self):
        """Whether all pixels are in memory, or few enough to be kept there: up to `MEMORY`."""
        return "images" in self._pixels or len(self) * (self.size or 0) ** 2 <= MEMORY

    def one_by_one(self):
        """Yields the films' pixels, uint8 (h, w, 1), however many there are."""
        if self.in_memory:
            return iter(self.images)
        chunks = (range(i, min(i + 256, len(self))) for i in range(0, len(self), 256))
        return (image for chunk in chunks for image in self._read(chunk))

    @property
    def hash(self):
        """sha256 over class, file name and pixels of every film, whatever their order."""
        if "hash" not in self._pixels:
            rows = zip(self.index["class"], self.index["filename"], self.digests, strict=True)
            lines = sorted(f"{kind}/{name} {digest}" for kind, name, digest in rows)
            self._pixels["hash"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._pixels["hash"]

    @property
    def digests(self):
        """sha256 of each film's pixels, (n,) strings."""
        if "digests" not in self._pixels:
            digests = [hashlib.sha256(x.tobytes()).hexdigest() for x in self.one_by_one()]
            self._pixels["digests"] = np.array(digests, dtype=object)
        return self._pixels["digests"]

    def take(self, positions):
        """Returns the films at these positions, in this order.

        Args:
            positions: int positions or a boolean mask over the films.
        """
        positions = np.asarray(positions)
        positions = np.flatnonzero(positions) if positions.dtype == bool else positions.astype(int)
        part = replace(self, index=self.index.iloc[positions].reset_index(drop=True), _pixels={})
        for name in {"images", "digests"} & set(self._pixels):
            part._pixels[name] = self._pixels[name][positions]
        return part

    def split(self, name):
        """Returns the films of a split, none where there are none.

        Args:
            name: `"train"`, `"test"`, `"val"`, or another split of the index.

        Raises:
            ValueError: If there is no such split.
        """
        if name not in (known := {"train", "test", "val", *self.index["split"]}):
            raise ValueError(f"splits are {sorted(known - {''})}. Received: {name!r}")
        return self.take((self.index["split"] == name).to_numpy())

    def train_test(self):
        """Returns the training and the test films; who is on both sides is in test alone.

        So is a picture that is on both sides, pixel by pixel, whatever names it goes by; films of
        several sizes are compared by their patients only.

        Returns:
            `(train, test)`, two `Films`; without a test split all of `train`, and none.
        """
        train, test = self.split("train"), self.split("test")
        train = train.without_patients(set(test.patients))
        if self.size is not None and len(test):
            train = train.take(~pd.Series(train.digests).isin(test.digests).to_numpy())
        return train, test

    def only(self, *classes):
        """Returns the films of these classes alone, relabelled.

        Args:
            *classes: Names of classes.

        Raises:
            ValueError: If a class is unknown.
        """
        if unknown := set(classes) - set(self.classes):
            raise ValueError(f"classes are {self.classes}. Received: {sorted(unknown)}")
        kept = tuple(name for name in self.classes if name in classes)
        return replace(self.take(self.index["class"].isin(classes).to_numpy()), classes=kept)

    def first(self, count):
        """Returns the first `count` films of each class, or all where there are fewer."""
        return self.take((self.index.groupby("class").cumcount() < count).to_numpy())

    def repeated(self, count):
        """Returns the films of each class, repeated in order up to `count` where there are fewer.

        Args:
            count: Films a class, at least.

        Raises:
            ValueError: If a class has no film.
        """
        own = [np.flatnonzero(self.labels == label) for label in range(len(self.classes))]
        if empty := [name for name, x in zip(self.classes, own, strict=True) if not len(x)]:
            raise ValueError(f"{self.name} has no films of {empty} to repeat")
        return self.take(np.concatenate([np.resize(x, max(count, len(x))) for x in own]))

    def without_patients(self, patients):
        """Returns the films of all other patients.

        Args:
            patients: Collection of patient ids.
        """
        return self.take(~np.isin(self.patients.astype(str), [str(p) for p in patients]))

    def counts(self):
        """Counts films and patients of each class and split, a DataFrame."""
        frame = self.index.assign(patient=self.patients)
        films = frame.groupby(["class", "split"]).agg(
            films=("filename", "size"), patients=("patient", "nunique")
        )
        return films.reset_index()

    def folds(self, n_splits=5, repeats=1, seed=0):
        """Splits the films by patient, stratified by class, again and again.

        Args:
            n_splits: Folds a repeat.
            repeats: Repeats, each shuffled anew.
            seed: Integer seed.

        Yields:
            Pairs (train, test) of `Films`, `n_splits * repeats` of them.

        Raises:
            ValueError: If a class has fewer patients than folds.
        """
        for train, test in self.fold_positions(n_splits, repeats, seed):
            yield self.take(train), self.take(test)

    def fold_positions(self, n_splits=5, repeats=1, seed=0):
        """Yields the folds of `folds` as pairs of positions, int arrays for `take`.

        Args:
            n_splits: As in `folds`.
            repeats: As in `folds`.
            seed: As in `folds`.

        Raises:
            ValueError: As `folds`.
        """
        from sklearn.model_selection import StratifiedGroupKFold

        people = pd.Series(self.patients).groupby(self.labels).nunique()
        if people.min() < n_splits:
            counts = {self.classes[label]: int(count) for label, count in people.items()}
            raise ValueError(
                f"{n_splits} folds need films of as many patients in every class; ask for fewer "
                f"folds or add films. Received: patients {counts}"
            )
        for repeat in range(repeats):
            splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed + repeat)
            yield from splitter.split(self.index, self.labels, self.patients)

    def batches(self, batch_size, seed=0, first_epoch=0, labels=False, cache=True):
        """Returns shuffled batches as a `tf.data.Dataset`; one iteration is one epoch.

        The order is a function of (seed, epoch) alone: the k-th iteration over the dataset is epoch
        `first_epoch + k`, so a restored training sees what it would have seen.

        Args:
            batch_size: Films a batch; the last of an epoch may be smaller.
            seed: Integer seed of the order.
            first_epoch: Number of the first epoch.
            labels: `True` for pairs (images, labels).
            cache: `False` reads files batch by batch; films in memory already stay there.

        Returns:
            Dataset of float32 (b, size, size, 1) in [-1, 1][, int32 (b,)].

        Raises:
            ValueError: If there are no films, they differ in size, or `batch_size` is below 1.
        """
        import tensorflow as tf

        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")
        n = len(self)
        if not n:
            raise ValueError(f"{self.name} has no films to make batches of")
        steps, kinds = -(-n // batch_size), tf.constant(self.labels)
        # Films of several sizes have no images, and say so.
        cache = cache or "images" in self._pixels or self.size is None
        pixels = tf.constant(self.images) if cache else None

        def load(places):
            if cache:
                images = tf.gather(pixels, places)
            else:
                images = tf.numpy_function(self._read, [places], tf.uint8)
                images = tf.ensure_shape(images, (None, self.size, self.size, 1))
            images = tf.cast(images, tf.float32) / 127.5 - 1
            return (images, tf.gather(kinds, places)) if labels else images

        def epoch_steps(epoch):
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            places = tf.argsort(tf.random.stateless_uniform((n,), key))
            return tf.data.Dataset.from_tensor_slices(places).batch(batch_size)

        order = epoch_numbers(first_epoch).flat_map(epoch_steps)
        order = order.apply(tf.data.experimental.assert_cardinality(steps))
        return order.map(load, num_parallel_calls=None if cache else 2).prefetch(2)


@functools.cache
def _readers():
    """Threads that read films, the same for all batches: to start them takes as long as a batch."""
    return ThreadPoolExecutor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_readers.cache_clear)  # a fork has no threads


def epoch_numbers(first_epoch=0):
    """Returns a dataset of one number: its k-th iteration yields `first_epoch + k`.

    Args:
        first_epoch: The first number.

    Returns:
        `tf.data.Dataset` of one int64 scalar.
    """
    import tensorflow as tf

    counter = itertools.count(first_epoch)

    def number(_):
        count = tf.numpy_function(lambda: np.int64(next(counter)), [], tf.int64)
        return tf.ensure_shape(count, ())

    # Not `from_generator`: with Python 3.11 TensorFlow 2.21 then makes malloc give memory back
    # at every free, and a training spends up to half of its time in page faults.
    numbers = tf.data.Dataset.range(1).map(number)
    options = tf.data.Options()
    # There is nothing to tune, and the tuner holds up the end of an epoch: it is told to stop, but
    # at times sleeps on (TensorFlow 2.21), for as long as it had run.
    options.autotune.enabled = False
    # Several workers share the films of a batch, as there are no files to share among them.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return numbers.with_options(options)


def check_size(size, most=256):
    """Raises `ValueError` unless `size` is a power of two from 16 to `most`."""
    if not isinstance(size, int | np.integer) or not 16 <= size <= most or size & (size - 1):
        raise ValueError(f"size must be a power of two from 16 to {most}. Received: size={size!r}")


def inner_path(*parts):
    """Joins parts to a relative path that stays inside whatever folder it is put under.

    Args:
        *parts: Names of folders, and last the file's, which may be in folders of its own (`a/b`).

    Returns:
        The relative path; empty parts are left out.

    Raises:
        ValueError: If it would lead outside, on any system.
    """
    names = [part for part in parts[:-1] if part] + [part for part in parts[-1].split("/") if part]
    if parts[-1].startswith("/") or any(
        name in (".", "..") or re.search(r"[\\/\0]|^[A-Za-z]:", name) for name in names
    ):
        raise ValueError(f"an index may not point outside its folder. Received: {[*parts]}")
    return Path(*names)


def stored_paths(films, folder):
    """Returns where each film belongs in a stored collection: `split/class/name.png`.

    Args:
        films: The `Films`.
        folder: The collection's folder.

    Returns:
        List of paths; films whose names differ only in their ending get different ones.

    Raises:
        ValueError: If a film has no name, one that leads outside the folder, or another's.
    """
    index, paths = films.index, []
    if (index[["class", "filename"]] == "").any(axis=None):
        raise ValueError("a film without a name or a class cannot be stored; name it")
    stems = [_flat(name.rpartition(".")[0] or name) for name in index["filename"]]
    keys = list(zip(index["split"], index["class"], stems, strict=True))
    twins = {key for key, count in Counter(keys).items() if count > 1}
    for key, name in zip(keys, index["filename"], strict=True):
        stem = _flat(name).replace(".", "-") if key in twins else key[2]
        paths.append(Path(folder) / inner_path(key[0], key[1], f"{stem}.png"))
    check_distinct(paths)
    return paths


UNFINISHED = "unfinished.json"  # there while a set is filled: the files of the one it replaces


def _flat(name):
    return name.replace("/", "-")


def check_distinct(paths):
    """Raises `ValueError` if a path is there twice."""
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"films need names of their own. Received twice: {twice[0]}")


def write_index(films, folder, **facts):
    """Writes `index.csv` and `about.json` of a stored collection, last of all its files.

    Args:
        films: The stored `Films`.
        folder: The collection's folder.
        **facts: Further entries of `about.json`.
    """
    write_about(films, folder, **facts)
    table = films.index[["split", "class", "filename", "patient"]]
    write_text(Path(folder) / "index.csv", table.to_csv(index=False))


def write_about(films, folder, **facts):
    """Writes `about.json` of a stored collection.

    Args:
        films: The `Films`, of the size they are stored in.
        folder: The collection's folder.
        **facts: Further entries.
    """
    about = {"name": films.name, "note": films.note, "size": films.size, **facts}
    about["skipped"] = list(films.skipped)
    write_text(Path(folder) / "about.json", json.dumps(about, indent=2) + "\n")


def save_films(films, folder):
    """Writes films as PNG files into class folders, with `index.csv` and `about.json`.

    Args:
        films: `Films` of one size.
        folder: The folder, made if missing. A set of the same name stored there is replaced.

    Returns:
        The stored `Films`.

    Raises:
        ValueError: If the folder holds another set, prepared films, or films of its own.
        OSError: If the folder cannot be written; no file is left half-written.
    """
    folder = absolute(folder)
    paths, before = stored_paths(films, folder), _stored_before(films, folder)
    changed = {}
    for path, image in zip(paths, films.images, strict=True):
        content = cv2.imencode(".png", image)[1].tobytes()
        if path.exists():
            if path.read_bytes() == content:
                continue
            if path not in before:
                raise ValueError(f"{path} is another film: choose another folder, or delete it")
        changed[path] = content
    if changed or before - set(paths):  # from here on it is neither the old set nor the new
        mark_unfinished(folder, before | changed.keys())
    for path, content in changed.items():
        write_bytes(path, content)
    index = films.index.assign(path=[str(path) for path in paths])
    index["filename"] = [path.name for path in paths]
    # But for the hash, which covers file names.
    pixels = {name: value for name, value in films._pixels.items() if name != "hash"}
    stored = replace(films, index=index, _pixels=pixels)
    write_index(stored, folder)
    for path in before - set(paths):
        path.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return stored


def refuse_foreign(folder):
    """Raises `ValueError` if a folder holds films, or a table of films, of the user's own."""
    if any((folder / name).is_file() for name in ("about.json", UNFINISHED)):
        return  # a stored set, or one that is being filled
    tables = (folder / name for name in TABLES)
    near = (path for depth in ("*/*", "*/*/*") for path in folder.glob(depth))
    images = (path for path in near if path.suffix.lower() in SUFFIXES)
    if found := next((path for path in itertools.chain(tables, images) if path.is_file()), None):
        raise ValueError(f"{folder} holds {found.relative_to(folder)}: choose another folder")


def mark_unfinished(folder, before=()):
    """Has the folder refused as a source until its set is whole and the mark is taken away.

    Args:
        folder: Folder of the set.
        before: The files of the set it replaces, and those that are being written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in before)
    write_text(folder / UNFINISHED, json.dumps({"files": names}))


def replaced_files(folder, remedy):
    """The names that `mark_unfinished` noted; raises `ValueError`, with a remedy, if damaged."""
    names = read_json(folder / UNFINISHED, remedy).get("files", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / UNFINISHED} is damaged: {remedy}")
    return names


def _stored_before(films, folder):
    """The files of sets of this name, whole or not, in the folder; refuses any other set."""
    path, remedy = folder / "about.json", f"choose another folder, or delete {folder}"
    refuse_foreign(folder)
    if path.is_file():
        about = read_json(path, remedy)
        if about.get("name") != films.name or "sources" in about:
            raise ValueError(f"{folder} holds the films of {about.get('name')}: {remedy}")
    if (folder / UNFINISHED).is_file():  # stopped before it was whole
        return {folder / inner_path(name) for name in replaced_files(folder, remedy)}
    if not (folder / "index.csv").is_file():
        return set()
    index = read_table(folder / "index.csv", remedy)
    rows = index.reindex(columns=["split", "class", "filename"]).fillna("").astype(str)
    return {folder / inner_path(*row) for row in rows.itertuples(index=False)}
