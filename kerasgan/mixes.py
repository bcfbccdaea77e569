"""The arms of the honest evaluation: what a classifier learns from, declared in one line each."""

from dataclasses import dataclass

import numpy as np

from kerasgan.quality import hog_features, hog_svc

OVERDRAW = 2  # a filter keeps the best of this many times the samples an arm needs


_CHOICES = {
    "kind": ("real", "classic", "duplicated", "synthetic", "baseline"),
    "schedule": ("mixed", "first", "annealed"),
    "keep": ("all", "confident", "realistic"),
    "gan": ("conditional", "held", "per class"),
    "view": ("whole", "no_lungs"),
}


@dataclass(frozen=True)
class Mix:
    """What a classifier learns from in one arm, in multiples of the training fold.

    Every arm of a network takes the same number of gradient steps on batches of the same size.

    Attributes:
        name: Name of the arm.
        kind: `"real"`, `"classic"`, `"duplicated"`, `"synthetic"`, or `"baseline"`, which is
            described beside the others and never tested.
        classic: `True` augments every batch, real or synthetic, by `ClassicAugmentation`
            (`transfer`: adds augmented images to the plain ones).
        duplicated: Real films added a second time, drawn with replacement within each class.
        synthetic: Samples of the fold's GAN added, within each class.
        originals: `False` leaves the fold's own films out.
        schedule: `"mixed"`: all images together; `"first"`: half of the steps on the added images
            alone, then the originals alone; `"annealed"`: four phases with all, two thirds, a third
            and none of the added images.
        keep: `"all"` samples as drawn, or of twice as many the better half: `"confident"` by an SVM
            fitted to the fold's own films, `"realistic"` by the GAN's discriminator.
        gan: `"conditional"`; `"held"`: one held to the films' features as well, to the moments of
            an encoder's maps only where there is one (`GAN`); or `"per class"`: one GAN a class,
            sharing out the same steps.
        view: What the classifier sees: `"whole"`, or `"no_lungs"`, the shortcut probe.
        without: A class whose films are left out of the training: the source confusion probe.

    Raises:
        ValueError: If a choice is none of these, or an amount below 0.

    Example:
        >>> Mix("twice as many", "synthetic", classic=True, synthetic=2)
    """

    name: str
    kind: str
    classic: bool = False
    duplicated: float = 0.0
    synthetic: float = 0.0
    originals: bool = True
    schedule: str = "mixed"
    keep: str = "all"
    gan: str = "conditional"
    view: str = "whole"
    without: str = ""

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{self.name}: {name} must be one of {known}. Received: {value!r}")
        if not (0 <= self.duplicated < np.inf and 0 <= self.synthetic < np.inf):
            raise ValueError(
                f"{self.name}: duplicated and synthetic must be at least 0, and finite"
            )
        if not (self.duplicated or self.synthetic or self.originals and self.schedule == "mixed"):
            raise ValueError(f"{self.name}: nothing to learn from; give duplicated= or synthetic=")
        if not self.originals and self.schedule != "mixed":
            raise ValueError(f"{self.name}: schedule {self.schedule!r} ends with originals")

    @property
    def drawn(self):
        """Samples to draw, in multiples of the training fold."""
        return self.synthetic * (1 if self.keep == "all" else OVERDRAW)


def _synthetic(name, ratio=1.0, **more):
    return Mix(name, "synthetic", classic=True, synthetic=ratio, **more)


