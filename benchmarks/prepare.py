"""Preparation of raw films, films a second: `prepare` against Pillow, and two threads against one.

    python benchmarks/prepare.py

The films are made up, in a temporary folder: JPEG (quality 95) and PNG of 500 to 4000 pixels, and
JPEG as the study's originals mostly are, of 700 to 1700 pixels and 0.7 bits a pixel. Pillow decodes
to grey, averages areas (a box filter) and writes a PNG of 64 pixels, one film after another.
"""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from record import arguments, medians, record

import kerasgan

SIZE = 64
# name: kind, least and greatest side, JPEG's quality
CASES = {
    "JPEG": ("jpg", 500, 4000, 95),
    "PNG": ("png", 500, 4000, 95),
    "JPEG like the study's": ("jpg", 700, 1700, 80),
}


def make_films(folder, count, kind, low, high, quality, seed=0):
    """Writes films of a smooth anatomy with fine noise; returns the `Films`."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        height, width = rng.integers(low, high + 1, 2)
        base = kerasgan.simulate([i % 4], 256, seed=i)[0, ..., 0]
        film = cv2.resize(base, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        film = np.clip(film + rng.normal(0, 3, film.shape), 0, 255).astype(np.uint8)
        path = Path(folder) / ("even" if i // 2 % 2 else "odd") / f"film-{i:03d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        how = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpg" else []
        path.write_bytes(cv2.imencode(f".{kind}", film, how)[1])
    return kerasgan.load_films(folder)


def ours(films, workers):
    """Returns a function that prepares the films and returns films a second."""

    def measure():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            kerasgan.prepare(films, folder, size=SIZE, workers=workers)
            return len(films) / (time.perf_counter() - started)

    return measure


def pillow(films):
    """Returns a function that does the same with Pillow and returns films a second."""

    def measure():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            for i, path in enumerate(films.index["path"]):
                with Image.open(path) as image:
                    small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
                small.save(f"{folder}/{i}.png")
            return len(films) / (time.perf_counter() - started)

    return measure


def main():
    options = arguments(__doc__)
    cv2.setNumThreads(1)  # one thread is one thread
    count = 8 if options.quick else 48
    for title, (kind, low, high, quality) in CASES.items():
        high = min(high, 2000) if options.quick else high
        with tempfile.TemporaryDirectory() as folder:
            films = make_films(folder, count, kind, low, high, quality)
            cases = {"one": ours(films, 1), "two": ours(films, 2), "pillow": pillow(films)}
            measured = medians(cases, options.rounds)
        case = f"{title} to {SIZE} x {SIZE}"
        record(options, f"{case}, one thread", measured["one"], measured["pillow"], "films/s", 2)
        name = f"{case}, two threads against one"
        record(options, name, measured["two"], measured["one"], "films/s", 1.8)


if __name__ == "__main__":
    main()
