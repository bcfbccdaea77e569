"""The honest evaluation: repeated cross-validation by patient, a GAN for each training fold.

Everything fitted - the GAN, the classifier, the choice of samples - sees the training fold alone. A
fold's GAN is trained once and shared by all arms and seeds. Finished cells are read back, so a
stopped evaluation goes on; folds run in parallel through joblib, also on a Dask cluster.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kerasgan.runs import write_text
from kerasgan.scores import classification_scores, corrected_t_test, holm

CODE = "1"  # part of the cache key of a fold's GAN: raise it when the training recipe changes


@dataclass(frozen=True)
class Mix:
    """What a classifier learns from in one arm, in multiples of the training fold.

    Every arm takes the same number of gradient steps on batches of the same size.

    Attributes:
        name: Name of the arm.
        kind: `"real"`, `"classic"`, `"duplicated"`, `"synthetic"` or `"baseline"`.
        classic: `True` augments every batch, real or synthetic, by `ClassicAugmentation`.
        duplicated: Real films added a second time, drawn with replacement within each class.
        synthetic: Samples of the fold's GAN added, within each class.
        originals: `False` leaves the fold's own films out.
        pretrain: Share of the steps spent on the synthetic samples alone before the originals
            alone; 0 mixes them.
        view: What the classifier sees: `"whole"`, or `"no_lungs"`, the shortcut probe.
    """

    name: str
    kind: str
    classic: bool = False
    duplicated: float = 0.0
    synthetic: float = 0.0
    originals: bool = True
    pretrain: float = 0.0
    view: str = "whole"


CORE_ARMS = (
    Mix("real", "real"),
    Mix("classic", "classic", classic=True),
    Mix("classic + duplicated", "duplicated", classic=True, duplicated=1),
    Mix("classic + synthetic", "synthetic", classic=True, synthetic=1),
    Mix("synthetic only", "synthetic", classic=True, synthetic=1, originals=False),
    Mix("synthetic, then real", "synthetic", classic=True, synthetic=1, pretrain=0.5),
)
PROBES = (Mix("no lungs", "baseline", classic=True, view="no_lungs"),)
BASELINES = ("HOG + SVM", "border only", "histogram only")
PRIMARY = ("classic + synthetic", "classic + duplicated")


def cross_validate(films, arms=CORE_ARMS, folder="crossval", **settings):
    """Scores arms by repeated stratified k-fold cross-validation, grouped by patient.

    Args:
        films: All the `Films`, of one size; their split is ignored.
        arms: Sequence of `Mix`, with names of their own.
        folder: Folder of the finished cells, made if missing.
        **settings: `n_splits` (5), `repeats` (2), `seeds` ((0,)), `classifiers` (("resnet",), of
            `CLASSIFIERS`), `steps` (600) of `batch_size` (64), `gan_steps` (1500), `gan_width`
            (32), `seed` (0) of the folds, `baselines` (`BASELINES`), `n_jobs` (1), and `scheduler`,
            the address of a Dask scheduler.

    Returns:
        The tidy table `arm, kind, classifier, repeat, fold, seed, class, metric, value,
        data_hash`.

    Raises:
        ValueError: If two arms share a name, or a setting is unknown.

    Example:
        >>> extra = Mix("twice", "synthetic", classic=True, synthetic=2)
        >>> table = cross_validate(load_films("covid-xray-64"), [*CORE_ARMS, extra], "runs/cv")
    """
    settings = _settings(settings)
    arms = list(arms)
    if len({arm.name for arm in arms}) != len(arms):
        raise ValueError(f"arms need names of their own. Received: {[arm.name for arm in arms]}")
    folder = Path(folder).expanduser().resolve()
    folds = films.folds(settings["n_splits"], settings["repeats"], settings["seed"])
    jobs = [
        (arms, train, test, divmod(number, settings["n_splits"]), folder, settings)
        for number, (train, test) in enumerate(folds)
    ]
    _parallel(_fold, jobs, settings["n_jobs"], settings["scheduler"])
    return read_scores(folder, films)


_DEFAULTS = {
    "n_splits": 5,
    "repeats": 2,
    "seeds": (0,),
    "classifiers": ("resnet",),
    "steps": 600,
    "batch_size": 64,
    "gan_steps": 1500,
    "gan_width": 32,
    "seed": 0,
    "baselines": BASELINES,
    "n_jobs": 1,
    "scheduler": None,
}


def _settings(given):
    if unknown := set(given) - set(_DEFAULTS):
        raise ValueError(f"settings are {sorted(_DEFAULTS)}. Received: {sorted(unknown)}")
    return {**_DEFAULTS, **given}


def _parallel(function, jobs, n_jobs, scheduler):
    """Runs the jobs with a progress bar, on this machine or on a Dask cluster."""
    from joblib import Parallel, delayed, parallel_config
    from tqdm import tqdm

    calls = [delayed(function)(*job) for job in jobs]
    if scheduler is None:
        done = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(calls)
        return list(tqdm(done, total=len(calls), desc="folds", unit="fold"))
    from dask.distributed import Client

    with Client(scheduler), parallel_config("dask"):
        return Parallel()(calls)


def _fold(arms, train, test, place, folder, settings):
    """All cells of one fold that are not finished yet."""
    home = folder / f"repeat{place[0]}-fold{place[1]}"
    for name in settings["baselines"]:
        _cell(home, name, "baseline", "scikit-learn", 0, test, place, _baseline, name, train, test)
    synthetic = None
    for seed in settings["seeds"]:
        for classifier in settings["classifiers"]:
            for arm in arms:
                if _path(home, arm.name, classifier, seed).is_file():
                    continue
                if arm.synthetic and synthetic is None:
                    most = max(each.synthetic for each in arms)
                    synthetic = _synthetic(train, most, folder / "gans", settings)
                job = (arm, train, test, synthetic, classifier, seed, settings)
                _cell(home, arm.name, arm.kind, classifier, seed, test, place, _predict, *job)


def _path(home, arm, classifier, seed):
    name = f"{arm}--{classifier}--{seed}"
    return home / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.csv"


def _cell(home, arm, kind, classifier, seed, test, place, function, *job):
    """Computes and stores the predictions of one arm on one fold, unless they are there."""
    path = _path(home, arm, classifier, seed)
    if path.is_file():
        return
    chances = function(*job)
    table = test.index[["filename", "class"]].assign(patient=test.patients)
    table.insert(0, "arm", arm)
    facts = {"kind": kind, "classifier": classifier, "repeat": place[0], "fold": place[1]}
    table = table.assign(**facts, seed=seed)
    for label, name in enumerate(test.classes):
        table[f"p_{name}"] = chances[:, label]
    write_text(path, table.to_csv(index=False))


def _synthetic(train, ratio, folder, settings):
    """Samples of a conditional GAN fitted to the training fold; trained once, then cached.

    Returns uint8 images and int labels, `ratio` times the films of each class.
    """
    from kerasgan.gan import draw
    from kerasgan.training import best_gan, fit_gan

    recipe = {"steps": settings["gan_steps"], "width": settings["gan_width"], "code": CODE}
    key = hashlib.sha256(f"{train.hash} {json.dumps(recipe, sort_keys=True)}".encode()).hexdigest()
    home = folder / key[:16]
    batch = 32
    epochs = -(-settings["gan_steps"] // -(-len(train) // batch))
    gan = best_gan(
        train.size, settings["gan_width"], len(train.classes), settings["gan_steps"], seed=0
    )
    fit_gan(gan, train, epochs, home, batch, every=max(1, epochs // 4), grids=1)
    images, labels = [], []
    for label, own in enumerate(np.bincount(train.labels, minlength=len(train.classes))):
        count = int(np.ceil(ratio * own))
        images.append(draw(gan.averaged, count, label, seed=label))
        labels.append(np.full(count, label))
    return np.concatenate(images), np.concatenate(labels)


def training_sets(arm, train, synthetic, seed):
    """Returns the images an arm learns from, phase by phase.

    Args:
        arm: The `Mix`.
        train: The training fold's `Films`.
        synthetic: `(images, labels)` of the fold's GAN, at least `arm.synthetic` times the films
            of each class, or `None`.
        seed: Integer seed of the duplicates.

    Returns:
        List of `(share of the steps, uint8 images, int labels)`.
    """
    rng, counts = np.random.default_rng(seed), np.bincount(train.labels)
    real = (train.images, train.labels)
    copies = [
        rng.choice(np.flatnonzero(train.labels == label), int(np.ceil(arm.duplicated * count)))
        for label, count in enumerate(counts)
    ]
    copies = np.concatenate(copies).astype(int)
    added = [(train.images[copies], train.labels[copies])]
    if arm.synthetic:
        images, labels = synthetic
        order = pd.Series(labels).groupby(labels).cumcount().to_numpy()
        chosen = order < np.ceil(arm.synthetic * counts)[labels]
        added.append((images[chosen], labels[chosen]))
    if arm.pretrain:
        return [(arm.pretrain, *_joined(added)), (1 - arm.pretrain, *real)]
    return [(1.0, *_joined([real, *added] if arm.originals else added))]


def _joined(parts):
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _predict(arm, train, test, synthetic, classifier, seed, settings):
    from kerasgan.classify import fit_steps, predict_mean

    phases = training_sets(arm, train, synthetic, seed)
    look = VIEWS[arm.view]
    phases = [(share, look(images), labels) for share, images, labels in phases]
    model = fit_steps(
        classifier,
        phases,
        len(train.classes),
        settings["steps"],
        settings["batch_size"],
        arm.classic,
        seed,
    )
    return predict_mean(model, look(test.images), flips=classifier != "cnn")


def no_lungs(images):
    """Blacks out a central ellipse that holds the lungs: what is left should say nothing.

    Args:
        images: uint8 (n, h, w, 1).

    Returns:
        uint8 (n, h, w, 1).
    """
    height, width = images.shape[1:3]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.where(((x / 0.85) ** 2 + (y / 0.9) ** 2 < 1)[..., None], 0, images).astype(np.uint8)


VIEWS = {"whole": lambda images: images, "no_lungs": no_lungs}


def _baseline(name, train, test):
    """Probabilities of a classical model; of an SVM, the softmax of its decision values."""
    from scipy.special import softmax
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    from kerasgan.quality import hog_features

    if name == "HOG + SVM":
        model = SVC(C=10, gamma="scale", break_ties=True)
        model.fit(hog_features(train.images), train.labels)
        return softmax(model.decision_function(hog_features(test.images)), axis=1)
    look = {"border only": _ring, "histogram only": _histogram}[name]
    model = RandomForestClassifier(300, random_state=0).fit(look(train.images), train.labels)
    return model.predict_proba(look(test.images))


def _ring(images):
    x = images[..., 0]
    return np.concatenate([x[:, 0], x[:, -1], x[:, 1:-1, 0], x[:, 1:-1, -1]], axis=1)


def _histogram(images):
    return np.array([np.histogram(image, 8, (0, 256))[0] for image in images])


def read_predictions(folder):
    """Reads all finished cells of an evaluation.

    Args:
        folder: Folder given to `cross_validate`.

    Returns:
        DataFrame, one row per film and cell: `arm, filename, class, patient, kind, classifier,
        repeat, fold, seed`, and `p_<class>`.

    Raises:
        FileNotFoundError: If no cell is finished.
    """
    paths = sorted(Path(folder).glob("repeat*/*.csv"))
    if not paths:
        raise FileNotFoundError(f"no finished cells in {folder}: run cross_validate first")
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


_KEYS = ["arm", "kind", "classifier", "repeat", "fold", "seed"]


def read_scores(folder, films):
    """Scores all finished cells of an evaluation.

    Args:
        folder: Folder given to `cross_validate`.
        films: The `Films` evaluated.

    Returns:
        The tidy table of `cross_validate`.
    """
    tables = []
    for key, cell in read_predictions(folder).groupby(_KEYS, sort=False):
        labels = [films.classes.index(name) for name in cell["class"]]
        chances = cell[[f"p_{name}" for name in films.classes]].to_numpy()
        scores = classification_scores(labels, chances, films.classes)
        tables.append(scores.assign(**dict(zip(_KEYS, key, strict=True))))
    table = pd.concat(tables, ignore_index=True).assign(data_hash=films.hash[:16])
    return table[[*_KEYS, "class", "metric", "value", "data_hash"]]


def contrasts(scores, n_train, n_test, control=PRIMARY[1], metrics=None):
    """Compares every arm with a control, paired by fold, by the corrected resampled t-test.

    Args:
        scores: Table of `cross_validate`.
        n_train: Films in a training fold.
        n_test: Films in a test fold.
        control: Name of the control arm.
        metrics: Macro metrics compared; sensitivity alone makes the primary contrast.

    Returns:
        DataFrame `arm, kind, control, classifier, metric, difference, low, high, p, p_adjusted, n,
        primary`, where `n` is the number of folds; p-values are adjusted by Holm's method over
        all but the primary contrast, which is tested alone.
    """
    metrics = metrics or ("sensitivity", "specificity", "auc_bac_vir", "accuracy")
    macro = scores[(scores["class"] == "macro") & scores["metric"].isin(metrics)]
    kinds = macro.drop_duplicates("arm").set_index("arm")["kind"]
    rows = []
    for (classifier, metric), own in macro.groupby(["classifier", "metric"]):
        folds = own.pivot_table("value", ["repeat", "fold"], "arm")  # the mean over seeds
        if control not in folds:
            continue
        for arm in folds.columns.drop(control):
            paired = (folds[arm] - folds[control]).dropna()
            if len(paired) < 2:
                continue
            test = corrected_t_test(paired, n_train, n_test)
            primary = (arm, control, metric) == (*PRIMARY, "sensitivity")
            rows.append((arm, kinds[arm], control, classifier, metric, *test, len(paired), primary))
    columns = ["arm", "kind", "control", "classifier", "metric", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=[*columns, "n", "primary"])
    secondary = ~table["primary"].astype(bool)
    table.insert(9, "p_adjusted", table["p"])
    table.loc[secondary, "p_adjusted"] = holm(table.loc[secondary, "p"])
    return table


def settings_of(arms):
    """Returns the arms as plain dicts, for the registered protocol."""
    return [asdict(arm) for arm in arms]
