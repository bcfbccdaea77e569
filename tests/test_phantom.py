import numpy as np
import pytest

from kerasgan.phantom import simulate, simulate_films
from kerasgan.quality import hog_features, memorization


def test_a_film_is_a_function_of_its_seed():
    one = simulate([0, 1, 2, 3], 32, seed=4)
    assert one.shape == (4, 32, 32, 1) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, simulate([0, 1, 2, 3], 32, seed=4))
    assert (one != simulate([0, 1, 2, 3], 32, seed=5)).mean() > 0.5


@pytest.mark.parametrize("size", [16, 64, 256])
def test_any_size_shows_the_same_chest(size):
    lungs_and_all = simulate([1] * 4, size, seed=0)
    small = lungs_and_all.reshape(4, 16, size // 16, 16, size // 16).mean((2, 4))
    reference = simulate([1] * 4, 16, seed=0)[..., 0]
    correlation = np.corrcoef(small.ravel(), reference.ravel())[0, 1]
    assert correlation > 0.9


def test_films_of_one_patient_are_alike_but_not_equal():
    films = simulate_films(12, size=32, seed=0, films_per_patient=2, test_per_class=0)
    found = [
        memorization(films.images[1::2][own], films.images[::2][own])["nearest"] == np.arange(6)
        for own in np.split(np.arange(24), 4)
    ]
    assert np.mean(found) > 0.5  # of six patients of the class the own one is mostly the nearest
    assert (films.images[1::2] != films.images[::2]).mean() > 0.5


def test_patients_are_on_one_side():
    films = simulate_films(20, size=16)
    assert not set(films.split("train").patients) & set(films.split("test").patients)
    assert films.counts().query("split == 'test'")["films"].min() >= 9
    assert set(simulate_films(4, size=16, test_per_class=0).index["split"]) == {""}


def test_classes_can_be_learnt_but_not_at_a_glance():
    from sklearn.svm import SVC

    train, test = (simulate_films(60, 32, seed=s, test_per_class=0) for s in (1, 2))
    svm = SVC(C=10).fit(hog_features(train.images), train.labels)
    accuracy = (svm.predict(hog_features(test.images)) == test.labels).mean()
    assert 0.55 < accuracy < 0.95


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="n_per_class=4"):
        simulate_films(4)
    with pytest.raises(ValueError, match="films_per_patient must be"):
        simulate_films(4, test_per_class=1, films_per_patient=-1)
    for labels, size, patients in (([0], 8, None), ([4], 16, None), ([0], 16, [1, 2])):
        with pytest.raises(ValueError, match="Received"):
            simulate(labels, size, patients=patients)
