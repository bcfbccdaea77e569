"""Simulated chest radiographs with known classes: the offline default, and truth for tests.

A scene is drawn in unit coordinates (x to the right, y down, both -1 to 1; the patient's right
is on the left), so that any size shows the same anatomy. The four classes differ as the diseases
do: clear lungs; a bounded lobar consolidation; fine interstitial markings from both hila outwards;
soft peripheral ground glass on both sides. Severity varies down to hardly visible.
"""

import cv2
import numpy as np

from kerasgan.films import CLASSES, Films


def simulate(labels, size=64, seed=0, patients=None):
    """Draws simulated chest radiographs.

    Args:
        labels: int (n,), positions in `films.CLASSES`: covid, normal, bacterial, viral.
        size: Side in pixels, 16 to 512.
        seed: Integer seed; film i is a function of (seed, i, patient, label).
        patients: int (n,); films of one patient share the anatomy and the disease and differ in
            pose, exposure and noise. By default every film has a patient of its own.

    Returns:
        uint8 (n, size, size, 1).

    Raises:
        ValueError: If a label or the size is out of range, or the lengths differ.

    Example:
        >>> images = simulate([0, 1, 2, 3], size=64)
    """
    labels = np.asarray(labels, int)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients, int)
    if len(patients) != len(labels):
        raise ValueError(
            f"labels and patients must be of one length. Received: {len(labels)}, {len(patients)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(f"labels must be 0 to {len(CLASSES) - 1}. Received: {sorted(set(labels))}")
    if not 16 <= size <= 512:
        raise ValueError(f"size must be from 16 to 512. Received: size={size}")
    images = np.empty((len(labels), size, size, 1), np.uint8)
    for i, (label, patient) in enumerate(zip(labels, patients, strict=True)):
        images[i, ..., 0] = _film(label, size, (seed, patient, label), (seed, patient, i))
    return images


def simulate_films(
    n_per_class=79, size=64, seed=0, films_per_patient=None, test_per_class=9, name="simulated"
):
    """Draws a simulated collection with patients and a split.

    Args:
        n_per_class: Films per class; the default mirrors the real collection's 70 + 9.
        size: Side in pixels.
        seed: Integer seed.
        films_per_patient: Films of each patient; by default every fifth patient has two.
        test_per_class: Films of each class in the split `test`, at least; patients stay whole.
            0 leaves the films without splits.
        name: Name of the collection.

    Returns:
        `Films` in memory, whose note says that they are simulated.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 <= test_per_class < n_per_class:
        raise ValueError(
            "test_per_class must be from 0 to below n_per_class. "
            f"Received: test_per_class={test_per_class}, n_per_class={n_per_class}"
        )
    if films_per_patient is not None and films_per_patient < 1:
        raise ValueError(f"films_per_patient must be at least 1. Received: {films_per_patient}")
    own = []
    while len(own) < n_per_class:
        person = own[-1] + 1 if own else 0
        own += [person] * (films_per_patient or (2 if person % 5 == 4 else 1))
    own = np.array(own[:n_per_class])
    split = np.where(own <= own[max(test_per_class - 1, 0)], "test", "train")
    split = split if test_per_class else np.full(n_per_class, "")
    labels = np.repeat(np.arange(len(CLASSES)), n_per_class)
    patients = np.concatenate([own + label * 1_000_000 for label in range(len(CLASSES))])
    return Films.from_arrays(
        simulate(labels, size, seed, patients),
        labels,
        CLASSES,
        patients=[f"sim{patient:07d}" for patient in patients],
        split=np.tile(split, len(CLASSES)),
        name=name,
        note="SIMULATED FILMS, not patients",
        filenames=[f"sim{patient:07d}_{i:05d}.png" for i, patient in enumerate(patients)],
    )


def _film(label, size, patient_key, film_key):
    """One film, uint8 (size, size): anatomy and disease of the patient, pose of the film."""
    patient, film = np.random.default_rng(patient_key), np.random.default_rng(film_key)
    side = 2 * size if size <= 128 else size
    x, y = _pose(film, side)
    anatomy = _anatomy(patient, hyperinflated=label == 3)
    lungs, dome = _lungs(x, y, anatomy)
    lesion = _DISEASES[CLASSES[label]](patient, x, y, lungs, anatomy)
    density = _chest(patient, x, y, lungs, dome, anatomy)
    density += lesion * (0.95 - density).clip(0, 1)
    density = _extras(film, density, x, y)
    return _develop(film, density, size)


def _pose(rng, side):
    """Unit coordinates of each pixel, shifted, turned and scaled."""
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(grid.astype(np.float32), grid.astype(np.float32))
    angle, scale = rng.normal(0, 0.035), rng.uniform(0.86, 1.06)
    x, y = x - rng.normal(0, 0.05), y - rng.normal(0, 0.05)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    return cos * x + sin * y, cos * y - sin * x


def _anatomy(rng, hyperinflated):
    """The shapes of one patient."""
    return {
        "body": rng.uniform(0.82, 1.0),
        "tall": rng.uniform(0.92, 1.08),
        "wide": rng.uniform(0.9, 1.1),
        "gap": rng.uniform(0.1, 0.15),
        "base": rng.uniform(0.52, 0.66) + (0.05 if hyperinflated else 0),
        "dome": rng.uniform(0.10, 0.2) - (0.04 if hyperinflated else 0),
        "heart": rng.uniform(0.3, 0.44),
        "ribs": rng.uniform(0.15, 0.19),
        "phase": rng.uniform(0, 1),
        "slope": rng.uniform(0.28, 0.5),
        "bone": rng.uniform(0.08, 0.2),
        "air": rng.uniform(0.1, 0.24),
        "tissue": rng.uniform(0.6, 0.75),
    }


def _soft(distance, width):
    """1 inside (distance > 0), 0 outside, with a soft edge."""
    return 1 / (1 + np.exp(-np.clip(distance / width, -30, 30)))


def _bump(x, y, x0, y0, rx, ry):
    return np.exp(-(((x - x0) / rx) ** 2) - ((y - y0) / ry) ** 2)


def _lungs(x, y, a):
    """Masks of both lungs above their diaphragm, and the diaphragm's height."""
    side = np.sign(x)
    lift = np.where(side < 0, 0.06, 0.0)  # the patient's right dome stands higher
    away = np.abs(x)
    dome = a["base"] - lift - a["dome"] * np.exp(-(((away - 0.4) / 0.22) ** 2))
    dome = dome + 0.14 * _soft(away - 0.62, 0.05)  # the costophrenic angle
    top = -0.72 * a["tall"]
    height = np.clip((y - top) / (a["base"] - top), 0, 1.3)
    outer = a["wide"] * (0.32 + 0.42 * np.sqrt(np.clip(height, 0, 1))) * (height > 0)
    inner = a["gap"] + 0.05 * np.abs(height - 0.45)
    lungs = _soft(outer - away, 0.018) * _soft(away - inner, 0.02)
    lungs = lungs * _soft(dome - y, 0.015) * _soft(y - top - 0.5 * (away - 0.33) ** 2, 0.02)
    return lungs, dome


def _chest(rng, x, y, lungs, dome, a):
    """Density of a healthy chest, 0 (air) to 1."""
    away = np.abs(x)
    body = a["body"] * (0.52 + 0.48 * _soft(y + 0.78, 0.07)) + 0.02 * _noise(rng, x.shape, 4)
    inside = _soft(body - away, 0.02)
    density = inside * (a["tissue"] + 0.05 * _noise(rng, x.shape, 3) - 0.12 * (away / 0.9) ** 2)
    cage = a["wide"] * (0.45 + 0.37 * np.sqrt(np.clip((y + 0.75) / 1.3, 0, 1)))
    thorax = inside * _soft(dome + 0.1 - y, 0.05) * _soft(y + 0.8, 0.05) * _soft(cage - away, 0.02)
    density -= lungs * (density - a["air"])
    density += lungs * 0.12 * _vessels(rng, x, y, a)
    density += a["bone"] * thorax * _rib_arcs(x, y, a)
    density += 0.16 * inside * _bump(x, 0, 0, 0, 0.12, 1) * (0.85 + 0.15 * np.cos(y * 32))
    heart = _bump(x, y, 0.11, 0.3, a["heart"], 0.36)
    vessels = _bump(x, y, 0.02, -0.15, 0.2, 0.35)
    shadow = np.maximum(_soft(heart - 0.42, 0.05), 0.8 * _soft(vessels - 0.5, 0.08))
    density += 0.9 * inside * shadow * (0.72 - density).clip(0)
    below = _soft(y - dome, 0.02) * inside
    density += below * (0.84 - density).clip(0) * 0.75
    if rng.random() < 0.6:  # gas in the stomach, under the left dome
        density -= 0.25 * below * _bump(x, y, rng.uniform(0.3, 0.5), a["base"] + 0.16, 0.14, 0.09)
    for way in (-1, 1):
        line = y + 0.62 + 0.18 * (way * x - 0.1) - 0.05 * np.sin(4 * x)
        reach = _soft(way * x - 0.08, 0.02) * _soft(0.7 - way * x, 0.03)
        density += 0.8 * a["bone"] * inside * reach * np.exp(-((line / 0.035) ** 2))
    return density


def _rib_arcs(x, y, a):
    """Posterior ribs, falling outwards, and fainter anterior ones, falling inwards."""
    away = np.abs(x)
    behind = (y - a["slope"] * away**1.4 + 0.25 * away) / a["ribs"] + a["phase"]
    before = (y + 0.9 * a["slope"] * away) / (1.15 * a["ribs"]) + 2 * a["phase"]
    posterior = np.clip(np.cos(2 * np.pi * behind), 0, 1) ** 2
    anterior = np.clip(np.cos(2 * np.pi * before), 0, 1) ** 2 * _soft(away - 0.3, 0.05)
    return posterior + 0.45 * anterior


def _vessels(rng, x, y, a):
    """Branching markings that fade from the hila outwards."""
    hilum = np.hypot(np.abs(x) - a["gap"] - 0.06, (y + 0.02) * 0.8)
    ridges = np.clip(1 - 3 * np.abs(_noise(rng, x.shape, 12)), 0, 1)
    return np.exp(-hilum / 0.18) * 1.6 + np.exp(-hilum / 0.4) * ridges


def _severity(rng):
    """From hardly visible to severe."""
    return 0.4 + 0.6 * rng.beta(1.8, 1.5)


def _normal(rng, x, y, lungs, a):
    return np.zeros_like(x)


def _bacterial(rng, x, y, lungs, a):
    """One or two dense, fairly well bounded consolidations."""
    density, severity = np.zeros_like(x), _severity(rng)
    for _ in range(1 + (rng.random() < 0.35)):
        way, lower = rng.choice([-1, 1]), rng.random() < 0.65
        x0 = way * rng.uniform(0.28, 0.5)
        y0 = rng.uniform(0.1, 0.35) if lower else rng.uniform(-0.4, 0.0)
        rx, ry = rng.uniform(0.13, 0.27), rng.uniform(0.13, 0.28)
        edge = _bump(x, y, x0, y0, rx, ry) + 0.12 * _noise(rng, x.shape, 8)
        density = np.maximum(density, _soft(edge - 0.42, 0.07))
    # Bronchi near it are inflamed too, much as in viral disease.
    return severity * (0.8 * density * lungs + 0.6 * _viral(rng, x, y, lungs, a))


def _viral(rng, x, y, lungs, a):
    """Fine streaks and rings from both hila outwards, and a faint haze."""
    severity = _severity(rng)
    hilum = np.hypot(np.abs(x) - a["gap"] - 0.08, y * 0.7)
    net = np.clip(1 - 2.2 * np.abs(_noise(rng, x.shape, 18)), 0, 1)
    streaks = np.clip(1 - 2.2 * np.abs(_noise(rng, x.shape, 10)), 0, 1)
    patchy = 0.7 + 0.5 * _noise(rng, x.shape, 3)
    texture = (0.5 * net + 0.5 * streaks) * np.exp(-hilum / 0.55) * patchy
    x0, y0 = rng.choice([-1, 1]) * rng.uniform(0.2, 0.45), rng.uniform(-0.2, 0.4)
    focus = rng.uniform(0, 0.5) * _bump(x, y, x0, y0, 0.22, 0.22)  # partly collapsed lung
    haze = 0.3 * np.exp(-((hilum / 0.38) ** 2)) + focus
    return severity * lungs * (0.6 * texture + haze).clip(0, 1)


def _covid(rng, x, y, lungs, a):
    """Soft ground glass along the pleura, on both sides, mostly at the bases."""
    severity, density = _severity(rng), np.zeros_like(x)
    for way in (-1, 1):
        for _ in range(rng.integers(1, 4)):
            y0 = rng.normal(0.15, 0.22)
            x0 = way * rng.uniform(0.46, 0.64)
            patch = _bump(x, y, x0, y0, rng.uniform(0.12, 0.24), rng.uniform(0.14, 0.3))
            density = density + patch * rng.uniform(0.5, 1)
    haze = density.clip(0, 1) * (0.85 + 0.3 * _noise(rng, x.shape, 7))
    return 0.85 * severity * haze * lungs


_DISEASES = {
    "covid": _covid,
    "normal": _normal,
    "pneumonia_bac": _bacterial,
    "pneumonia_vir": _viral,
}


def _noise(rng, shape, cells):
    """Smooth noise, about -1 to 1, with `cells` waves across the film."""
    grid = rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _extras(rng, density, x, y):
    """Markers, wires and electrodes, as wards have them; no class has more than another."""
    if rng.random() < 0.4:
        x0, y0 = rng.choice([-1, 1]) * rng.uniform(0.75, 0.9), rng.uniform(-0.85, -0.5)
        bar = (np.abs(x - x0) < 0.02) & (np.abs(y - y0) < 0.06)
        foot = (np.abs(x - x0 - 0.03) < 0.04) & (np.abs(y - y0 - 0.05) < 0.015)
        density = np.where(bar | foot, 0.98, density)
    if rng.random() < 0.2:
        curve = x - rng.uniform(-0.5, 0.5) - 0.2 * np.sin(3 * y + rng.uniform(0, 6))
        density = density + 0.25 * np.exp(-((curve / 0.012) ** 2))
    if rng.random() < 0.15:
        x0, y0 = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.3)
        density = density + 0.35 * (np.hypot(x - x0, y - y0) < 0.04)
    return density


def _develop(rng, density, size):
    """Exposure, scatter, collimation and grain; then down to the size wanted."""
    image = np.clip(density, 0, 1) ** rng.uniform(0.75, 1.3)
    image = rng.uniform(0.0, 0.08) + image * rng.uniform(0.8, 1.05)
    blur = rng.uniform(0.003, 0.009) * image.shape[0]
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), blur)
    if rng.random() < 0.25:
        edge = max(1, int(rng.uniform(0.01, 0.05) * image.shape[0]))
        side = rng.integers(4)
        np.rot90(image, side)[:edge] = rng.choice([0.0, 0.03])
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    image = image + rng.normal(0, rng.uniform(0.004, 0.015), image.shape)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
