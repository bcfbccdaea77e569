import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from pathlib import Path

import keras
import numpy as np
import pytest

from kerasgan.films import CLASSES, Films

# A worker takes whole modules, with their fixtures: the longest first.
LONG = ("notebooks", "crossval", "training", "main", "gan", "callbacks", "compare", "quality")


def pytest_collection_modifyitems(items):
    """Begins with the longest modules, so that no worker is left alone with one at the end."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def films16():
    """Films of 16 pixels, 12 per class, brighter by class; patient p?-6 is in train and test."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    images = rng.normal(60 + 40 * labels[:, None, None], 20, (48, 16, 16))
    return Films.from_arrays(
        np.clip(images, 0, 255).astype(np.uint8),
        labels,
        CLASSES,
        patients=[f"p{label}-{(i + 1) * 3 // 4}" for label in range(4) for i in range(12)],
        split=(["train"] * 8 + ["test"] * 4) * 4,
        name="sixteen",
    )


@pytest.fixture(scope="session")
def small_encoder():
    """Builds encoders to judge by, of a side: few layers, as every one is traced several times."""

    def build(size=16, width=2):
        x = image = keras.Input((size, size, 1))
        for _ in range(2):
            x = keras.layers.Conv2D(width, 3, 2, "same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x))
        return keras.Model(image, x, name="small_encoder")

    return build


@pytest.fixture(scope="session")
def real_root():
    """The root of the real collections; tests that need it are skipped without."""
    root = os.environ.get("KERASGAN_DATA")
    if not root or not (Path(root) / "covid-xray-64").is_dir():
        pytest.skip("KERASGAN_DATA holds no covid-xray-64")
    return Path(root)


@pytest.fixture(scope="session")
def real_originals(real_root):
    """The same root, where it holds the original films too."""
    if not (real_root / "covid-xray-original").is_dir():
        pytest.skip("KERASGAN_DATA holds no covid-xray-original")
    return real_root
