"""What scores, intervals and tests mean: hand-computed values, coverage, error rates and power."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.model_selection import RepeatedStratifiedKFold

from kerasgan import scores

CLASSES = ("covid", "normal", "pneumonia_bac", "pneumonia_vir")


def table_of(labels, probabilities, classes=CLASSES):
    table = scores.classification_scores(labels, probabilities, classes)
    return table.set_index(["class", "metric"])["value"]


def noisy(labels, strength, rng):
    logits = rng.normal(size=(len(labels), 4)) + strength * np.eye(4)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_perfect_classifier():
    labels = np.repeat(range(4), 9)
    value = table_of(labels, np.eye(4)[labels])
    assert (value.drop(("macro", "ece")) == 1).all()
    assert value["macro", "ece"] == 0
    assert len(value) == 5 * 5 + 4  # five metrics of four classes and macro, then four overall


def test_random_classifier_is_at_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(range(4), 2000)
    value = table_of(labels, noisy(labels, 0, rng))
    for metric, chance in {"accuracy": 0.25, "specificity": 0.75, "f1": 0.25, "auc": 0.5}.items():
        assert value["macro", metric] == pytest.approx(chance, abs=0.02)
    assert value["macro", "auc_bac_vir"] == pytest.approx(0.5, abs=0.03)
    assert value["macro", "ece"] > 0.2  # it is confident without knowing anything


def test_hand_computed_values():
    labels = [0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 1, 1, 2, 2]
    value = table_of(labels, np.eye(3)[predicted] * 0.7 + 0.1, ("a", "b", "c"))
    assert value["a", "sensitivity"] == pytest.approx(2 / 3)
    assert value["a", "specificity"] == 1
    assert value["b", "specificity"] == pytest.approx(3 / 4)
    assert value["b", "precision"] == pytest.approx(1 / 2)
    assert value["c", "f1"] == pytest.approx(2 * (1 / 2) * 1 / (3 / 2))  # precision 1/2, recall 1
    assert value["macro", "sensitivity"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert value["macro", "accuracy"] == pytest.approx(4 / 6)
    assert value["macro", "ece"] == pytest.approx(0.8 - 4 / 6)
    assert value["macro", "balanced_accuracy"] == pytest.approx(value["macro", "sensitivity"])
    assert ("macro", "auc_bac_vir") not in value


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    probabilities = noisy(labels, 1, rng)
    value = table_of(labels, probabilities)
    assert value["macro", "auc"] == pytest.approx(
        metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    ties = probabilities[:, 0].round(1)
    assert scores.auc(labels == 0, ties) == pytest.approx(metrics.roc_auc_score(labels == 0, ties))
    assert np.isnan(scores.auc(labels >= 0, ties)) and np.isnan(scores.auc(labels < 0, ties))
    with pytest.raises(ValueError, match="finite"):
        scores.auc(labels == 0, np.where(labels == 0, np.nan, ties))
    predicted = probabilities.argmax(axis=1)
    assert value["macro", "f1"] == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )


def test_undefined_scores_are_nan_and_macro_leaves_them_out():
    value = table_of([0, 0, 1], np.eye(3)[[0, 0, 0]], ("a", "b", "never"))
    assert np.isnan(value["never", "sensitivity"]) and np.isnan(value["never", "auc"])
    assert np.isnan(value["b", "precision"])  # never predicted
    assert value["b", "f1"] == 0  # yet its films were missed
    assert value["macro", "sensitivity"] == pytest.approx(0.5)
    assert np.isnan(table_of([0, 0], np.eye(2)[[0, 0]], ("a", "b"))["a", "specificity"])


def test_bacterial_against_viral_ignores_other_classes():
    labels = np.array([2, 2, 3, 3, 0, 1])
    probabilities = np.array(
        # rescaled bacterial share: 0.9, 0.4, 0.5, 0.1; the films of other classes do not count
        [[0.8, 0.0, 0.18, 0.02], [0, 0, 0.4, 0.6], [0, 0.98, 0.01, 0.01], [0.9, 0, 0.01, 0.09]]
        + [[1, 0, 0, 0]] * 2
    )
    assert table_of(labels, probabilities)["macro", "auc_bac_vir"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], np.ones((3, 4)) / 4, r"Received: \(3, 4\)"),
        ([0, 4], np.ones((2, 4)) / 4, r"labels must be integers in \[0, 4\)"),
        ([0, 1], np.ones((2, 4)), "softmax"),
        ([0, 1], np.full((2, 4), np.nan), "softmax"),
    ],
)
def test_wrong_input_is_named(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        scores.classification_scores(labels, probabilities, CLASSES)


def test_confusion_keeps_absent_classes():
    assert scores.confusion([0, 0, 1], [0, 1, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_calibration_table_counts_each_film_once():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 300)
    table = scores.calibration_table(labels, noisy(labels, 2, rng))
    filled = table[table["count"] > 0]
    assert table["count"].sum() == 300 and len(table) == 10
    assert filled["confidence"].between(filled["low"], filled["high"]).all()
    assert (filled["accuracy_low"] <= filled["accuracy"] + 1e-9).all()
    assert (filled["accuracy_high"] >= filled["accuracy"] - 1e-9).all()
    assert table[table["count"] == 0]["accuracy"].isna().all()


def test_a_calibrated_classifier_has_little_calibration_error():
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet([0.5] * 4, size=4000)
    labels = np.array([rng.choice(4, p=row) for row in probabilities])
    assert table_of(labels, probabilities)["macro", "ece"] < 0.03


def test_wilson_interval():
    low, high = scores.wilson_interval(30, 36)
    assert (round(low, 2), round(high, 2)) == (0.68, 0.92)
    assert scores.wilson_interval(0, 10)[0] == pytest.approx(0)
    with pytest.raises(ValueError, match="n=0"):
        scores.wilson_interval(0, 0)


def test_wilson_interval_covers_the_truth():
    hits = np.random.default_rng(4).binomial(36, 0.83, size=2000)
    ends = np.array([scores.wilson_interval(n, 36) for n in hits])
    assert np.mean((ends[:, 0] <= 0.83) & (ends[:, 1] >= 0.83)) == pytest.approx(0.95, abs=0.03)


def clustered(rng, patients=40, films=4):
    """Answers that agree within a patient; the mean over patients is 0.7."""
    chance = rng.beta(0.7, 0.3, size=patients)
    return rng.binomial(1, np.repeat(chance, films)), np.repeat(np.arange(patients), films)


def test_bootstrap_by_patient_covers_the_truth_where_films_alone_do_not():
    rng = np.random.default_rng(5)
    covered = {"patients": 0, "films": 0}
    for _ in range(150):
        right, patient = clustered(rng)
        for name, groups in {"patients": patient, "films": None}.items():
            groups = None if groups is None else [f"p{g}" for g in groups]
            _, low, high = scores.bootstrap_interval(np.mean, right, groups=groups, resamples=150)
            covered[name] += low <= 0.7 <= high
    assert covered["patients"] / 150 == pytest.approx(0.94, abs=0.06)
    assert covered["films"] / 150 < 0.83


def test_bootstrap_is_seeded_pairs_arrays_and_leaves_nan_draws_out():
    rng = np.random.default_rng(6)
    labels = np.array([0] * 18 + [1] * 2)
    score = rng.normal(size=20) + labels
    first = scores.bootstrap_interval(scores.auc, labels, score)
    assert first == scores.bootstrap_interval(scores.auc, labels, score)
    assert np.isfinite(first).all() and first[1] <= first[0] <= first[2]
    one, other = (scores.bootstrap_interval(np.mean, score, seed=seed) for seed in (0, 1))
    assert one[0] == other[0] and one[1:] != other[1:]
    paired = scores.bootstrap_interval(lambda a, b: np.mean(a - b), score, score - 0.1)
    assert paired == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_draws_patients_whole():
    groups = ["a", "a", "b", "b", "", ""]
    assert sorted(map(list, scores.group_positions(groups, 6))) == [[0, 1], [2, 3], [4], [5]]
    numbers = scores.group_positions([0, 0, 1, np.nan, None, ""], 6)
    assert sorted(map(list, numbers)) == [[0, 1], [2], [3], [4], [5]]
    sizes = set()
    scores.bootstrap_interval(
        lambda x: sizes.add(tuple(np.bincount(x, minlength=3)[:2] % 2)) or 0.0,
        np.array([0, 0, 1, 1, 2, 2]),
        groups=groups,
        resamples=50,
    )
    assert sizes == {(0, 0)}


def test_bootstrap_errors():
    with pytest.raises(ValueError, match="patients=1"):
        scores.bootstrap_interval(np.mean, [1, 0], groups=["a", "a"])
    with pytest.raises(ValueError, match=r"lengths=\[2, 3\]"):
        scores.bootstrap_interval(np.mean, [1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="groups"):
        scores.bootstrap_interval(np.mean, [1, 0], groups=["a"])


def fold_differences(rng, effect, folds=25, share=0.2):
    """Differences of repeated 5-fold runs: any two correlate by the share of films tested."""
    common = rng.normal() * np.sqrt(share)
    return effect + 0.05 * (common + rng.normal(size=folds) * np.sqrt(1 - share))


def test_corrected_t_test_by_hand():
    differences = np.array([0.02, 0.01, 0.03, 0.00, 0.02])
    mean, low, high, p = scores.corrected_t_test(differences, 240, 60)
    error = np.sqrt(differences.var(ddof=1) * (1 / 5 + 1 / 4))
    assert mean == pytest.approx(0.016)
    assert high - mean == pytest.approx(2.776445 * error) == pytest.approx(mean - low)
    assert p == pytest.approx(2 * stats.t.sf(0.016 / error, 4))
    assert p > stats.ttest_1samp(differences, 0).pvalue  # the correction is never bolder


def test_corrected_t_test_keeps_its_level_in_real_cross_validation():
    # Two classifiers, nearest means, each on four of eight features that tell as much as the rest.
    def differences(seed):
        rng, truth = np.random.default_rng(seed), np.arange(80) % 2
        x = rng.normal(size=(80, 8)) + 0.5 * truth[:, None]
        folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=seed)
        for train, test in folds.split(x, truth):
            means = [x[train][truth[train] == kind].mean(axis=0) for kind in (0, 1)]
            gaps = [(x[test] - mean) ** 2 for mean in means]
            right = [
                (np.argmin([gap[:, own].sum(axis=1) for gap in gaps], axis=0) == truth[test]).mean()
                for own in (slice(0, 4), slice(4, 8))
            ]
            yield right[0] - right[1]

    null = [np.array([*differences(seed)]) for seed in range(300)]
    corrected = [scores.corrected_t_test(d, 64, 16)[3] < 0.05 for d in null]
    plain = [stats.ttest_1samp(d, 0).pvalue < 0.05 for d in null]
    assert 0.005 < np.mean(corrected) < 0.05, "neither bold nor blind"
    assert np.mean(plain) > 0.12


def test_corrected_t_test_keeps_its_level_where_the_plain_one_does_not():
    rng = np.random.default_rng(7)
    null = [fold_differences(rng, 0) for _ in range(2000)]
    corrected = np.mean([scores.corrected_t_test(d, 240, 60)[3] < 0.05 for d in null])
    plain = np.mean([stats.ttest_1samp(d, 0).pvalue < 0.05 for d in null])
    assert corrected == pytest.approx(0.05, abs=0.015)
    assert plain > 0.3


def test_interval_of_the_corrected_t_test_covers_a_planted_effect():
    rng = np.random.default_rng(8)
    tests = [scores.corrected_t_test(fold_differences(rng, 0.04), 240, 60) for _ in range(2000)]
    covered = np.mean([low <= 0.04 <= high for _, low, high, _ in tests])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_minimum_detectable_effect_is_found_with_the_power_promised():
    rng = np.random.default_rng(9)
    sd = 0.05 * np.sqrt(0.8)  # what varies between the folds of one run
    effect = scores.minimum_detectable_effect(sd, 25, 240, 60)
    tests = [scores.corrected_t_test(fold_differences(rng, effect), 240, 60) for _ in range(2000)]
    assert np.mean([p < 0.05 for *_, p in tests]) == pytest.approx(0.8, abs=0.03)
    assert scores.minimum_detectable_effect(sd, 10, 240, 60) > effect
    assert scores.minimum_detectable_effect(sd, 25, 240, 60, wanted_power=0.9) > effect


def test_corrected_t_test_without_spread_and_with_too_little():
    assert scores.corrected_t_test([0.0, 0.0], 4, 1) == (0, 0, 0, 1)
    assert scores.corrected_t_test([0.1, 0.1, 0.1], 4, 1)[3] == 0
    assert np.isnan(scores.corrected_t_test([0.1, np.nan, 0.2], 4, 1)).all(), "not significant"
    with pytest.raises(ValueError, match="n_differences=1"):
        scores.corrected_t_test([0.1], 4, 1)


def test_mcnemar():
    labels = np.zeros(20, int)
    a, b = labels.copy(), labels.copy()
    a[:1], b[1:9] = 1, 1  # one film only b gets right, eight only a
    assert scores.mcnemar(labels, a, b) == (8, 1, pytest.approx(2 * stats.binom.cdf(1, 9, 0.5)))
    assert scores.mcnemar(labels, a, a)[2] == 1


def test_holm_by_hand_and_rejects_none_where_bonferroni_rejects_none():
    assert scores.holm([0.01, 0.04, np.nan, 0.03])[[0, 1, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(scores.holm([0.01, np.nan])[1]) and len(scores.holm([])) == 0
    for null in np.random.default_rng(10).uniform(size=(20, 5)):
        assert scores.holm(null).min() == pytest.approx(min(5 * null.min(), 1))
