"""Saved models: a folder with a `.keras` file, `card.json` and, of a generator, `samples.png`."""

import glob
import io
import json
import os
import platform
import zipfile
from datetime import date
from pathlib import Path

import numpy as np

from kerasgan.runs import MAX_BYTES, check_archive, read_json, short_hash, write_bytes, write_text

_INTENDED_USE = (
    "Research on data augmentation and teaching. Not for diagnosis, and not a source of medical "
    "images for any clinical purpose."
)
_LIMITS = (
    "Trained on very few films of a public collection. In covid-xray-64 and covid-xray-original "
    "the covid films are of adults from publications and all others of children of one hospital: "
    "the classes differ by age and source as well as by disease."
)
_LICENCE = (
    "Model: MIT. Training films: see the collection's own terms (covid-chestxray-dataset: per "
    "image; Kermany et al. 2018: CC BY 4.0)."
)
_OTHER_LIMITS = (
    "Trained on few films. Classes may differ by source, age or framing as well as by disease: "
    "`python -m kerasgan audit` looks for such differences."
)
_OTHER_LICENCE = "Model and training films: as the owner of the films says."


def save_generator(generator, folder, trained_on, trained_with=None, precision=None, **facts):
    """Saves a generator with its card and a grid of samples, replacing what was there.

    Samples that `kerasgan.quality.memorization` takes for copies of a film are not shown.

    Args:
        generator: A `GAN`, whose averaged generator is saved, or a generator model.
        folder: Folder `<kind>-<class>`, made if missing.
        trained_on: The `Films` of what it draws that it was trained on; name, hash and codes of
            the patients go on the card.
        trained_with: The `Films` of all classes, if it is one class of a conditional generator:
            the card then names the patients of all.
        precision: `"float16"` or `"bfloat16"`, to which the trained weights are rounded for a file
            half the size, or two fifths; a pixel then changes by a grey level, or a few, at most.
        **facts: Further entries of the card, such as `seed`, `epochs`, `scores`.

    Returns:
        The folder's path.

    Raises:
        OSError: If the folder cannot be written; nothing half-written is left.
        ValueError: If the precision is another.
    """
    from kerasgan.gan import draw, trainable

    generator = trainable(generator)
    if precision:
        generator, facts = _rounded(generator, precision), {"weights": precision, **facts}
    latent, conditional = generator.inputs[0].shape[-1], len(generator.inputs) > 1
    if conditional:
        kinds = [(trained_on.only(name), label) for label, name in enumerate(trained_on.classes)]
    else:
        kinds = [(trained_on, None)]
    count = 32 if len(kinds) == 1 else 8
    shown = [_not_copies(draw(generator, 2 * count, label), own)[:count] for own, label in kinds]
    images = np.concatenate(shown)
    facts = {"latent": latent, "conditional": conditional, **facts}
    if trained_with is not None:
        facts["trained_with"] = list(trained_with.classes)
    facts["samples"] = "samples.png" if len(images) else "none: all drawn were near copies"
    return _save(generator, "generator", folder, trained_on, facts, images, trained_with)


def _rounded(model, precision):
    import tensorflow as tf

    from kerasgan.networks import copied

    if precision not in ("float16", "bfloat16"):
        raise ValueError(f"precision is float16 or bfloat16. Received: precision={precision!r}")
    copy = copied(model)
    for variable in copy.trainable_variables:
        variable.assign(tf.cast(tf.cast(variable.value, precision), variable.dtype))
    return copy


def _not_copies(images, films):
    from kerasgan.quality import memorization

    if len(set(films.patients)) < 2:
        return images  # one patient's films alone set no distance at which a copy begins
    return images[~memorization(images, films.images, patients=films.patients)["flagged"]]


def save_classifier(classifier, folder, trained_on, role="classifier", **facts):
    """Saves a classifier, or an encoder made of one, with its card, replacing what was there.

    Args:
        classifier: Model float32 (n, h, w, 1) in [-1, 1] -> logits (n, classes), or features.
        folder: Folder `classifier-<arm>`, made if missing.
        trained_on: The real `Films` it was trained on.
        role: `"classifier"` or `"encoder"`, the name of the file.
        **facts: Further entries of the card, such as `seed`, `arm`, `scores`.

    Returns:
        The folder's path.

    Raises:
        OSError: If the folder cannot be written; nothing half-written is left.
    """
    return _save(classifier, role, folder, trained_on, facts)


