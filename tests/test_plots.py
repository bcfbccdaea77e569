import numpy as np
import pandas as pd
import pytest

from kerasgan import plots
from kerasgan.films import CLASSES

IMAGES = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 1), np.uint8)
HISTORY = pd.DataFrame(
    {"epoch": [1, 2], "g_loss": 1.0, "d_loss": 1.2, "d_real": 0.6, "d_fake": 0.4}
)
FIT = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [1, 0.5, 0.2],
        "accuracy": [0.3, 0.6, 0.9],
        "val_loss": [None, 0.7, None],
        "val_accuracy": [None, 0.5, None],
    }
)


def quality_rows():
    names, metrics = ["authors", *(f"set {i}" for i in range(12))], ("kid", "density")
    rows = [(name, "covid", "HOG", metric, 1, 0.5, 2, 0.1) for name in names for metric in metrics]
    columns = ["generator", "class", "encoder", "metric", "value", "low", "high", "floor"]
    return pd.DataFrame(rows, columns=columns)


def curve():
    rows = [
        (arm, kind, count, seed, evaluation, value, value - 0.1, value + 0.1, 36, 0.8)
        for arm, kind, count, seed, value in (
            ("O1", "real", 0, 0, 0.7),
            ("O1+C3", "classic", 2000, 0, 0.8),
            ("O1+C3", "classic", 2000, 1, 0.85),
            ("O1+C3+G3", "synthetic", 1000, 0, 0.75),
        )
        for evaluation in ("deterministic", "reference")
    ]
    columns = ["arm", "kind", "count", "seed", "evaluation", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*columns, "published"])


def scores():
    rows = [
        ("O1", "real", name, metric, 0.5, 0.3, 0.7)
        for name in CLASSES
        for metric in ("sensitivity", "specificity")
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "class", "metric", "value", "low", "high"])


def texts(figure):
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def gains():
    rows = [(films, ratio, 0.02, -0.01, 0.05, 8) for films in (20, 60, 200) for ratio in (0.5, 2)]
    return pd.DataFrame(rows, columns=["films", "ratio", "difference", "low", "high", "n"])


FIGURES = {
    "gain": lambda films: plots.plot_gain(gains(), films.note),
    "cam": lambda films: plots.plot_grad_cam(IMAGES, IMAGES[..., 0] / 255, 4, films.note),
    "films": lambda films: plots.plot_films(films, 5),
    "counts": lambda films: plots.plot_counts(films),
    "intensities": lambda films: plots.plot_intensities(films),
    "pairs": lambda films: plots.plot_real_and_generated(IMAGES, IMAGES, "covid", note=films.note),
    "evolution": lambda films: plots.plot_evolution({1: IMAGES, 9: IMAGES}, "a_b", films.note),
    "walk": lambda films: plots.plot_latent_walk(IMAGES, "covid", films.note),
    "walks": lambda films: plots.plot_latent_walk({"a": IMAGES, "covid": IMAGES}, note=films.note),
    "gan": lambda films: plots.plot_gan_history({"covid": HISTORY, "x": HISTORY}, films.note),
    "history": lambda films: plots.plot_classifier_history(FIT, "O1", films.note),
    "confusion": lambda films: plots.plot_confusion({"O1": np.eye(4) * 9}, CLASSES, films.note),
    "curve": lambda films: plots.plot_accuracy_curve(curve(), films.note),
    "quality": lambda films: plots.plot_quality(quality_rows(), note=films.note),
    "scores": lambda films: plots.plot_class_scores(scores(), note=films.note),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_page_wide_and_carries_the_banner(films16, name, tmp_path):
    from dataclasses import replace

    figure = FIGURES[name](replace(films16, note="SIMULATED FILMS, not patients"))
    assert figure.get_size_inches()[0] == plots.WIDTH
    assert any("SIMULATED FILMS" in text for text in texts(figure))
    plots.save_figure(figure, tmp_path / "f.png", dpi=60)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_what_keras_and_scikit_learn_return_is_plotted_too():
    from kerasgan.classify import fit_steps

    model = fit_steps("cnn", [(1.0, IMAGES, np.arange(len(IMAGES)) % 2)], 2, 1, 4)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.zeros((4, *IMAGES.shape[1:])), np.array([0, 1, 0, 1])
    fitted = model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0)
    lines = plots.plot_classifier_history(fitted).axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3]] * 2
    fitted = model.fit(x, y, epochs=3, validation_data=(x, y), validation_freq=2, verbose=0)
    with pytest.raises(ValueError, match="validate after each"):
        plots.plot_classifier_history(fitted)
    assert "(n = 36)" in texts(plots.plot_confusion(np.eye(4) * 9, CLASSES))


def test_axes_have_names_and_panels_say_n(films16):
    for name in ("intensities", "gan", "history", "curve", "scores"):
        for axis in FIGURES[name](films16).axes:
            assert axis.get_xlabel() or axis.get_title(), name
    assert "O1 (n = 36)" in texts(FIGURES["confusion"](films16))
    assert "COVID-19 (n = 12)" in texts(FIGURES["intensities"](films16))
    shown = FIGURES["curve"](films16)
    assert "total accuracy on 36 test films" in texts(shown)
    assert "study's evaluation, one seed" in texts(shown), "beside an arm of two seeds"


def test_images_share_one_grey_scale(films16):
    for name in ("films", "pairs", "evolution"):
        for axis in FIGURES[name](films16).axes:
            assert all(image.get_clim() == (0, 255) for image in axis.images)


def test_a_failed_write_leaves_nothing(films16, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        plots.save_figure(FIGURES["counts"](films16), tmp_path / "file" / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
