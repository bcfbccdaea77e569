"""Classification scores, their intervals and the tests between classifiers: functions of arrays."""

import warnings

import numpy as np
import pandas as pd
from imblearn.metrics import sensitivity_specificity_support
from scipy import stats
from sklearn import metrics
from statsmodels.stats import contingency_tables, multitest, power, proportion


def classification_scores(labels, probabilities, classes):
    """Scores predicted probabilities, for each class against the rest and on average.

    The prediction is the most probable class. Undefined scores are NaN: sensitivity and AUC of a
    class no film has, precision of a class never predicted. A macro value is the mean over the
    classes in which the score is defined.

    Args:
        labels: true classes, integers (n,) in `[0, k)`.
        probabilities: predicted probabilities, floats (n, k), rows summing to 1.
        classes: the k class names in label order.

    Returns:
        DataFrame with columns `class`, `metric`, `value`: for every class and `"macro"`, rows of
        `sensitivity`, `specificity`, `precision`, `f1`, `auc` (one against the rest); for `"macro"`
        alone `accuracy`, `balanced_accuracy`, `ece` (see `calibration_table`) and, with both kinds
        of pneumonia among the classes, `auc_bac_vir`: the AUC of bacterial against viral films by
        themselves, their two probabilities rescaled to sum to 1.

    Example:
        >>> classification_scores([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["ill", "well"])
    """
    labels, probabilities = _checked(labels, probabilities, len(classes))
    kinds, predicted = np.arange(len(classes)), probabilities.argmax(axis=1)
    precision, sensitivity, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=kinds, zero_division=np.nan
    )
    with warnings.catch_warnings():  # imbalanced-learn warns, and says 0 where nothing is defined
        warnings.simplefilter("ignore")
        specificity = sensitivity_specificity_support(labels, predicted, labels=kinds)[1]
    by_class = {
        "sensitivity": sensitivity,
        "specificity": np.where(support < len(labels), specificity, np.nan),
        "precision": precision,
        "f1": f1,
        "auc": [auc(labels == kind, probabilities[:, kind]) for kind in kinds],
    }
    bins = calibration_table(labels, probabilities)
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)
    overall = {
        "accuracy": np.mean(predicted == labels),
        "balanced_accuracy": np.nanmean(sensitivity),
        "ece": np.average(gaps, weights=bins["count"]),
    }
    if {"pneumonia_bac", "pneumonia_vir"} <= set(classes):
        pair = [list(classes).index(name) for name in ("pneumonia_bac", "pneumonia_vir")]
        overall["auc_bac_vir"] = _auc_between(labels, probabilities, pair)
    table = pd.DataFrame(by_class, index=list(classes)).astype(float)
    table.loc["macro"] = table.mean()
    table = table.rename_axis("class").reset_index().melt("class", var_name="metric")
    macro = {"class": "macro", "metric": list(overall), "value": list(overall.values())}
    return pd.concat([table, pd.DataFrame(macro)], ignore_index=True)


def confusion(labels, predictions, n_classes):
    """Counts films by true class (rows) and predicted class (columns), int (classes, classes)."""
    return metrics.confusion_matrix(labels, predictions, labels=np.arange(n_classes))


def calibration_table(labels, probabilities, bins=10):
    """Bins films by the confidence of their prediction, for a reliability plot (Guo et al. 2017).

    Args:
        labels: true classes, integers (n,).
        probabilities: predicted probabilities, floats (n, k), rows summing to 1.
        bins: number of equal bins between 0 and 1.

    Returns:
        DataFrame, a row a bin: its edges `low` and `high`, `count`, mean `confidence`, `accuracy`
        and the 95 % Wilson interval `accuracy_low`, `accuracy_high`; NaN where a bin is empty.
    """
    labels, probabilities = _checked(labels, probabilities, np.shape(probabilities)[-1])
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    position = np.minimum((confidence * bins).astype(int), bins - 1)
    count, hits, total = (
        np.bincount(position, weights, minlength=bins) for weights in (None, right, confidence)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = proportion.proportion_confint(hits, count, method="wilson")
        table = {"count": count, "confidence": total / count, "accuracy": hits / count}
    edges = np.linspace(0, 1, bins + 1)
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], **table, "accuracy_low": low, "accuracy_high": high}
    )