def add_scores(folder, table):
    """Puts scores on the card of a saved model.

    Args:
        folder: Folder of the model.
        table: DataFrame of the model's scores, of `kerasgan.quality.compare_sets`. A metric's name
            stands for the first encoder's score, `"kid, <encoder>"` for another's.

    Raises:
        FileNotFoundError: If there is no card.
    """
    card = read_card(folder)
    columns = ["metric", "value", "low", "high", "floor", "authors", "reference_set", "encoder"]
    rows = json.loads(table[columns].round(4).to_json(orient="records"))
    card["scores"], first = {}, dict(reversed([(row["metric"], row["encoder"]) for row in rows]))
    for row in rows:
        metric, encoder = row.pop("metric"), row["encoder"]
        name = metric if encoder == first[metric] else f"{metric}, {encoder}"
        card["scores"][name] = row
    write_text(Path(folder) / "card.json", json.dumps(card, indent=2) + "\n")


def _save(model, role, folder, trained_on, facts, images=None, trained_with=None):
    from kerasgan.sources import COLLECTIONS

    folder, seen = Path(folder), trained_on if trained_with is None else trained_with
    public = trained_on.name in COLLECTIONS
    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "role": role,
        "name": folder.name,
        "classes": list(trained_on.classes),
        "size": int((model.output_shape if role == "generator" else model.input_shape)[1]),
        "pixel_range": [-1, 1],
        "parameters": model.count_params(),
        "data": {
            "name": trained_on.name,
            "note": trained_on.note,
            "films": len(trained_on),
            "hash": trained_on.hash,
            "patients": sorted(map(_code, set(seen.patients))),
            # Should these films' patients become known, or their split be made anew.
            "unknown": sorted(set(_codes_by_pixels(seen.take(seen.index["patient"] == "")))),
        },
        **facts,
        "versions": _versions(),
        "date": date.today().isoformat(),
        "licence": _LICENCE if public else _OTHER_LICENCE,
        "intended_use": _INTENDED_USE,
        "limits": _LIMITS if public else _OTHER_LIMITS,
    }
    new = folder / f"new-{role}.keras"
    write_model(model, new)
    (folder / "card.json").unlink(missing_ok=True)  # of a model before, it must not stand for this
    os.replace(new, folder / f"{role}.keras")
    if images is not None and len(images):
        write_bytes(folder / "samples.png", _png_grid(images))
    else:
        (folder / "samples.png").unlink(missing_ok=True)  # of a model saved there before
    write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")
    return folder


