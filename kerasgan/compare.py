"""The comparison: arms of real, classic and synthetic images, one classifier fitted to each."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import stats

from kerasgan.callbacks import Checkpoint, StopOnNaN, is_chief
from kerasgan.classify import fit_transfer, predict_mean
from kerasgan.crossval import parallel
from kerasgan.films import check_uint8, epoch_numbers, to_float
from kerasgan.gan import build_by_hand, workers_logs
from kerasgan.networks import build_classifier
from kerasgan.runs import begin, locked, read_table, short_hash, write_text
from kerasgan.scores import classification_scores, confusion, wilson_interval
from kerasgan.sources import COLLECTIONS
from kerasgan.store import write_model
from kerasgan.synthesis import classic_set
from kerasgan.training import Progress

EVALUATIONS = ("deterministic", "reference")
# Accuracy of each arm as the study published it: the mean of many passes with dropout on.
PUBLISHED_ACCURACY = {
    "O1": 0.769,
    "O1+C1": 0.772,
    "O1+C2": 0.828,
    "O1+C3": 0.827,
    "O1+C4": 0.820,
    "O1+C3+G1": 0.874,
    "O1+C3+G2": 0.869,
    "O1+C3+G3": 0.907,
    "O1+C3+G4": 0.901,
}
# Their sensitivity and specificity, class by class, of the two arms they compared.
PUBLISHED_CLASSES = {
    "O1+C3": {
        "covid": (1, 1),
        "normal": (0.748, 0.999),
        "pneumonia_bac": (0.925, 0.795),
        "pneumonia_vir": (0.636, 0.976),
        "macro": (0.827, 0.943),
    },
    "O1+C3+G3": {
        "covid": (1, 1),
        "normal": (0.896, 0.997),
        "pneumonia_bac": (0.907, 0.909),
        "pneumonia_vir": (0.824, 0.970),
        "macro": (0.907, 0.969),
    },
}


@dataclass(frozen=True)
class Arm:
    """What one classifier learns from, besides the original films.

    Attributes:
        name: Name of the arm, unique in a comparison.
        kind: `"real"`, `"classic"` or `"synthetic"`: the furthest from films that it learns from.
        classic: Classic images per class.
        synthetic: Synthetic images per class.

    Raises:
        ValueError: If a count is below 0, or the counts do not fit the kind.
    """

    name: str
    kind: str
    classic: int = 0
    synthetic: int = 0

    def __post_init__(self):
        fits = {
            "real": self.classic == self.synthetic == 0,
            "classic": self.classic > 0 == self.synthetic,
            "synthetic": self.synthetic > 0 <= self.classic,
        }
        if not fits.get(self.kind):
            raise ValueError(
                f"arms are real, classic (with classic images) or synthetic. Received: {self}"
            )


def reference_arms(classic=(500, 1000, 2000, 3000), synthetic=(100, 500, 1000, 2000)):
    """Returns the reference study's nine arms, `O1` to `O1+C3+G4`.

    Args:
        classic: The four sizes of the classic set, images per class.
        synthetic: The four sizes of the synthetic set, images per class.

    Returns:
        Dict from name to `Arm`, in the study's order.
    """
    arms = [Arm("O1", "real")]
    arms += [Arm(f"O1+C{i}", "classic", n) for i, n in enumerate(classic, 1)]
    arms += [Arm(f"O1+C3+G{i}", "synthetic", classic[2], n) for i, n in enumerate(synthetic, 1)]
    return {arm.name: arm for arm in arms}


REFERENCE_ARMS = reference_arms()
MAIN_ARMS = ("O1", "O1+C3", "O1+C3+G3")


def double_softmax_loss(labels, logits):
    """The study's loss: cross entropy of a softmax of a softmax, never under 0.744 for 4 classes.

    Args:
        labels: int (n,) true classes.
        logits: float32 (n, k) logits.

    Returns:
        float32 (n,) losses.
    """
    # Not Keras' function: in a graph it finds the softmax and takes the logits from before it.
    labels = tf.reshape(tf.cast(labels, tf.int32), (-1,))
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.nn.softmax(logits))


def fit_classifier(
    model,
    images,
    labels,
    epochs=750,
    batches=4,
    batch_size=64,
    seed=0,
    *,
    validation=None,
    double_softmax=False,
    folder=None,
    title=None,
):
    """Trains a classifier by the reference protocol: SGD, momentum 0.9, rate 0.01.

    An epoch is `batches` batches drawn with replacement, a function of (seed, step).

    Args:
        model: Model float32 (n, h, w, 1) -> logits (n, k).
        images: uint8 (n, h, w, 1).
        labels: int (n,).
        epochs: Epochs in all.
        batches: Batches an epoch.
        batch_size: Images a batch.
        seed: Integer seed of the batches.
        validation: `(images, labels)`, watched 25 times over the training and never used to choose.
        double_softmax: `True` for the study's loss.
        folder: Folder of checkpoints, with which the training resumes.
        title: Of the progress bar.

    Returns:
        The history, a DataFrame `epoch, loss, accuracy[, val_loss, val_accuracy]`.

    Raises:
        ValueError: If images and labels differ in length, are none or of another dtype, or the
            folder's training is of other images, labels or options.
        FloatingPointError: If the training produced NaN.
    """
    images, labels, known = check_uint8(images), np.asarray(labels), model.output_shape[-1]
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            "images and labels must be of one length above 0. "
            f"Received: {len(images)} and {len(labels)}"
        )
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < known:
        raise ValueError(
            f"labels must be integers of 0 to {known - 1}, as the model has outputs. Received: "
            f"{labels.dtype} {np.unique(labels)[:5]}"
        )
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = double_softmax_loss if double_softmax else plain
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        _prepare_for_workers(model, images[:1], labels[:1])
    stop, callbacks, first, history = StopOnNaN(), [], 0, []
    if folder:
        if is_chief(model):
            facts = {"batches": batches, "batch_size": batch_size, "seed": seed}
            facts["double_softmax"] = bool(double_softmax)
            facts["images"] = short_hash(images.tobytes())
            facts["labels"] = short_hash(labels.astype(np.int64).tobytes())
            begin(folder, {}, **facts)
        checkpoint = Checkpoint(Path(folder) / "checkpoint", max(1, epochs // 5))
        first, callbacks = checkpoint.restore(model), [checkpoint]
    else:
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: history.append({"epoch": epoch + 1, **logs})
        )
        callbacks = [note]
    if first < epochs:
        model.fit(
            _samples(images, labels, batch_size, batches, seed, first),
            initial_epoch=first,
            epochs=epochs,
            validation_data=validation and (to_float(validation[0]), np.asarray(validation[1])),
            validation_freq=max(1, epochs // 25),
            callbacks=[stop, *callbacks, Progress(title or model.name)],
            verbose=0,
            shuffle=False,
        )
    if stop.reason:
        raise FloatingPointError(stop.reason)
    return pd.DataFrame(checkpoint.history if folder else history)


def _prepare_for_workers(model, images, labels):
    """Does what Keras' `fit` fails at on several workers: builds the metrics, shapes the logs."""
    build_by_hand(model)
    with model.distribute_strategy.scope():
        x, y = to_float(images), np.asarray(labels)
        predicted = model(x, training=False)
        model.compute_loss(x, y, predicted)
        model.compute_metrics(x, y, predicted)
        model.reset_metrics()

    def averaged(step):
        return lambda data: workers_logs(step(data))

    model.train_step, model.test_step = averaged(model.train_step), averaged(model.test_step)