def wilson_interval(successes, n, confidence=0.95):
    """Wilson interval `(low, high)` of a proportion of n independent films, of 30 / 36: 0.68, 0.92.

    Where patients have several films, prefer `bootstrap_interval`.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"Needs 0 <= successes <= n and n >= 1. Received: {successes=}, {n=}")
    low, high = proportion.proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def bootstrap_interval(statistic, *arrays, groups=None, resamples=1000, confidence=0.95, seed=0):
    """Percentile bootstrap interval of any statistic, drawing whole patients with replacement.

    Films of one patient resemble each other, so patients are drawn, each with all of its films. To
    compare two classifiers, give the predictions of both and a statistic of the difference.

    Args:
        statistic: function of the arrays that returns a number; draws in which it is NaN (no film
            of some class) are left out.
        *arrays: arrays of equal length n, drawn together: labels, probabilities, ...
        groups: patient of each film, (n,); `""` or None makes a film a patient of its own.
        resamples: number of draws.
        confidence: level of the interval.
        seed: seed of the draws.

    Returns:
        `(value, low, high)`: the statistic of the arrays as given, and its interval.

    Example:
        >>> value, low, high = bootstrap_interval(np.mean, [1, 1, 0, 1], groups=["a", "a", "b", ""])
    """
    arrays = [np.asarray(array) for array in arrays]
    films = group_positions(groups, len(arrays[0]))
    lengths = [len(array) for array in arrays]
    if len(films) < 2 or len(set(lengths)) > 1:
        received = f"{lengths=}, patients={len(films)}"
        raise ValueError(f"Needs arrays of equal length and two patients. Received: {received}")

    def of_patients(drawn):
        chosen = np.concatenate([films[patient] for patient in drawn])
        return statistic(*(array[chosen] for array in arrays))

    rng = np.random.default_rng(seed)
    draws = [of_patients(drawn) for drawn in rng.integers(len(films), size=(resamples, len(films)))]
    low, high = pd.Series(draws).quantile([(1 - confidence) / 2, (1 + confidence) / 2])
    return float(statistic(*arrays)), float(low), float(high)


def group_positions(groups, n):
    """Lists the positions of each patient's films among n; films of unknown patient stand alone."""
    groups = [""] * n if groups is None else ["" if pd.isna(g) else str(g) for g in groups]
    if len(groups) != n:
        raise ValueError(f"groups must name a patient per film, {n}. Received: {len(groups)}")
    keys = np.array([group or i for i, group in enumerate(groups)], object)
    codes = pd.factorize(keys)[0]
    return [np.flatnonzero(codes == patient) for patient in range(codes.max() + 1)]


def corrected_t_test(differences, n_train, n_test, confidence=0.95):
    """Corrected resampled t-test of paired differences over the folds of repeated cross-validation.

    Folds share training films, so their differences depend on each other and a plain t-test finds
    what is not there; the correction adds `n_test / n_train` to the variance of the mean.

    Args:
        differences: one number a fold and repeat, (j,), j >= 2; average over seeds first.
        n_train: films in a training fold.
        n_test: films in a test fold.
        confidence: level of the interval.

    Returns:
        `(mean, low, high, p)`, two-sided; without any spread, p is 1 if the mean is 0, else 0.

    Example:
        >>> mean, low, high, p = corrected_t_test([0.02, 0.01, 0.03, 0.00, 0.02], 245, 61)

    Reference:
        Nadeau and Bengio 2003, Inference for the Generalization Error.
    """
    differences = np.asarray(differences, float)
    mean, df, spread = differences.mean(), len(differences) - 1, np.ptp(differences) != 0
    error = _corrected_error(differences.std(ddof=min(df, 1)), len(differences), n_train, n_test)
    half = stats.t.ppf((1 + confidence) / 2, df) * error if spread else 0.0
    p = 2 * stats.t.sf(abs(mean) / error, df) if spread else float(mean == 0)
    return float(mean), float(mean - half), float(mean + half), float(p)


