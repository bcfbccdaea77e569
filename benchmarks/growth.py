"""Seconds a step and peak memory as films, size, width and classes grow, each in a fresh process.

    python benchmarks/growth.py --rounds 3

A GAN trains from films on disk, read batch by batch (`batches(cache=False)`): neither memory nor
the time of a step may grow with their number. The other rows are set against growth in proportion
to the arithmetic: pixels, or width squared. Draws results/growth.png.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import arguments, record

import kerasgan

BASE = {"films": 300, "size": 64, "width": 16, "classes": 4}
GROWTH = {
    "films": (300, 3000, 30_000),
    "size": (32, 64, 128, 256),
    "width": (16, 32, 64),
    "classes": (1, 4, 16),
}
LABELS = {
    "films": "films on disk",
    "size": "side of the films, pixels",
    "width": "width of the networks, channels",
    "classes": "classes",
}
# What a step's arithmetic is proportional to.
ORDER = {"films": 0, "size": 2, "width": 2, "classes": 0}


def write_films(folder, films, size, classes):
    """Writes made-up films as PNG files: a few dozen different ones, under many names."""
    images = kerasgan.simulate(np.arange(32) % 4, size)
    first = kerasgan.Films.from_arrays(images, np.zeros(32, int), ("drawn",))
    stored = kerasgan.save_films(first, Path(folder) / ".drawn")
    files = [Path(path).read_bytes() for path in stored.index["path"]]
    for label in range(classes):
        (Path(folder) / f"class-{label:02d}").mkdir()
    for i in range(films):
        name = f"class-{i % classes:02d}/film-{i:05d}.png"
        (Path(folder) / name).write_bytes(files[i % len(files)])


def train(folder, size, width, classes, steps):
    """Trains for a while from the folder; returns (seconds a step, peak memory in MB)."""
    import keras

    films = kerasgan.load_films(folder, size=size)
    n_classes = classes if classes > 1 else None
    gan = kerasgan.GAN(
        kerasgan.build_generator(size, width=width, n_classes=n_classes),
        kerasgan.build_discriminator(size, width, n_classes),
        augment=kerasgan.DiffAugment(),
    )
    gan.compile(keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5))
    batches = films.batches(16, labels=classes > 1, cache=False).repeat()
    gan.fit(batches, steps_per_epoch=3, verbose=0, shuffle=False)
    started = time.perf_counter()
    gan.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)
    seconds = (time.perf_counter() - started) / steps
    unit = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def cell(axis, value):
    """The sizes of a cell, those of BASE but for one: a key, as axes share their first cell."""
    return tuple({**BASE, axis: value}.items())


def measure(steps, **cell):
    """Measures one cell in a fresh process; returns (seconds a step, peak memory in MB)."""
    with tempfile.TemporaryDirectory() as folder:
        write_films(folder, cell.pop("films"), cell["size"], cell["classes"])
        job = json.dumps({"folder": folder, "steps": steps, **cell})
        command = [sys.executable, __file__, "--cell", job]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def chart(measured, path):
    """Draws seconds a step and peak memory against what grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(measured), figsize=(12, 5), layout="constrained")
    for column, (axis, points) in enumerate(measured.items()):
        for row, label in enumerate(("seconds a step", "peak memory, MB")):
            values = [point[row] for point in points.values()]
            axes[row, column].plot(list(points), values, marker="o")
            axes[row, column].set(xscale="log", ylim=(0, 1.1 * max(values)), ylabel=label)
            axes[row, column].set_xlabel(LABELS[axis])
            axes[row, column].set_xticks(list(points), [f"{x:,}" for x in points], minor=False)
            axes[row, column].minorticks_off()
    figure.savefig(path, dpi=150)


def main():
    options = arguments(__doc__)
    steps, growth = 5, {axis: each[:2] for axis, each in GROWTH.items()}
    if not options.quick:
        steps, growth = 60, GROWTH
    found = {cell(axis, n): [] for axis, each in growth.items() for n in each}
    for number in range(options.rounds):
        for sizes, values in found.items():  # in turn: a slow minute falls on all alike
            values.append(measure(steps, **dict(sizes)))
        print(f"round {number + 1} of {options.rounds}", flush=True)
    # The least of the rounds: whatever else the machine does only adds.
    measured = {
        axis: {n: np.min(found[cell(axis, n)], axis=0) for n in each}
        for axis, each in growth.items()
    }
    for axis, points in measured.items():
        (first, base), *others = points.items()
        for value, (seconds, memory) in others:
            expected = base[0] * (value / first) ** ORDER[axis]
            case, goal = f"{axis} {first} to {value}", 0.9 if axis == "films" else ""
            record(options, f"{case}, step", seconds, expected, "s", 0.9, lower_is_better=True)
            record(options, f"{case}, memory", memory, base[1], "MB", goal, lower_is_better=True)
    chart(measured, options.results / "growth.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(train(**json.loads(sys.argv[2]))))
    else:
        main()