def _samples(images, labels, batch_size, batches, seed, first_epoch):
    """Batches drawn with replacement; one iteration is one epoch."""
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)

    def batch(step):
        chosen = tf.random.stateless_uniform(
            (batch_size,), tf.stack([tf.constant(seed, tf.int64), step]), 0, len(labels), tf.int32
        )
        picked = tf.cast(tf.gather(images, chosen), tf.float32) / 127.5 - 1
        return picked, tf.gather(labels, chosen)

    steps = epoch_numbers(first_epoch).flat_map(
        lambda epoch: tf.data.Dataset.range(epoch * batches, (epoch + 1) * batches)
    )
    steps = steps.apply(tf.data.experimental.assert_cardinality(batches))
    return steps.map(batch).prefetch(2)


def predict(model, images, evaluation="deterministic", passes=100):
    """Predicts class probabilities, as one should or as the reference study did.

    Args:
        model: Classifier, float32 images -> logits.
        images: uint8 (n, h, w, 1).
        evaluation: `"deterministic"`: one pass in inference mode. `"reference"`: many passes over
            the same images with dropout on and BatchNorm on the batch's own statistics, only to
            reproduce the study's numbers; they are not independent looks at the images.
        passes: Passes of the reference evaluation.

    Returns:
        float32 probabilities: (n, k), or (passes, n, k) for `"reference"`. The model is unchanged.

    Raises:
        ValueError: If `evaluation` is neither.
    """
    if evaluation not in EVALUATIONS:
        raise ValueError(f"evaluation must be one of {EVALUATIONS}. Received: {evaluation!r}")
    if evaluation == "deterministic":
        return predict_mean(model, images, flips=False)
    batch, run = tf.constant(to_float(images)), tf.function(model)
    kept = [tf.identity(variable) for variable in model.variables]
    outputs = [tf.nn.softmax(run(batch, training=True)).numpy() for _ in range(passes)]
    for variable, value in zip(model.variables, kept, strict=True):
        variable.assign(value)  # BatchNorm's moving statistics and dropout's seeds moved
    return np.stack(outputs)