def minimum_detectable_effect(sd, n_differences, n_train, n_test, wanted_power=0.8, alpha=0.05):
    """Smallest true difference that `corrected_t_test` finds with the given power.

    Args:
        sd: standard deviation of the differences between folds.
        n_differences: their number, folds times repeats, at least 2.
        n_train: films in a training fold.
        n_test: films in a test fold.
        wanted_power: probability of finding the difference, above `alpha`.
        alpha: two-sided level of the test.
    """
    error = _corrected_error(sd, n_differences, n_train, n_test)
    # statsmodels solves the plain test, whose error is sd / sqrt(j): rescale to the corrected one.
    effect = power.TTestPower().solve_power(nobs=n_differences, alpha=alpha, power=wanted_power)
    return float(effect * np.sqrt(n_differences) * error)


def mcnemar(labels, predictions_a, predictions_b):
    """Exact test (McNemar 1947) of two classifiers on the same films, one prediction a film.

    Returns:
        `(only_a, only_b, p)`: films only the first, only the second gets right; two-sided p-value.
    """
    right_a, right_b = (np.equal(labels, given) for given in (predictions_a, predictions_b))
    table = confusion(right_a, right_b, n_classes=2)
    return int(table[1, 0]), int(table[0, 1]), float(contingency_tables.mcnemar(table).pvalue)


def holm(pvalues):
    """Adjusts the p-values of a family of tests (Holm 1979); a NaN stays, and does not count."""
    adjusted = np.array(pvalues, float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multitest.multipletests(adjusted[tested], method="holm")[1]
    return adjusted


def _corrected_error(sd, n_differences, n_train, n_test):
    if n_differences < 2 or n_train < 1 or n_test < 1:
        received = f"{n_differences=}, {n_train=}, {n_test=}"
        raise ValueError(f"Needs two differences or more, and fold sizes. Received: {received}")
    return sd * np.sqrt(1 / n_differences + n_test / n_train)


def auc(positive, score):
    """Area under the ROC curve by ranks (Mann and Whitney 1947): bootstraps want it by thousands.

    Args:
        positive: bool or 0 and 1, (n,).
        score: (n,), high where an item is taken for positive; ties count half.

    Returns:
        float in [0, 1], NaN where all or none are positive.

    Raises:
        ValueError: If a score is NaN or infinite, as those of a broken model are.
    """
    if not np.isfinite(score).all():
        raise ValueError("scores to rank are finite. Received: NaN or infinite ones")
    positive = np.asarray(positive, bool)
    ours, others = positive.sum(), (~positive).sum()
    if not ours or not others:
        return np.nan
    return (stats.rankdata(score)[positive].sum() - ours * (ours + 1) / 2) / (ours * others)


def _auc_between(labels, probabilities, pair):
    either = np.isin(labels, pair)
    first, second = probabilities[either][:, pair].T
    score = np.divide(first, first + second, out=np.full(len(first), 0.5), where=first + second > 0)
    return auc(labels[either] == pair[0], score)


def _checked(labels, probabilities, n_classes):
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, float)
    if len(labels) == 0 or probabilities.shape != (len(labels), n_classes):
        wanted = f"({len(labels)}, {n_classes}), a row a label and a column a class"
        raise ValueError(f"probabilities must be {wanted}. Received: {probabilities.shape}")
    if not np.isin(labels, np.arange(n_classes)).all():
        raise ValueError(f"labels must be integers in [0, {n_classes}). Received: {set(labels)}")
    if not (np.allclose(probabilities.sum(axis=1), 1, atol=1e-3) and probabilities.min() >= 0):
        raise ValueError("Rows of probabilities must be >= 0 and sum to 1: softmax logits first")
    return labels, probabilities