def write_model(model, path):
    """Writes a `.keras` file, compressed, whole or not at all.

    Each array is compressed by itself, its bytes sorted by weight: rounded weights then take little
    room, and so do, in a git repository, those that two models share.

    Args:
        model: The model.
        path: The file's path; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain, partial = (path.with_name(f".{path.stem}.{name}.keras") for name in ("plain", "partial"))
    try:
        model.save(plain)
        packed = zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(plain) as stored, packed:
            for name in stored.namelist():
                content = stored.read(name)
                content = _compressed(content) if name.endswith(".h5") else content
                packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        os.replace(partial, path)
    finally:
        for leftover in (plain, partial):
            leftover.unlink(missing_ok=True)


def _compressed(content):
    """An HDF5 file, as bytes, with its arrays compressed."""
    import h5py

    packed = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as source, h5py.File(packed, "w") as target:

        def put(name, item):
            if isinstance(item, h5py.Group):
                new = target.require_group(name)
            else:
                options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                options = {**options, "chunks": item.shape} if item.size > 64 else {}
                new = target.create_dataset(name, data=item[()], **options)
            new.attrs.update(item.attrs)

        target.attrs.update(source.attrs)
        source.visititems(put)
    return packed.getvalue()


def _versions():
    import keras
    import tensorflow

    import kerasgan

    versions = {"python": platform.python_version(), "kerasgan": kerasgan.__version__}
    return {**versions, "tensorflow": tensorflow.__version__, "keras": keras.__version__}


def _png_grid(images, columns=8):
    import cv2

    images = [*images, *[np.full_like(images[0], 255)] * (-len(images) % columns)]
    rows = [np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)]
    return cv2.imencode(".png", np.vstack(rows))[1].tobytes()


def load_model(folder, role="generator"):
    """Loads a saved model in Keras' safe mode: no code of the file is run.

    Args:
        folder: Folder of the model, or the `.keras` file itself.
        role: `"generator"` or `"classifier"`.

    Returns:
        The Keras model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds custom objects, or a model of another role.
    """
    path = Path(folder)
    path = path if path.suffix == ".keras" else path / f"{role}.keras"
    model = load_safely(path, role)
    found = _role(model)
    if found != role:
        raise ValueError(f"{path} is no {role}. Received: a model {found or 'of another kind'}")
    return model


def load_safely(path, role="model"):
    """Loads a `.keras` file of Keras' own layers, after a look at what it asks for.

    Older versions of Keras imported whatever module a file named, safe mode or not, and some of
    Keras' own layers open files: so the list of layers is read first, and refused or not, here.

    Args:
        path: The `.keras` file.
        role: What it should be, for the messages.

    Returns:
        The Keras model, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds custom objects or layers that could run code.
    """
    import keras

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no {role} at {path}; `python -m kerasgan models` lists the saved ones"
        )
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            _check_weights(archive.read("model.weights.h5"))
        config.pop("compile_config", None)  # not loaded, and may be of a package; its parts' are
        foreign = sorted(set(_foreign(config)))
    except Exception as error:  # zipfile and zlib raise many kinds for damaged files
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is damaged or not a .keras file ({reason}); restore it or train it again"
        ) from None
    if foreign:
        raise ValueError(
            f"{path} is refused: it holds {', '.join(foreign[:3])}, not Keras' own plain layers, "
            "which could run code or read files; build it of plain layers and save it again"
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for a file it cannot or will not read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be loaded in safe mode: it is damaged, or of another version. Keras "
            f"says: {reason}"
        ) from error


def _check_weights(content):
    """Refuses an HDF5 file of links, of arrays kept elsewhere, or beyond `MAX_BYTES` unpacked."""
    import h5py

    def arrays(group):
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"its weights link to another file or place, {name}")
            part = group[name]
            yield from arrays(part) if isinstance(part, h5py.Group) else [part]

    total = 0
    with h5py.File(io.BytesIO(content)) as file:
        for part in arrays(file):
            if part.external or part.is_virtual:
                raise ValueError(f"its weights {part.name} are in another file")
            total += part.size * part.dtype.itemsize
            if total > max(MAX_BYTES, len(content)):
                raise ValueError(f"its weights unpack to more than {MAX_BYTES:,} bytes")


_MODULES = ("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints")
_PARTS = {
    ("keras", "DTypePolicy"),
    ("keras", "Sequential"),
    ("keras", "Functional"),
    ("keras.models", "Functional"),
    ("keras.models", "Sequential"),
    ("keras.src.models.functional", "Functional"),
    ("keras.src.models.sequential", "Sequential"),
    (None, "__keras_tensor__"),
}
_NOT_PLAIN = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_NOT_PLAIN += ("StringLookup", "IntegerLookup", "TextVectorization")


def _foreign(config):
    """Yields the objects of a model's configuration that are not Keras' own plain ones."""
    if isinstance(config, list):
        for part in config:
            yield from _foreign(part)
    if not isinstance(config, dict):
        return
    if "class_name" in config:
        module, name = config.get("module"), config["class_name"]
        plain = module in _MODULES and name not in _NOT_PLAIN
        if not plain and (module, name) not in _PARTS:
            yield f"{module}.{name}" if module else str(name)
    for part in config.values():
        yield from _foreign(part)


def _role(model):
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    output = model.output_shape
    if isinstance(output, tuple) and len(output) == 4 and len(shapes[0]) == 2:
        return "generator"
    if isinstance(output, tuple) and len(output) == 2 and len(shapes[0]) == 4:
        return "classifier"
    return None


def read_card(folder):
    """Reads the card of a saved model.

    Args:
        folder: Folder of the model.

    Returns:
        The card, a dict.

    Raises:
        FileNotFoundError: If there is no card.
        ValueError: If it is not a JSON object with `role`, `name` and `data`, and, if it names
            `classes`, a list of names.
    """
    path = Path(folder) / "card.json"
    if not path.is_file():
        raise FileNotFoundError(f"no card at {path}; a saved model is a folder with a card.json")
    card = read_json(path, "restore it or save the model again")
    data, classes = card.get("data"), card.get("classes", [])
    texts = [card.get("role"), card.get("name"), *(classes if isinstance(classes, list) else [0])]
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} is no model card: it needs role, name, data and classes")
    return card


def models_called(path):
    """Returns the saved models `<path>-<class>`, as of `saved_models/best`: class to folder.

    The folder of one saved model of one class is that class's.
    """
    path = Path(path)
    if (path / "card.json").is_file():
        classes = read_card(path).get("classes", [])
        return {classes[0]: path} if len(classes) == 1 else {}
    cards = sorted(path.parent.glob(f"{glob.escape(path.name)}-*/card.json"))
    return {card.parent.name[len(path.name) + 1 :]: card.parent for card in cards}


def list_models(folder="saved_models"):
    """Lists the saved models of a folder.

    Args:
        folder: Folder of model folders.

    Returns:
        A DataFrame `name, role, classes, size, parameters, data, films, megabytes`, one row per
        card; models whose card is damaged show the reason under `data`.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of models at {folder.resolve()}")
    columns = ["name", "role", "classes", "size", "parameters", "data", "films", "megabytes"]
    rows = []
    for path in sorted(folder.glob("*/card.json")):
        try:
            card = read_card(path.parent)
        except ValueError as error:
            rows.append({"name": path.parent.name, "data": str(error)})
            continue
        row = {name: card.get(name) for name in ("role", "size", "parameters")}
        row |= {"classes": ", ".join(card.get("classes", [])), "data": card["data"].get("name")}
        row |= {"name": path.parent.name, "films": card["data"].get("films")}
        row["megabytes"] = round(sum(f.stat().st_size for f in path.parent.iterdir()) / 1e6, 1)
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def _code(patient):
    """A patient's code on a card that is shared: file names and ids may tell who it is."""
    return short_hash(str(patient))