def compare_arms(
    arms,
    train,
    test,
    classic=None,
    synthetic=None,
    folder=None,
    *,
    seeds=(0,),
    protocol="patient",
    epochs=750,
    batches=4,
    double_softmax=False,
    passes=100,
):
    """Fits one classifier per arm and seed, and scores each on the test films in both ways.

    A finished arm is read back from `folder`, a broken one resumes.

    Args:
        arms: Iterable of `Arm`.
        train: The original training `Films`.
        test: The test `Films`.
        classic: The stored classic set (`classic_set`), or `None` if no arm needs it.
        synthetic: The stored synthetic set (`synthesise`), or `None` if no arm needs it.
        folder: Folder of the arms' results.
        seeds: Seeds of the classifiers.
        protocol: `"patient"` or `"reference"`: only the latter, the study's own split, may have a
            patient on both sides, and it is named in every row.
        epochs: Epochs of a classifier, as in `fit_classifier`.
        batches: Batches an epoch.
        double_softmax: `True` for the study's loss.
        passes: Passes of the reference evaluation, as in `predict`.

    Returns:
        A tidy DataFrame `arm, kind, classic, synthetic, protocol, seed, evaluation, class,
        metric, value, low, high, n, data_hash`, with Wilson intervals where the value is a share
        of films.

    Raises:
        ValueError: If a patient is on both sides under `protocol="patient"`, a set is missing or
            too small for an arm, the sets' classes differ, two arms share a name, or an arm in the
            folder was fitted to other films or with other options.
    """
    _check_split(train, test, protocol)
    arms = list(arms)
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"arms need names of their own. Received: {[arm.name for arm in arms]}")
    options = {
        "epochs": epochs,
        "batches": batches,
        "double_softmax": double_softmax,
        "passes": passes,
    }
    facts = {"protocol": protocol, "data_hash": train.hash[:16]}
    tables = []
    for seed in seeds:
        for arm in arms:
            home = Path(folder) / f"{arm.name}-seed{seed}" if folder else None
            sets = _training_set(arm, train, classic, synthetic)
            if home:
                stored = {"classic": classic, "synthetic": synthetic}
                hashes = {kind: each.hash for kind, each in stored.items() if getattr(arm, kind)}
                hashes |= {"films": train.hash, "test": test.hash}
                begin(home, {arm.name: asdict(arm)}, seed=seed, **hashes, **options)
            rows = _finished(home) if home else None
            if rows is None:
                rows = _run_arm(arm, sets, test, seed, home, **options)
            tables.append(rows.assign(**facts))
    return pd.concat(tables, ignore_index=True)


