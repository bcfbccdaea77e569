import numpy as np
import pytest

from kerasgan.classify import CLASSIFIERS, fit_steps, fit_transfer, grad_cam, predict_mean
from kerasgan.networks import build_resnet
from kerasgan.quality import Encoder


def rows(count, seed):
    """Noise with one bright row of blocks; the class is its height."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 4
    images = rng.normal(80, 20, (count, 16, 16, 1))
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 80
    return np.clip(images, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_classifier_learns_what_is_easy(name):
    images, labels = rows(32, seed=0)
    model = fit_steps(name, [(1.0, *rows(64, seed=1))], 4, 120, 16, classic=False)
    chances = predict_mean(model, images)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    assert (chances.argmax(1) == labels).mean() >= 0.9


@pytest.mark.parametrize("classic", [False, True])
def test_transfer_learns_what_its_encoder_shows(classic):
    pixels = Encoder("pixels", lambda images: images.reshape(len(images), -1))
    model = fit_transfer(pixels, *rows(64, seed=1), 8, 32, classic)
    images, labels = rows(32, seed=0)
    chances = model(images)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert (chances.argmax(1) == labels).mean() >= 0.9
    np.testing.assert_allclose(chances, model(images[:, :, ::-1]))


def test_a_fit_is_a_function_of_its_seed(films16):
    def chances(seed):
        model = fit_steps("resnet", [(1.0, films16.images, films16.labels)], 4, 4, 8, True, seed)
        return predict_mean(model, films16.images)

    once, again, other = chances(1), chances(1), chances(2)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3


def test_phases_follow_each_other(films16):
    """Pretraining on wrong labels leaves traces; the second phase has the last word."""
    wrong = (films16.labels + 1) % 4
    phases = [(0.2, films16.images, wrong), (0.8, films16.images, films16.labels)]
    model = fit_steps("cnn", phases, 4, 150, 16, classic=False)
    right = (predict_mean(model, films16.images).argmax(1) == films16.labels).mean()
    assert right > 0.6


def test_flipped_views_are_averaged(films16):
    model = build_resnet(16)
    once = predict_mean(model, films16.images[:5])
    mirrored = predict_mean(model, films16.images[:5, :, ::-1])
    np.testing.assert_allclose(once, mirrored, atol=1e-5)


def test_the_small_network_is_small():
    assert build_resnet(64, 4).count_params() < 250_000


def test_bad_arguments_are_named(films16):
    with pytest.raises(ValueError, match="'vit'"):
        fit_steps("vit", [(1.0, films16.images, films16.labels)], 4)
    with pytest.raises(ValueError, match="no images"):
        fit_steps("cnn", [(1.0, films16.images[:0], films16.labels[:0])], 4)


def test_classes_that_are_not_there_are_named(films16):
    model = build_resnet(16, 4)
    for kinds in ([7] * len(films16), 1, [0, 1]):
        with pytest.raises(ValueError, match="kinds must be"):
            grad_cam(model, films16.images, kinds)
    with pytest.raises(ValueError, match="no images"):
        fit_steps("cnn", [], 4)
    with pytest.raises(ValueError, match="uint8"):
        predict_mean(model, films16.images / 255)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_grad_cam_looks_where_the_class_is(name):
    """Only the bright row tells the class: it must be hotter than the rest of the film."""
    images, labels = rows(32, seed=0)
    model = fit_steps(name, [(1.0, *rows(64, seed=1))], 4, 120, 16, classic=False)
    maps = grad_cam(model, images, labels)
    assert maps.shape == (32, 16, 16) and maps.min() >= 0 and maps.max() <= 1 + 1e-6
    if name == "cnn":  # the residual network's maps have too few places at 16 pixels
        bright = np.repeat(np.arange(16)[None] // 4 == labels[:, None], 16, axis=0)
        bright = bright.reshape(32, 16, 16).transpose(0, 2, 1)
        assert maps[bright].mean() > maps[~bright].mean()