CORE_ARMS = (
    Mix("real", "real"),
    Mix("classic", "classic", classic=True),
    Mix("classic + duplicated", "duplicated", classic=True, duplicated=1),
    _synthetic("classic + synthetic"),
    _synthetic("synthetic only", originals=False),
    _synthetic("synthetic, then real", schedule="first"),
)
# Networks draw batches with replacement, so one duplicated control serves every ratio: more
# duplicates change how often a film is seen by chance alone. `transfer` sees every image once.
FURTHER_ARMS = (
    Mix("real + duplicated", "duplicated", duplicated=1),
    Mix("real + synthetic", "synthetic", synthetic=1),
    _synthetic("classic + synthetic x 0.25", 0.25),
    _synthetic("classic + synthetic x 0.5", 0.5),
    _synthetic("classic + synthetic x 2", 2),
    _synthetic("classic + synthetic x 4", 4),
    _synthetic("confident samples", keep="confident"),
    _synthetic("realistic samples", keep="realistic"),
    _synthetic("held samples", gan="held"),
    _synthetic("held samples x 0.5", 0.5, gan="held"),
    _synthetic("held samples only", originals=False, gan="held"),
    Mix("real + held samples", "synthetic", synthetic=1, gan="held"),
    _synthetic("per-class GANs", gan="per class"),
    _synthetic("synthetic, annealed", schedule="annealed"),
    _synthetic("held samples, annealed", gan="held", schedule="annealed"),
)
PROBES = (
    Mix("no lungs", "baseline", classic=True, view="no_lungs"),
    Mix("no covid films", "baseline", classic=True, without="covid"),
)


@dataclass(frozen=True)
class Samples:
    """Samples of a fold's GAN, each class in the order drawn.

    Attributes:
        images: uint8 (n, h, w, 1).
        labels: int (n,).
        realism: float (n,), the discriminator's logits.
    """

    images: np.ndarray
    labels: np.ndarray
    realism: np.ndarray


def training_sets(arm, train, samples, seed):
    """Returns the images an arm learns from, phase by phase.

    Args:
        arm: The `Mix`.
        train: The training fold's `Films`.
        samples: `Samples` of the fold's GAN, at least `arm.drawn` times the films of each class,
            or `None`.
        seed: Integer seed of the duplicates and of what annealing leaves out.

    Returns:
        List of `(share of the steps, uint8 images, int labels)`.
    """
    # Not the stream that `fit_transfer` draws from.
    rng, counts = np.random.default_rng([seed, 1]), np.bincount(train.labels)
    if arm.without in train.classes:
        counts[train.classes.index(arm.without)] = 0
    own = np.flatnonzero(train.index["class"].to_numpy() != arm.without)
    real = (train.images[own], train.labels[own])
    copies = [
        rng.choice(np.flatnonzero(train.labels == label), int(np.ceil(arm.duplicated * count)))
        for label, count in enumerate(counts)
    ]
    copies = np.concatenate(copies).astype(int)
    added = (train.images[copies], train.labels[copies])
    if arm.synthetic:
        chosen = _chosen(arm, train, samples, counts)
        added = _joined([added, (samples.images[chosen], samples.labels[chosen])])
    if arm.schedule == "first":
        return [(0.5, *added), (0.5, *real)]
    if arm.schedule == "annealed":
        rank = rng.permutation(len(added[1])) / max(len(added[1]), 1)
        parts = [(added[0][rank < share], added[1][rank < share]) for share in (1, 2 / 3, 1 / 3, 0)]
        return [(0.25, *_joined([real, part])) for part in parts]
    return [(1.0, *(_joined([real, added]) if arm.originals else added))]


def _chosen(arm, train, samples, counts):
    """Positions of the samples an arm takes: of each class the first, or the best of the first."""
    if arm.keep == "confident":
        score = hog_svm(train, samples.images)[np.arange(len(samples.labels)), samples.labels]
    else:
        score = samples.realism if arm.keep == "realistic" else np.zeros(len(samples.labels))
    chosen = []
    for label, count in enumerate(np.ceil(arm.synthetic * counts).astype(int)):
        first = np.flatnonzero(samples.labels == label)
        first = first[: count if arm.keep == "all" else OVERDRAW * count]
        chosen.append(first[np.argsort(-score[first], kind="stable")[:count]])
    return np.concatenate(chosen)


def _joined(parts):
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def hog_svm(train, images):
    """Fits an SVM to HOG features of films; returns probabilities, the softmax of its decisions.

    Args:
        train: `Films` to fit.
        images: uint8 (n, h, w, 1) to predict.

    Returns:
        float (n, classes), rows summing to 1.
    """
    from scipy.special import softmax

    model = hog_svc().fit(hog_features(train.images), train.labels)
    decisions = model.decision_function(hog_features(images))
    if decisions.ndim == 1:  # of two classes the SVM gives one number, above 0 for the second
        decisions = np.stack([-decisions, decisions], axis=1)
    return softmax(decisions, axis=1)


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