def _check_split(train, test, protocol):
    shared = set(train.patients) & set(test.patients)
    if shared and protocol != "reference":
        raise ValueError(
            f"patients on both sides of the split: {', '.join(sorted(shared))}; take them out of "
            "the training films (train.without_patients(...)), or name the study's own split with "
            "protocol='reference'"
        )


def _training_set(arm, train, classic, synthetic):
    images, labels = [train.images], [train.labels]
    for name, stored, count in (
        ("classic", classic, arm.classic),
        ("synthetic", synthetic, arm.synthetic),
    ):
        if not count:
            continue
        if stored is None or (stored.classes, stored.size) != (train.classes, train.size):
            raise ValueError(
                f"arm {arm.name} needs a {name} set of the classes {train.classes} and {train.size}"
                f" pixels a side. Received: {stored and (stored.classes, stored.size)}"
            )
        order = pd.Series(stored.labels).groupby(stored.labels).cumcount().to_numpy()
        chosen = order < count
        if chosen.sum() != count * len(train.classes):
            raise ValueError(
                f"arm {arm.name} needs {count} {name} images per class; the set has fewer"
            )
        images.append(stored.images[chosen])
        labels.append(stored.labels[chosen])
    return np.concatenate(images), np.concatenate(labels)


def _finished(home):
    path = home / "scores.csv"
    return read_table(path, "delete it, and the arm is fitted again") if path.is_file() else None


def _run_arm(arm, sets, test, seed, home, passes, **options):
    keras.utils.set_random_seed(seed)
    model = build_classifier(test.size, len(test.classes))
    history = fit_classifier(
        model,
        *sets,
        seed=seed,
        folder=home,
        validation=(test.images, test.labels),
        title=f"{arm.name}, seed {seed}",
        **options,
    )
    probabilities = {way: predict(model, test.images, way, passes) for way in EVALUATIONS}
    rows = pd.concat(
        [_score(test, probabilities[way]).assign(evaluation=way) for way in EVALUATIONS]
    ).assign(arm=arm.name, kind=arm.kind, classic=arm.classic, synthetic=arm.synthetic, seed=seed)
    if home:
        home.mkdir(parents=True, exist_ok=True)
        write_model(model, home / "classifier.keras")
        write_text(home / "history.csv", history.to_csv(index=False))
        predicted = pd.DataFrame(probabilities["deterministic"], columns=list(test.classes))
        predicted.insert(0, "label", [test.classes[label] for label in test.labels])
        predicted.insert(0, "filename", test.index["filename"].to_numpy())
        write_text(home / "predictions.csv", predicted.to_csv(index=False))
        # Last of all: this file says that the arm is finished.
        write_text(home / "scores.csv", rows.to_csv(index=False))
    return rows


def _score(test, probabilities):
    """Scores one pass, or the mean of many, with Wilson intervals for shares of films."""
    passes = probabilities if probabilities.ndim == 3 else probabilities[None]
    tables = [classification_scores(test.labels, one, test.classes) for one in passes]
    rows = tables[0].assign(value=np.mean([table["value"] for table in tables], axis=0))
    return with_intervals(rows, test)


