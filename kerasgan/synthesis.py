"""Stored sets of images made from films: classic augmentation, and samples of generators."""

from pathlib import Path

import numpy as np
import pandas as pd

from kerasgan.films import Films, save_films, to_float, to_uint8
from kerasgan.runs import read_arrays


def classic_set(films, count, folder, seed=0, batch_size=256):
    """Stores `count` classically augmented images per class, the reference study's way.

    Image i of a class comes from its film i modulo the number of films, by a draw that is a
    function of (seed, class, i): a larger set begins with a smaller one.

    Args:
        films: The training `Films`; each image keeps its film's patient.
        count: Images per class.
        folder: Folder of the set; images already there are not written again.
        seed: Integer seed.
        batch_size: Images augmented at a time.

    Returns:
        The set as `Films`, split `train`.

    Raises:
        ValueError: If a class has no film.
    """
    from kerasgan.augment import ClassicAugmentation

    augment, images, patients = ClassicAugmentation(), [], []
    for label, name in enumerate(films.classes):
        own = films.only(name)
        if not len(own):
            raise ValueError(f"class {name} has no film to augment")
        source, made = np.arange(count) % len(own), []
        for start in range(0, count, batch_size):
            # Whole batches, then cut: the draws depend on the length of the batch.
            part = to_float(own.images[np.arange(start, start + batch_size) % len(own)])
            draw = (seed, label * 1_000_003 + start)
            made.append(to_uint8(augment(part, training=True, seed=draw).numpy()))
        images.append(np.concatenate(made)[:count])
        patients.extend(own.patients[source])
    return _stored(films, images, patients, count, folder, "classic")


def synthesise(generators, films, count, folder, seed=0):
    """Draws `count` images per class from generators and stores them as a collection.

    Args:
        generators: Dict from class name to generator model, one for each class of `films`.
        films: The training `Films` the generators belong to; their banner is passed on.
        count: Images per class.
        folder: Folder of the set; images already there are not written again.
        seed: Integer seed; each class draws from its own stream.

    Returns:
        The set as `Films`, split `train`.

    Raises:
        ValueError: If a class has no generator, or one of another size.
    """
    from kerasgan.gan import draw

    images = []
    for label, name in enumerate(films.classes):
        if name not in generators:
            raise ValueError(f"no generator for class {name}. Received: {sorted(generators)}")
        if generators[name].output_shape[1] != films.size:
            raise ValueError(
                f"the generator of {name} draws {generators[name].output_shape[1]} pixels, the "
                f"films have {films.size}: use one of the same size"
            )
        images.append(draw(generators[name], count, seed=seed * 1_000 + label))
    patients = [""] * (count * len(films.classes))
    return _stored(films, images, patients, count, folder, "synthetic")


def load_samples(path, classes, count=1000):
    """Reads synthetic images, such as those that a study published, or draws them.

    Args:
        path: An `.npz` file of one uint8 array (n, h, h) or (n, h, h, 1) per class; a folder with a
            folder of images per class; the folders of saved generators up to the class, such as
            `saved_models/best` for `best-covid` and its like; or one of these.
        classes: Class names wanted, in order; others are left out.
        count: Images drawn per class; stored ones are all taken, in their order.

    Returns:
        `Films` in memory, split `train`.

    Raises:
        ValueError: If a class is missing, or images are not of one size or dtype.
        OSError: If the file is missing or cannot be read.

    Example:
        >>> samples = load_samples("authors-synthetic-64.npz", train.classes)
    """
    from kerasgan.gan import draw
    from kerasgan.sources import load_films
    from kerasgan.store import load_model, models_called

    path = Path(path)
    models = models_called(path)
    if models.keys() >= set(classes):
        sets = {name: draw(load_model(models[name]), count, seed=1) for name in classes}
    elif path.suffix == ".npz":
        sets = read_arrays(path)
    elif path.is_dir() or not models:
        films = load_films(path, keep=False)
        sets = {name: films.only(name).images for name in films.classes}
    else:
        sets = models
    if missing := [name for name in classes if name not in sets]:
        raise ValueError(
            f"{path} lacks the classes {missing}; it has {sorted(sets)}. Ask for these alone, or "
            "give the path of all classes, such as FOLDER/best for FOLDER/best-*"
        )
    sets = {name: sets[name] for name in classes}
    sets = {name: x[..., None] if x.ndim == 3 else x for name, x in sets.items()}
    shapes = {name: (x.dtype.name, *x.shape[1:]) for name, x in sets.items()}
    if len(set(shapes.values())) > 1 or any(x.ndim != 4 or not len(x) for x in sets.values()):
        raise ValueError(
            f"{path}: each class needs images (n, h, h), n above 0, all of one size and dtype. "
            f"Received: {shapes}"
        )
    images = np.concatenate(list(sets.values()))
    labels = np.repeat(np.arange(len(classes)), [len(sets[name]) for name in classes])
    return Films.from_arrays(images, labels, classes, name=f"samples of {path}")


