"""How good generated images are, beside real ones: functions of arrays, on features or on images.

Throughout: features are floats (n, d), one row an image; images are uint8 (n, h, w, 1); `patients`
names the patient of each real film, (n,), `""` or None where unknown; `seed` fixes every random
choice; `low` and `high` end a 95 % interval. Wrong shapes and sizes raise ValueError.
"""

import socket
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn import metrics
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.svm import SVC

from kerasgan.scores import auc, bootstrap_interval, group_positions, wilson_interval

DOMAIN_ENCODER = Path(__file__).parents[1] / "saved_models" / "encoder" / "encoder.keras"
LEAST = 12  # images of a set, for its scores
SAME = 0.1  # distance within which two films are one: a correlation of 0.995, as in an audit
_RANGES = {**dict.fromkeys(("precision", "recall", "coverage"), (0, 1)), "density": (0, np.inf)}
IMAGENET = {  # architecture: (its module in keras.applications, side of its images)
    "InceptionV3": ("inception_v3", 299),
    "MobileNetV2": ("mobilenet_v2", 224),
    "DenseNet121": ("densenet", 224),
    "EfficientNetB0": ("efficientnet", 224),
    "ResNet50": ("resnet", 224),
}


class Encoder:
    """Turns images into features, under a `name` that goes into every table.

    Args:
        name: what the tables call it.
        function: from a batch of images to its features.

    Example:
        >>> features = best_encoder()(films.images)
    """

    def __init__(self, name, function):
        self.name, self._function = name, function

    def __call__(self, images):
        """Encodes images, 64 at a time so that memory stays small."""
        images = _checked(images)
        batches = [self._function(images[i : i + 64]) for i in range(0, len(images), 64)]
        return np.concatenate(batches).reshape(len(images), -1).astype(float)

    @classmethod
    def hog(cls):
        """Histograms of oriented gradients: no weights, no download."""
        return cls("HOG", hog_features)

    @classmethod
    def keras(cls, path, name=None):
        """A saved `.keras` model of images in [-1, 1], which are resized to its input.

        Raises:
            ValueError: the file is damaged, could run code, or is no model of square grey images.
        """
        model = _load_encoder(path)
        return cls(name or f"{model.name} ({Path(path).name})", _applied(model))

    @classmethod
    def regions(cls, path, grid=4):
        """The last maps at 1/16 of the side of a saved model, averaged over `grid` x `grid` parts.

        In films of one pose, unlike in photographs, where something is says what it is. Of those
        maps, the last residual sum counts, or the last of all where a model has none.

        Raises:
            ValueError: as of `Encoder.keras`, or the model has no such maps.
        """
        import keras

        model = _load_encoder(path)
        side = -(-model.input_shape[1] // 16)
        plain = [x for x in model.layers if not isinstance(x, keras.Model)]
        maps = [x for x in plain if getattr(x.output, "shape", ())[1:-1] == (side, side)]
        maps = [x for x in maps if isinstance(x, keras.layers.Add)] or maps
        if not maps or side < grid:
            raise ValueError(
                f"{path} has no maps of a sixteenth of its side to cut in {grid} x {grid} parts: "
                "give another network, such as one of benchmarks/imagenet_encoder.py, or hog"
            )
        encode = _applied(keras.Model(model.inputs, maps[-1].output))

        def average(images):
            rows = np.array_split(encode(images), grid, axis=1)
            parts = [part for row in rows for part in np.array_split(row, grid, axis=2)]
            return np.concatenate([part.mean(axis=(1, 2)) for part in parts], axis=1)

        return cls(f"{model.name} ({Path(path).name}), {grid} x {grid} regions", average)

    @classmethod
    def imagenet(cls, architecture="MobileNetV2"):
        """A network of Keras Applications with ImageNet weights, one of `IMAGENET`.

        Raises:
            OSError: the weights are neither cached nor downloaded, no reply taking over 10 s.
        """
        if architecture not in IMAGENET:
            raise ValueError(f"architecture must be in {[*IMAGENET]}. Received: {architecture!r}")
        import keras

        module, side = IMAGENET[architecture]
        build = getattr(keras.applications, architecture)
        with weights_of(architecture):
            model = build(include_top=False, pooling="avg", input_shape=(side, side, 3))

        def encode(images):
            colour = _resized(images, side).astype("float32").repeat(3, axis=-1)
            prepare = getattr(keras.applications, module).preprocess_input
            return model.predict_on_batch(prepare(colour))

        return cls(f"ImageNet {architecture}", encode)


def _load_encoder(path):
    from kerasgan.store import load_safely

    model = load_safely(path, "encoder")
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    side = shapes[0][1]
    if len(shapes) != 2 or shapes[0] != (None, side, side, 1) or side is None:
        raise ValueError(
            f"{path} is no encoder: it must turn (n, h, h, 1) into features. Received: {shapes}"
        )
    return model


def _applied(model):
    from kerasgan.films import to_float

    side = model.input_shape[1]
    return lambda images: model.predict_on_batch(to_float(_resized(images, side)))


@contextmanager
def weights_of(architecture):
    """Waits at most 10 s for a reply while Keras fetches ImageNet weights, and says what to do."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        yield
    except Exception as error:  # a failed download is a bare Exception in Keras
        raise OSError(
            f"No ImageNet weights of {architecture} ({error}). Connect once, or copy them into "
            "~/.keras/models, or use Encoder.keras(path) or, for scores, Encoder.hog()"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def best_encoder(path=DOMAIN_ENCODER):
    """MobileNetV2's features if its weights can be had, else those saved at `path`, else HOG."""
    try:
        return Encoder.imagenet()
    except OSError:
        encoder = Encoder.keras(path) if Path(path).is_file() else Encoder.hog()
        print(f"MobileNetV2's weights cannot be had: features are {encoder.name}'s")
        return encoder


def kid(real, fake, subset_size=50, subsets=100, seed=0):
    """Kernel inception distance: unbiased squared MMD of features, kernel (x.y / d + 1)^3.

    Args:
        real: features.
        fake: features.
        subset_size: images drawn from each side at a time, at most as many as the smaller has.
        subsets: number of draws.
        seed: seed of the draws.

    Returns:
        `(mean, spread)` over the draws. Sets of one distribution have a mean about 0. The draws
        overlap, so the spread is no standard error: `compare_sets` has an interval.

    Reference:
        Binkowski et al. 2018, Demystifying MMD GANs.
    """
    if not 2 <= subset_size <= min(len(real), len(fake)):
        received = f"{subset_size=}, real={len(real)}, fake={len(fake)}"
        raise ValueError(f"subset_size must be 2 to the smaller set's size. Received: {received}")
    rng = np.random.default_rng(seed)
    draws = [
        _mmd(*(x[rng.choice(len(x), subset_size, replace=False)] for x in (real, fake)))
        for _ in range(subsets)
    ]
    return float(np.mean(draws)), float(np.std(draws))


def fid(real, fake):
    """Frechet distance of Gaussians fitted to features (Heusel 2017); biased on few images."""
    means = [x.mean(axis=0) for x in (real, fake)]
    a, b = ((x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((real, fake), means, strict=True))
    # tr sqrt(A'A B'B) is the sum of the singular values of AB', thus of RS' where A = QR, B = PS:
    # exact, and as small as the smaller of images and features.
    roots = [np.linalg.qr(x, mode="r") for x in (a, b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(np.sum((means[0] - means[1]) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * shared)


def precision_recall(real, fake, k=3):
    """Share of fakes in the real manifold, and of real in the fake one (Kynkaanniemi 2019).

    A manifold is the union of balls about features that reach to their k-th nearest neighbours.
    """
    between = cdist(real, fake)
    precision = (between <= _radii(real, k)[:, None]).any(axis=0).mean()
    recall = (between <= _radii(fake, k)).any(axis=1).mean()
    return float(precision), float(recall)


def density_coverage(real, fake, k=5):
    """Real balls about a fake, over k, and share of real balls with a fake in them (Naeem 2020).

    A ball reaches from real features to their k-th nearest neighbour. On equal counts, fakes just
    like the real have a density of 1 and a coverage near 1 - 1 / 2^k.
    """
    inside = cdist(real, fake) <= _radii(real, k)[:, None]
    return float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean())


def stretch(images):
    """Stretches each image to its own full range: only to compare with samples saved that way."""
    images = _checked(images).astype(float)
    low, high = (end(axis=(1, 2, 3), keepdims=True) for end in (images.min, images.max))
    return np.rint(255 * (images - low) / np.maximum(high - low, 1)).astype("uint8")


def hog_features(images, cell=8, bins=9):
    """Histograms of oriented gradients (Dalal and Triggs 2005), as features.

    Cells of `cell` pixels in blocks of 2 x 2; `bins` orientations; h and w at least `2 * cell`.
    """
    pixels = _checked(images)[..., 0].astype("float32")
    rows, columns = (side // cell for side in pixels.shape[1:])
    dx, dy = np.zeros_like(pixels), np.zeros_like(pixels)
    dx[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
    dy[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    angle = np.arctan2(dy, dx) % np.pi / np.pi * bins - 0.5
    gap = np.abs(angle[..., None] - np.arange(bins))  # a gradient votes for the two bins about it
    votes = np.hypot(dx, dy)[..., None] * np.maximum(0, 1 - np.minimum(gap, bins - gap))
    votes = votes[:, : rows * cell, : columns * cell]
    cells = votes.reshape(len(pixels), rows, cell, columns, cell, bins).sum(axis=(2, 4))
    corners = [cells[:, i : rows - 1 + i, j : columns - 1 + j] for i in (0, 1) for j in (0, 1)]
    blocks = _unit(np.minimum(_unit(np.concatenate(corners, axis=-1)), 0.2))
    return blocks.reshape(len(pixels), -1)


def sliced_wasserstein(real, fake, patches=64, directions=128, seed=0):
    """Sliced Wasserstein distance x 1000 of 7 x 7 patches of Laplacian pyramids (Karras 2018).

    Patches, `patches` an image of the smaller set, are scaled by the mean and deviation of both
    sets together (not of each: brightness counts) and seen along random `directions`. Returns a
    dict from the height of each level (the images', its half, ... down to 16) to its distance.
    """
    real, fake = _checked(real), _checked(fake)
    _check_alike(real, fake)
    count = patches * min(len(real), len(fake))
    projections = np.random.default_rng(seed).normal(size=(49, directions)).astype("float32")
    projections /= np.linalg.norm(projections, axis=0)
    distances = {}
    for level in zip(_pyramid(real), _pyramid(fake), strict=True):
        drawn = [_patches(images, count, np.random.default_rng(seed)) for images in level]
        centre, scale = np.mean(drawn), np.std(drawn) + 1e-8
        a, b = (np.sort((x - centre) / scale @ projections, axis=0) for x in drawn)
        distances[level[0].shape[1]] = float(1000 * np.abs(a - b).mean())
    return distances


def detectability(real, fake, patients=None, seed=0, features=hog_features):
    """How well an SVM tells real from fake: `(accuracy, low, high)` over three 5-fold runs.

    `features` is of images, as an `Encoder` is: HOG unless said otherwise.
    On equal counts, folds by patient; 0.5 is a coin. An exact copy of a real film shares its fold;
    near copies do not, and push the accuracy below 0.5, a sign of copying rather than of quality.
    Fakes that repeat each other are told by it, as they should be. The interval is Wilson's.
    """
    rng, count = np.random.default_rng(seed), min(len(real), len(fake))
    groups = _group_numbers(group_positions(patients, len(real)))
    chosen = rng.permutation(len(real))[:count]
    real, groups, fake = real[chosen], groups[chosen], fake[rng.permutation(len(fake))[:count]]
    if len(set(groups)) == 1:  # one patient's films alone: no fold would be without them
        groups = np.arange(count)
    owner = {image.tobytes(): group for image, group in zip(real, groups, strict=True)}
    copied = [owner.get(image.tobytes(), -1 - i) for i, image in enumerate(fake)]
    seen, truth = features(np.concatenate([real, fake])), np.repeat([0, 1], count)
    right = _told_apart(seen, truth, [*groups, *copied], seed)
    return right, *wilson_interval(2 * count * right, 2 * count)


def train_on_synthetic_test_on_real(fake, fake_labels, real, real_labels):
    """Trains HOG + SVM on fake images of all classes, tests it on real ones (Ravuri 2019).

    Returns a dict: `accuracy`, its Wilson `low` and `high`, macro `precision`, `sensitivity`, `f1`.
    """
    predicted = hog_svc().fit(hog_features(fake), fake_labels).predict(hog_features(real))
    right = np.sum(predicted == real_labels)
    macro = metrics.precision_recall_fscore_support(
        real_labels, predicted, average="macro", zero_division=0
    )
    values = right / len(real), *wilson_interval(right, len(real)), *macro[:3]
    names = ("accuracy", "low", "high", "precision", "sensitivity", "f1")
    return dict(zip(names, map(float, values), strict=True))


def diversity(images, pairs=500, seed=0):
    """Mean structural similarity (Wang 2004) of random pairs of images: lower is more diverse."""
    pixels = _checked(images)[..., 0].astype("float32")
    first, second = np.triu_indices(len(pixels), 1)
    if len(first) == 0:
        raise ValueError(f"Pairs need at least two images. Received: {len(pixels)}")
    drawn = np.random.default_rng(seed).permutation(len(first))[:pairs]
    return float(np.mean([_ssim(pixels[first[i]], pixels[second[i]]) for i in drawn]))


def fingerprint(images):
    """Share of the fine detail that all images have in common: about 0 of films, 1 of copies.

    What a generator draws at one place whatever it draws is its fingerprint (Marra et al. 2019, Do
    GANs leave artificial fingerprints?): the mean of the images' residuals, each image less its
    blur of 1.5 pixels. Returned is its energy over theirs, freed of what chance leaves in the mean
    of few images, so that it may fall a little below 0.
    """
    pixels, n = _checked(images)[..., 0].astype("float32"), len(images)
    if n < 2:
        raise ValueError(f"a fingerprint needs at least two images. Received: {n}")
    residuals = pixels - np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in pixels])
    energy, shared = np.mean(residuals**2), np.mean(residuals.mean(axis=0) ** 2)
    return float((n * shared / max(energy, 1e-12) - 1) / (n - 1))


def memorization(samples, training, held_out=None, patients=None, shifts=2, flips=True, rate=0.01):
    """Screens samples for copies of training films, shifted and flipped ones included.

    The distance is that of two images, at most 64 pixels a side, freed of their mean and scale: 0
    for a copy whatever its brightness and contrast, 1.41 for the unrelated. A sample is flagged if
    it lies nearer to a training film than all but a share `rate` of fresh films do. Films within
    0.1 of each other, a correlation of 0.995, are one film twice, and say nothing of fresh ones.

    Args:
        samples: images.
        training: the films the generator saw.
        held_out: k fresh films; by default each training film is held against other patients',
            or, of one patient's films, against the others.
        patients: patients of the training films.
        shifts: largest shift undone, in pixels each way.
        flips: whether horizontal flips are undone.
        rate: share of fresh films that may be flagged; at least 1 / (k + 1), or by default, where
            the two nearest of m training films are one pair, 2 / (m + 1).

    Returns:
        DataFrame, a row a sample: `nearest` (a training film), `distance`, `limit`, `flagged`.

    Raises:
        ValueError: If one training film alone has to say how near others come to it, or samples and
            films differ in size.

    Example:
        >>> kept = samples[~memorization(samples, train.images, patients=train.patients).flagged]
    """
    if held_out is None and len(training) < 2:
        raise ValueError(f"needs two training films, or held-out ones. Received: {len(training)}")
    distances = _aligned_distances(samples, training, shifts, flips)
    fresh = _aligned_distances(training if held_out is None else held_out, training, shifts, flips)
    if held_out is None:
        groups = group_positions(patients, len(training))
        # One patient's films alone: each is held against the others.
        for films in groups if len(groups) > 1 else group_positions(None, len(training)):
            fresh[np.ix_(films, films)] = np.inf
    fresh[fresh < SAME] = np.inf  # one film twice, whatever names it goes by
    # A fresh film among k ranks below the r-th at a chance of r / (k + 1). Left out in turn, films
    # are not fresh to each other: counting the newcomer as a neighbour too raises that to r + 1.
    rank = int(rate * (len(fresh) + 1)) - (held_out is None)
    limit = np.sort(fresh.min(axis=1))[max(rank, 1) - 1]
    limit = limit if np.isfinite(limit) else SAME
    found = pd.DataFrame({"nearest": distances.argmin(axis=1), "distance": distances.min(axis=1)})
    return found.assign(limit=limit, flagged=found["distance"] < limit)


def nearness(films, samples, shifts=2, flips=True):
    """How near samples come to each film, (n,): minus the least distance, as in `memorization`."""
    return -_aligned_distances(films, samples, shifts, flips).min(axis=1)


def attack_auc(training, held_out, patients=None, classes=None):
    """How well a number tells the films a model saw from others: `(auc, low, high)`.

    With a discriminator's logits on both, the attack of Hayes et al. 2019 (LOGAN): 0.5 if it learnt
    nothing that holds for its own films alone. The interval is the bootstrap's.

    Args:
        training: a number for each film seen, high where the attack says "seen".
        held_out: the same for films not seen.
        patients: those of the training films, then of the held-out ones.
        classes: theirs, whose numbers may differ in level: the AUC is then the mean over classes.
    """

    def mean(member, score, kind):
        own = [auc(member[kind == k], score[kind == k]) for k in np.unique(kind)]
        return np.nanmean(own) if np.isfinite(own).any() else np.nan

    member = np.repeat([1, 0], [len(training), len(held_out)])
    kinds = np.zeros(len(member)) if classes is None else np.asarray(classes)
    signals = np.concatenate([training, held_out])
    return bootstrap_interval(mean, member, signals, kinds, groups=patients)


def check_enough(films):
    """Raises `ValueError` if a class has fewer films than the 12 that a quality score needs."""
    if few := {k: n for k, n in films.index["class"].value_counts().items() if n < LEAST}:
        raise ValueError(
            f"quality scores need {LEAST} training films of every class. Received: {few}; add films"
        )


def check_patients(films):
    """Raises `ValueError` if films of a class are of fewer than 3 patients, too few to screen."""
    if len(set(films.patients)) < 3:
        raise ValueError(
            f"films of at least 3 patients tell how near is too near. Received: {len(films)} "
            f"films of {films.classes}"
        )


def compare_sets(
    real,
    fakes,
    encoder,
    authors=None,
    patients=None,
    class_name="all",
    reference_set="train",
    draws=30,
    seed=0,
):
    """Measures sets of generated images beside a real-versus-real floor and the authors' samples.

    Each score but detectability is a mean over random halves of the real films, split by patient,
    each against as many generated images; the floor is one half against the other: all on one n.
    The interval is the half-sample bootstrap's, 1.96 deviations over the halves each way, wide
    rather than narrow. Detectability is on all films, by HOG and, as `detectability_encoder`, by
    the first encoder where it is another, with Wilson's interval; its floor, of halves, is about
    0.5, chance.

    Args:
        real: images of one class.
        fakes: dict from a generator's name to its images, preferably no fewer than the real ones.
        encoder: an `Encoder`, or several, for the scores of features; `detectability_encoder` is
            by the first.
        authors: the published samples; with them all sets are stretched, as they were when saved.
        patients: patients of the real films.
        class_name: class of the films, for the table.
        reference_set: name of the films, for the table, where stretching is noted.
        draws: number of halves.
        seed: seed of all choices.

    Returns:
        DataFrame: `generator,class,reference_set,encoder,metric,value,low,high,floor,authors`.
    """
    if authors is not None:
        reference_set += " (stretched)"
        real, fakes = stretch(real), {name: stretch(x) for name, x in fakes.items()}
        fakes["authors"] = stretch(authors)
    for name, images in {"real": real, **fakes}.items():
        if _checked(images).shape[1:] != real.shape[1:] or len(images) < LEAST:
            raise ValueError(
                f"a set needs at least {LEAST} images, as large as the real ones. Received: "
                f"{name} of {class_name} {images.shape}, real {real.shape}"
            )
    if (people := len(group_positions(patients, len(real)))) < 5:
        print(
            f"{class_name}: films of {people} patients alone are halved film by film, so that the "
            "floor is too low, and what tells films from samples may be a patient"
        )
        patients = None
    encoders = list(encoder) if isinstance(encoder, (list, tuple)) else [encoder]
    found, rows = _halved_scores(real, fakes, encoders, patients, draws, seed), []
    told_by = {("HOG", "detectability"): hog_features}
    if encoders[0].name != "HOG":
        told_by[encoders[0].name, "detectability_encoder"] = encoders[0]
    floors = {key: _detectability_floor(f(real), patients, seed) for key, f in told_by.items()}
    for name, images in fakes.items():
        for key, values in found[name].items():
            mean, margin, floor = values.mean(), 1.96 * values.std(), found[None][key].mean()
            ends = np.clip((mean - margin, mean + margin), *_RANGES.get(key[1], (-np.inf, np.inf)))
            rows.append((name, *key, mean, *ends, floor))
        for key, features in told_by.items():
            told = detectability(real, images, patients, seed, features)
            rows.append((name, *key, *told, floors[key]))
    columns = ["generator", "encoder", "metric", "value", "low", "high", "floor"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(1, "class", class_name)
    table.insert(2, "reference_set", reference_set)
    return _beside_authors(table)


def compare_films(
    real,
    fakes,
    encoder=None,
    authors=None,
    reference_set="train",
    test=None,
    discriminators=None,
    seed=0,
):
    """Measures generated collections class by class, as `compare_sets` does, and as a whole.

    Adds the share of `memorized` samples of each class (floor: the screen's rate) and, with test
    films, under class `macro`, of two classes or more `tstr`: the accuracy of HOG + SVM trained on
    the samples and tested on these films (floor: trained on the real ones), and `membership`: the
    AUC of `attack_auc`, the mean over classes, by the `nearness` to these films, each held against
    the samples of its own class; for a discriminator given as well, that of the attack by its
    logits.

    Args:
        real: the training `Films`.
        fakes: dict from a generator's name to dict from class to images; classes as in `real`.
        encoder: as of `compare_sets`; the best that can be had by default.
        authors: dict from class to the published samples, or None.
        reference_set: name of the real films, for the table.
        test: test `Films`, or None; those of classes that `real` has not are left out.
        discriminators: dict from a generator's name to its discriminator, a model (images[,
            classes]) -> logits, or None.
        seed: seed of all choices.

    Returns:
        DataFrame, as of `compare_sets`.

    Raises:
        ValueError: If a generator lacks samples of a class, or is called authors.
    """
    from tqdm import tqdm

    encoder = encoder or best_encoder()
    if "authors" in fakes:
        raise ValueError("authors names the published samples: call a generator something else")
    everyone = {**fakes, **({"authors": authors} if authors else {})}
    for name, sets in everyone.items():
        if missing := set(real.classes) - set(sets):
            raise ValueError(f"{name} has no samples of {sorted(missing)}")
    tables = []
    for kind in tqdm(real.classes, desc="quality", unit="class"):
        own = real.only(kind)
        sets = {name: images[kind] for name, images in fakes.items()}
        theirs = authors[kind] if authors else None
        options = {"patients": own.patients, "class_name": kind, "reference_set": reference_set}
        tables.append(compare_sets(own.images, sets, encoder, theirs, **options, seed=seed))
        tables.append(_memorized(own, everyone, kind, reference_set))
    if test is not None:
        test = test.only(*(kind for kind in test.classes if kind in real.classes))
    if test is not None and len(test):
        if len(real.classes) > 1:
            tables.append(_tstr(real, everyone, test, tables[0]))
        tables.append(_membership(real, everyone, test, discriminators or {}, reference_set))
    return _beside_authors(pd.concat(tables, ignore_index=True))


def _beside_authors(table):
    """The table with a column of the authors' samples' score by the same measure."""
    keys = ["class", "encoder", "metric"]
    theirs = table[table["generator"] == "authors"].set_index(keys)["value"]
    theirs = theirs.reindex(pd.MultiIndex.from_frame(table[keys]))
    return table.assign(authors=theirs.to_numpy())


def _memorized(own, everyone, kind, reference_set):
    facts, rows = {"class": kind, "reference_set": reference_set, "encoder": "pixels"}, []
    floor = max(2, int(0.01 * (len(own) + 1))) / (len(own) + 1)  # see `memorization`
    for name, sets in everyone.items():
        flagged = memorization(sets[kind], own.images, patients=own.patients)["flagged"]
        low, high = wilson_interval(flagged.sum(), len(flagged))
        scores = {"value": flagged.mean(), "low": low, "high": high, "floor": floor}
        rows.append({"generator": name, **facts, "metric": "memorized", **scores})
    return pd.DataFrame(rows)


def _tstr(real, everyone, test, like):
    look = stretch if "authors" in everyone else lambda images: images
    films = look(test.images), [real.classes.index(kind) for kind in test.index["class"]]
    floor = train_on_synthetic_test_on_real(look(real.images), real.labels, *films)["accuracy"]
    rows = []
    for name, sets in everyone.items():
        images = np.concatenate([sets[kind] for kind in real.classes])
        labels = np.repeat(np.arange(len(real.classes)), [len(sets[k]) for k in real.classes])
        scores = train_on_synthetic_test_on_real(look(images), labels, *films)
        row = {"generator": name, "class": "macro", "reference_set": like["reference_set"][0]}
        values = {"value": scores["accuracy"], "low": scores["low"], "high": scores["high"]}
        rows.append({**row, "encoder": "HOG", "metric": "tstr", **values, "floor": floor})
    return pd.DataFrame(rows)


def _membership(real, everyone, test, discriminators, reference_set):
    kinds = [kind for kind in real.classes if (test.index["class"] == kind).any()]
    sides = [[side.only(kind) for kind in kinds] for side in (real, test)]
    patients = np.concatenate([own.patients for side in sides for own in side])
    classes = np.concatenate([own.index["class"] for side in sides for own in side])
    rows = []

    def attack(name, encoder, signal):
        signals = [np.concatenate([*map(signal, kinds, side)]) for side in sides]
        row = {"generator": name, "class": "macro", "reference_set": reference_set}
        found = attack_auc(*signals, patients, classes)
        values = dict(zip(("value", "low", "high"), found, strict=True))
        rows.append({**row, "encoder": encoder, "metric": "membership", **values, "floor": 0.5})

    for name, sets in everyone.items():
        attack(name, "pixels", lambda kind, own, sets=sets: nearness(own.images, sets[kind]))
    for name, model in discriminators.items():
        attack(
            name,
            "discriminator",
            lambda kind, own, model=model: verdicts(model, own.images, real.classes.index(kind)),
        )
    return pd.DataFrame(rows)


def verdicts(discriminator, images, label=None):
    """A discriminator's mean logits, float32 (n,), of uint8 (n, h, w, 1) images of one class."""
    from kerasgan.films import to_float

    if not discriminator.name.endswith("discriminator") or len(discriminator.outputs) > 1:
        raise ValueError(f"not a discriminator of logits alone: {discriminator.name}")
    inputs = to_float(images)
    if len(discriminator.inputs) > 1:
        inputs = [inputs, np.full(len(images), label)]
    return discriminator.predict(inputs, batch_size=256, verbose=0).mean(axis=1)


def _halved_scores(real, fakes, encoders, patients, draws, seed):
    """For each set, None the real films', a DataFrame: a row a half, (encoder, metric) columns."""
    # The deviation over half samples is the standard error on the whole (delete-half jackknife);
    # drawing with replacement repeats films, which FID and neighbours mistake for mode collapse.
    sets = {None: real, **fakes}
    features = {name: [encoder(x) for encoder in encoders] for name, x in sets.items()}
    names, most = [encoder.name for encoder in encoders], min(map(len, sets.values())) // 2
    rng, patients = np.random.default_rng(seed), group_positions(patients, len(real))
    found = {name: [] for name in sets}
    for _ in range(draws):
        halves = _halves(patients, rng)
        size = min(most, *map(len, halves))
        half = halves[0][:size]
        for name, images in sets.items():
            drawn = halves[1][:size] if name is None else rng.permutation(len(images))[:size]
            pairs = zip(features[None], features[name], strict=True)
            scores = [_feature_scores(a[half], b[drawn]) for a, b in pairs]
            by_encoder = [*zip(names, scores, strict=True)]
            by_encoder.append(("pixels", _pixel_scores(real[half], images[drawn])))
            found[name].append({(n, m): value for n, row in by_encoder for m, value in row.items()})
    return {name: pd.DataFrame(scores) for name, scores in found.items()}


def _halves(groups, rng):
    """Two halves, lists of positions: each group whole, in random order, to the smaller half."""
    halves = [], []
    for i in rng.permutation(len(groups)):
        min(halves, key=len).extend(groups[i])
    return halves


def _group_numbers(groups):
    numbers = np.empty(sum(map(len, groups)), int)
    for number, films in enumerate(groups):
        numbers[films] = number
    return numbers


def _told_apart(features, truth, groups, seed, folds=5):
    """Mean accuracy of the SVM over three cross-validations, groups whole."""
    plans = (StratifiedGroupKFold(folds, shuffle=True, random_state=seed + i) for i in range(3))
    right = [
        cross_val_predict(hog_svc(), features, truth, groups=groups, cv=plan) == truth
        for plan in plans
    ]
    return float(np.mean(right))


def _detectability_floor(features, patients, seed, draws=10):
    """Detectability of one half of the real films beside the other, a mean over random halves."""
    rng, told = np.random.default_rng(seed), []
    groups = group_positions(patients, len(features))
    numbers = _group_numbers(groups)
    for _ in range(draws):
        halves = _halves(groups, rng)
        size = min(map(len, halves))
        halves = [half[:size] for half in halves]
        folds = min(5, *(len(set(numbers[half])) for half in halves))
        if folds > 1:  # else one patient is a half: nothing to learn from without him
            rows, truth = np.concatenate(halves), np.repeat([0, 1], size)
            told.append(_told_apart(features[rows], truth, numbers[rows], seed, folds))
    return float(np.mean(told)) if told else 0.5


def _feature_scores(real, fake):
    most = len(real) - 1  # neighbours, where one patient's many films leave small halves
    precision, recall = precision_recall(real, fake, min(3, most))
    density, coverage = density_coverage(real, fake, min(5, most))
    scores = {"kid": _mmd(real, fake), "fid": fid(real, fake)}
    scores |= {"precision": precision, "recall": recall}
    return scores | {"density": density, "coverage": coverage}


def _pixel_scores(real, fake):
    distance = np.mean(list(sliced_wasserstein(real, fake).values()))
    scores = {"sliced_wasserstein": distance, "diversity": diversity(fake, pairs=100)}
    return {**scores, "fingerprint": fingerprint(fake)}


def _mmd(real, fake):
    n, m, d = len(real), len(fake), real.shape[1]
    within = [((x @ x.T / d + 1) ** 3) * (1 - np.eye(len(x))) for x in (real, fake)]
    between = (real @ fake.T / d + 1) ** 3
    return within[0].sum() / (n * n - n) + within[1].sum() / (m * m - m) - 2 * between.mean()


def _radii(features, k):
    if k >= len(features):
        raise ValueError(f"k must be below the number of images. Received: {k=}, n={len(features)}")
    return np.partition(cdist(features, features), k, axis=1)[:, k]


def _unit(vectors):
    return vectors / np.sqrt(np.sum(vectors**2, axis=-1, keepdims=True) + 1e-5)


def hog_svc():
    """Returns the SVM that scores, filters and baselines share, unfitted, for HOG and the like."""
    return SVC(C=10, gamma="scale")


def _pyramid(images):
    level, levels = [image.astype("float32") for image in images[..., 0]], []
    while min(level[0].shape) // 2 >= 16:
        down = [cv2.pyrDown(image) for image in level]
        size = level[0].shape[::-1]
        levels.append([a - cv2.pyrUp(b, dstsize=size) for a, b in zip(level, down, strict=True)])
        level = down
    return [np.stack(level) for level in [*levels, level]]


def _patches(images, count, rng):
    windows = np.lib.stride_tricks.sliding_window_view(images, (7, 7), axis=(1, 2))
    return windows[tuple(rng.integers(0, windows.shape[:3], (count, 3)).T)].reshape(count, -1)


def _ssim(first, second):
    def blur(image):
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    a, b = blur(first), blur(second)
    variances = blur(first**2) - a**2 + blur(second**2) - b**2
    covariance = blur(first * second) - a * b
    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * a * b + one) * (2 * covariance + two)
    return np.mean(similarity / ((a**2 + b**2 + one) * (variances + two)))


def _aligned_distances(images, reference, shifts, flips):
    images, reference = (_shrunk(_checked(x)) for x in (images, reference))
    _check_alike(images, reference)
    height, width = (side - 2 * shifts for side in images.shape[1:])
    middle = _standard(images[:, shifts : shifts + height, shifts : shifts + width])
    nearest_yet = np.full((len(images), len(reference)), -1.0, "float32")
    for turned in (reference, reference[:, :, ::-1])[: 1 + flips]:
        for i, j in np.ndindex(2 * shifts + 1, 2 * shifts + 1):
            window = _standard(turned[:, i : i + height, j : j + width])
            np.maximum(nearest_yet, middle @ window.T, out=nearest_yet)
    return np.sqrt(np.maximum(2 - 2 * nearest_yet, 0))  # of unit vectors, from their cosine


def _standard(images):
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _shrunk(images, side=64):
    images = _resized(images, side) if max(images.shape[1:3]) > side else images
    return images[..., 0].astype("float32")


def _resized(images, side):
    how = cv2.INTER_AREA if images.shape[1] > side else cv2.INTER_LINEAR
    return np.stack([cv2.resize(x, (side, side), interpolation=how) for x in images[..., 0]])[
        ..., None
    ]


def _check_alike(images, others):
    if images.shape[1:] != others.shape[1:]:
        sizes = f"{images.shape[1:3]} and {others.shape[1:3]}"
        raise ValueError(f"images of one size can be compared: prepare them. Received: {sizes}")


def _checked(images):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 1 or len(images) == 0:
        received = f"{images.dtype} {images.shape}"
        raise ValueError(f"images must be uint8 (n, h, w, 1), see to_uint8. Received: {received}")
    return images