def with_intervals(rows, films):
    """Returns a tidy table of scores with their 95 % Wilson intervals, where they have one.

    Args:
        rows: DataFrame `class, metric, value, ...` of scores on these films.
        films: The `Films` that were classified.

    Returns:
        The table with the columns `n, low, high`: the films that a score is a share of, 0 where it
        is of none (NaN bounds), and the bounds.
    """
    counts = pd.Series(films.labels).value_counts()
    own = {name: int(counts.get(i, 0)) for i, name in enumerate(films.classes)}

    def share_of(kind, metric):
        if metric == "accuracy":
            return len(films)
        if kind == "macro" or metric not in ("sensitivity", "specificity"):
            return 0
        return own[kind] if metric == "sensitivity" else len(films) - own[kind]

    n = [share_of(*key) for key in rows[["class", "metric"]].itertuples(index=False)]
    bounds = [
        wilson_interval(value * count, count) if count else (np.nan, np.nan)
        for value, count in zip(rows["value"], n, strict=True)
    ]
    return rows.assign(n=n, low=[low for low, _ in bounds], high=[high for _, high in bounds])


def published_value(arm, kind, metric):
    """Returns what the study published of an arm, or NaN.

    Args:
        arm: Name of the arm; a second word, such as `"ours"` in `"O1+C3+G3 ours"`, is passed over.
        kind: Class, or `"macro"`.
        metric: Name of the metric.
    """
    name = arm.split()[0]
    if (kind, metric) == ("macro", "accuracy"):
        return PUBLISHED_ACCURACY.get(name, np.nan)
    pair = PUBLISHED_CLASSES.get(name, {}).get(kind, (np.nan, np.nan))
    return dict(zip(("sensitivity", "specificity"), pair, strict=True)).get(metric, np.nan)


def with_published(rows, films=None):
    """Returns a tidy table `arm, class, metric, ...` with the column `published` beside it.

    Args:
        rows: The table.
        films: The `Films` scored, if they may be others than the study's: nothing published
            compares with those, and all is NaN.
    """
    of_study = films is None or films.name in COLLECTIONS
    keys = rows[["arm", "class", "metric"]].itertuples(index=False)
    return rows.assign(published=[published_value(*key) if of_study else np.nan for key in keys])


def reproduce(
    films,
    folder,
    synthetic,
    seeds=10,
    on_arm=None,
    *,
    arms=REFERENCE_ARMS,
    again=MAIN_ARMS,
    n_jobs=1,
    epochs=750,
    batches=4,
    double_softmax=True,
    passes=100,
):
    """Repeats the study's comparison on its own split: nine arms once, then some many times.

    These come first. Finished arms are read back from the folder. Where a synthetic set holds
    fewer images than an arm asks for, its images are repeated up to that count, so that the shares
    of real and synthetic images in a batch stay the study's.

    Args:
        films: The collection's `Films`, with the splits `train` and `test`.
        folder: Folder of the arms and of the stored classic set.
        synthetic: Dict from a suffix of the arms' names to the synthetic `Films` they use: `""` for
            the study's own samples, `"ours"` for others, whose arms are `"O1+C3+G3 ours"`.
        seeds: Classifiers of the arms `again`, or their seeds, such as `range(1, 10)` to go on from
            a first run; the other arms have seed 0 alone.
        on_arm: Function of the table so far, called after every arm.
        arms: Dict of the arms.
        again: Names of the arms of every seed.
        n_jobs: Arms fitted at a time.
        epochs: Epochs of a classifier, as in `fit_classifier`.
        batches: Batches an epoch.
        double_softmax: `True` for the study's loss.
        passes: Passes of the reference evaluation, as in `predict`.

    Returns:
        Tidy DataFrame `arm, seed, evaluation, class, metric, value, published, data_hash`;
        `published` is NaN where the films are not the study's.

    Raises:
        BlockingIOError: If another process works in the folder.
        ValueError: If the folder was begun with other films, sets or options, or an arm is unknown.

    Example:
        >>> table = reproduce(load_films("covid-xray-64"), "runs/reproduction", {"": samples})
    """
    if unknown := set(again) - {*arms, *MAIN_ARMS}:
        raise ValueError(f"arms are {[*arms]}. Received: {sorted(unknown)}")
    options = {
        "epochs": epochs,
        "batches": batches,
        "double_softmax": double_softmax,
        "passes": passes,
    }
    facts = {f"synthetic {suffix}".strip(): each.hash for suffix, each in synthetic.items()}
    with locked(folder):
        begin(folder, facts, films=films.hash, **options)
        train, test = films.split("train"), films.split("test")
        classic, sets = _stored_sets(train, folder, synthetic, arms)
        home, seeds = Path(folder) / "arms", range(seeds) if isinstance(seeds, int) else seeds
        jobs = [
            (number, [arm], train, test, classic, sets.get(suffix), home, seed, options)
            for number, (arm, seed, suffix) in enumerate(plan(arms, sets, seeds, again))
        ]
        done, table = {}, pd.DataFrame()
        for number, rows in parallel(_reproduced, jobs, n_jobs):
            done[number] = rows
            table = pd.concat([done[number] for number in sorted(done)], ignore_index=True)
            if on_arm:
                on_arm(table)
    return table