def _codes_by_pixels(films):
    """Codes of films whose patients are not known, `short_hash` of their pixels, in order."""
    return [digest[:16] for digest in films.digests]


def shared_patients(card, films):
    """Returns the patients of films that a saved model was trained on.

    Args:
        card: Card of the model, with codes of its patients, and of those films, by their pixels,
            whose patients were not known.
        films: The `Films`.

    Returns:
        Sorted list of patients.

    Raises:
        ValueError: If the card's list of patients is damaged.
    """
    known, unknown = (card["data"].get(name, []) for name in ("patients", "unknown"))
    both = [known, unknown]
    if not all(isinstance(x, list) and all(isinstance(code, str) for code in x) for x in both):
        raise ValueError(f"the card of {card['name']} has no list of patients: save the model anew")
    known, patients = set(known), films.patients.astype(str)
    found = {patient for patient in set(patients) if _code(patient) in known}
    if unknown:
        seen = np.isin(_codes_by_pixels(films), unknown)
        found |= {*patients[seen]}
    return sorted(found)


def check_trained_on(card, films, held_out=None):
    """Refuses a generator in a comparison whose films it does not belong to.

    Args:
        card: Card of the generator.
        films: The training `Films` of the comparison, of the generator's classes.
        held_out: The test `Films`, or `None`; no patient of theirs may be among the generator's.

    Raises:
        ValueError: If the hashes differ, or the generator saw a patient of the test films.
    """
    if held_out is not None and (seen := shared_patients(card, held_out)):
        raise ValueError(
            f"generator {card['name']} was trained on patients of the test films: "
            f"{', '.join(seen[:5])}; train it on the training films alone, or, where a picture is "
            "in both splits (the audit names it), take it out of one and train anew"
        )
    data = card["data"]
    if data.get("hash") != films.hash:
        raise ValueError(
            f"generator {card['name']} was trained on other films ({data.get('name')}, "
            f"{data.get('films')} films) than this comparison's ({films.name}, {len(films)} "
            "films); train one on these"
        )