def draw_fresh(generator, films, count, label=None, seed=0, truncation=1.0):
    """Draws images of one class and leaves out those that come near a training film.

    Args:
        generator: Generator model, as for `kerasgan.draw`.
        films: The training `Films` of that class.
        count: Images wanted.
        label: The class, for a conditional generator.
        seed: Integer seed.
        truncation: As in `kerasgan.draw`.

    Returns:
        `(images, distances)`: uint8 (count, h, w, 1), and the DataFrame of
        `kerasgan.quality.memorization` for these, with `nearest` as the film's file name.

    Raises:
        ValueError: If the films are of fewer than 3 patients, or so many samples come near a film
            that four times `count` are not enough.
    """
    from kerasgan.gan import draw
    from kerasgan.quality import check_patients, memorization

    check_patients(films)
    images, tables = draw(generator, 4 * count, label, seed, truncation=truncation), []
    for part in np.split(images, 4):  # drawing is cheap, screening is not
        tables.append(memorization(part, films.images, patients=films.patients))
        found = pd.concat(tables, ignore_index=True)
        kept = np.flatnonzero(~found["flagged"])[:count]
        if len(kept) == count:
            found["nearest"] = films.index["filename"].to_numpy()[found["nearest"]]
            return images[kept], found.iloc[kept].reset_index(drop=True)
    raise ValueError(
        f"{found['flagged'].mean():.0%} of the samples of {films.classes} come nearer to a film of "
        f"{films.name} than fresh films do: the generator copies; draw fewer, or train another"
    )


def screen(samples, training, per_class=100):
    """Looks for samples that copy a training film.

    Args:
        samples: The synthetic `Films`.
        training: The training `Films`.
        per_class: Samples of each class looked at, the first ones; `None`: all.

    Returns:
        DataFrame `class, sample, nearest, distance, limit, flagged`: positions in `samples` and
        `training`, and the verdict of `kerasgan.quality.memorization`.

    Raises:
        ValueError: If the training films are of one size other than the samples', or lack a class.
    """
    from kerasgan.quality import memorization

    if missing := set(samples.classes) - set(training.classes):
        raise ValueError(f"{training.name} has no films of {sorted(missing)} to screen against")
    tables = []
    for label, name in enumerate(samples.classes):
        mine = np.flatnonzero(samples.labels == label)[:per_class]
        theirs = np.flatnonzero(training.labels == training.classes.index(name))
        table = memorization(
            samples.images[mine], training.images[theirs], patients=training.patients[theirs]
        )
        table["sample"], table["nearest"] = mine, theirs[table["nearest"].to_numpy()]
        tables.append(table.assign(**{"class": name}))
    columns = ["class", "sample", "nearest", "distance", "limit", "flagged"]
    return pd.concat(tables, ignore_index=True)[columns]


def _stored(films, images, patients, count, folder, kind):
    labels = np.repeat(np.arange(len(films.classes)), count)
    names = [f"{kind}-{i:05d}.png" for _ in films.classes for i in range(count)]
    made = Films.from_arrays(
        np.concatenate(images),
        labels,
        films.classes,
        patients=patients,
        split="train",
        name=f"{kind} images from {films.name}",
        filenames=names,
        note=films.note,
    )
    return save_films(made, folder)