def reproduce_by_transfer(films, folder, synthetic, encoder, arms=REFERENCE_ARMS):
    """Fits a linear model on pretrained features to the study's arms: minutes, not hours.

    Each arm's images are learnt from as they are, in one convex fit that knows no seed.

    Args:
        films: The collection's `Films`, with the splits `train` and `test`.
        folder: Folder of the stored classic set.
        synthetic: Dict of synthetic `Films`, as for `reproduce`.
        encoder: `quality.Encoder` of the features, such as `Encoder.regions(path)`.
        arms: Dict of the arms.

    Returns:
        The rows of `reproduce`, of the evaluation `"transfer"` (`fit_transfer`) and seed 0.

    Raises:
        BlockingIOError: If another process works in the folder.
    """
    train, test = films.split("train"), films.split("test")
    with locked(folder):
        classic, sets = _stored_sets(train, folder, synthetic, arms)
    encoder, tables = _remembering(encoder), []
    for arm, seed, suffix in plan(arms, sets, (0,)):
        images = _training_set(arm, train, classic, sets.get(suffix))
        chances = fit_transfer(encoder, *images, classic=False)(test.images)
        rows = classification_scores(test.labels, chances, test.classes)
        tables.append(rows.assign(arm=arm.name, seed=seed, evaluation="transfer"))
    table = pd.concat(tables, ignore_index=True).assign(data_hash=train.hash[:16])
    return with_published(table, films)[_REPRODUCTION]


def _remembering(encoder):
    """The encoder, which looks at no image twice: arms share most of theirs."""
    known = {}

    def encode(images):
        keys = [image.tobytes() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        if new:
            known.update(zip(new, encoder(np.stack(list(new.values()))), strict=True))
        return np.stack([known[key] for key in keys])

    return encode


def _stored_sets(train, folder, synthetic, arms):
    """The classic set, and the synthetic ones by suffix, as large as the arms want them."""
    largest = {kind: max(getattr(arm, kind) for arm in arms.values()) for kind in _SETS}
    sets = {suffix: each.repeated(largest["synthetic"]) for suffix, each in synthetic.items()}
    count = largest["classic"]
    return classic_set(train, count, Path(folder) / "classic") if count else None, sets


def _reproduced(number, arms, train, test, classic, synthetic, folder, seed, options):
    """One arm of the reproduction: its number, and its rows beside what was published."""
    options = {**options, "seeds": (seed,), "protocol": "reference"}
    rows = compare_arms(arms, train, test, classic, synthetic, folder, **options)
    return number, with_published(rows, train)[_REPRODUCTION]


_SETS = ("classic", "synthetic")
_REPRODUCTION = ["arm", "seed", "evaluation", "class", "metric", "value", "published", "data_hash"]


def plan(arms, sets, seeds, again=()):
    """What `reproduce` fits, in order: `again` first, then all other arms, then `again` once more.

    Args:
        arms: Dict of the arms.
        sets: Suffixes of the synthetic sets.
        seeds: The seeds.
        again: Names of the arms of every seed; the others are of seed 0 alone.

    Yields:
        Triples (arm, seed, suffix of its synthetic set).
    """
    own = [
        (replace(arm, name=f"{arm.name} {suffix}".strip()), suffix)
        for arm in arms.values()
        for suffix in (sets if arm.synthetic else [""])
    ]
    own = sorted(own, key=lambda each: each[0].name.split()[0] not in again)
    some = [(arm, suffix) for arm, suffix in own if arm.name.split()[0] in again]
    for seed in seeds:
        yield from ((arm, seed, suffix) for arm, suffix in (some if seed else own))


def seed_noise(table):
    """Says which published values lie within what the seed alone does to ours.

    Args:
        table: Table of `reproduce`.

    Returns:
        DataFrame `arm, evaluation, class, metric, published, mean, sd, low, high, seeds, within`:
        95 % prediction intervals of one more run, for arms of three seeds or more.
    """
    keys, rows = ["arm", "evaluation", "class", "metric"], []
    for key, own in table.dropna(subset=["published"]).groupby(keys, sort=False):
        n, mean, sd = len(own), own["value"].mean(), own["value"].std()
        if n > 2:
            half = stats.t.ppf(0.975, n - 1) * sd * np.sqrt(1 + 1 / n)
            published = own["published"].iloc[0]
            within = mean - half - 5e-4 <= published <= mean + half + 5e-4  # published rounded
            rows.append((*key, published, mean, sd, mean - half, mean + half, n, within))
    columns = [*keys, "published", "mean", "sd", "low", "high", "seeds", "within"]
    return pd.DataFrame(rows, columns=columns)


def accuracy_curve(comparison, published=False):
    """Returns total accuracy against images per class, for `plots.plot_accuracy_curve`.

    Args:
        comparison: Table of `compare_arms` on the reference arms.
        published: `True` adds the study's published accuracy where the arm is one of its nine.

    Returns:
        DataFrame `arm, kind, count, seed, evaluation, value, low, high, n, published`; `count` is
        the images per class added by the arm's kind, `n` the test films.
    """
    rows = comparison[comparison["metric"] == "accuracy"].copy()
    synthetic = rows["kind"] == "synthetic"
    rows["count"] = np.where(synthetic, rows["synthetic"], rows["classic"])
    rows["published"] = rows["arm"].map(PUBLISHED_ACCURACY) if published else np.nan
    columns = ["arm", "kind", "count", "seed", "evaluation", "value", "low", "high"]
    return rows[[*columns, "n", "published"]].reset_index(drop=True)


def confusion_of(folder, arm, seed=0):
    """Returns the confusion matrix of a finished arm's deterministic predictions.

    Args:
        folder: Folder given to `compare_arms`.
        arm: Name of the arm.
        seed: Its seed.

    Returns:
        int (k, k) counts, true classes in rows.

    Raises:
        FileNotFoundError: If the arm has not been fitted there.
    """
    table = _arm_table(folder, arm, seed, "predictions")
    classes = list(table.columns[2:])
    labels = [classes.index(label) for label in table["label"]]
    return confusion(labels, table[classes].to_numpy().argmax(1), len(classes))


def history_of(folder, arm, seed=0):
    """Returns the training history of a finished arm.

    Args:
        folder: Folder given to `compare_arms`.
        arm: Name of the arm.
        seed: Its seed.

    Returns:
        DataFrame `epoch, loss, accuracy, val_loss, val_accuracy`.

    Raises:
        FileNotFoundError: If the arm has not been fitted there.
    """
    return _arm_table(folder, arm, seed, "history")


def _arm_table(folder, arm, seed, name):
    path = Path(folder) / f"{arm}-seed{seed}" / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: fit arm {arm} with seed {seed} by compare_arms first")
    return read_table(path, "delete it, and the arm is fitted again")
