"""What helps a GAN on few films: one change at a time from the recipe of `kerasgan.best_gan`.

    python benchmarks/ablation.py covid-xray-64 --encoder runs/lite0.keras

Each variant is trained on the training patients less an inner fold, and measured against the films
it saw and against that fold's, with --looks at several steps of one training, where the last need
not be the best. Means over the classes, and finished variants, are kept in --out: give the command
again to go on, or name variants to run these alone.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd

import kerasgan as kg
from kerasgan import quality
from kerasgan.augment import DiffAugment
from kerasgan.runs import write_text
from kerasgan.store import load_safely
from kerasgan.training import HELD, best_gan, epochs_of

VARIANTS = {
    "best": {},
    "no augmentation": {"policy": ()},
    "and colour": {"policy": ("colour", "translation", "cutout")},
    "and flips": {"policy": ("translation", "cutout", "flip")},
    "and rotations": {"policy": ("translation", "cutout", "rotation")},
    "translation alone": {"policy": ("translation",)},
    "a GAN a class": {"apart": True},  # of a class's share of the steps
    "spectral norm": {"norm": "spectral"},
    "hinge": {"loss": "hinge"},
    "no BatchNorm": {"norm": "none"},
    "no BatchNorm, lazy R1": {"norm": "none", "r1": 1.0, "penalty_every": 8},
    "relativistic, R1 + R2": {"norm": "none", "loss": "relativistic", "r1": 1.0, "r2": 1.0},
    "rate 2e-4": {"rate": 2e-4},
    "rate 8e-4": {"rate": 8e-4},
    "latent 32": {"latent": 32},
    "width 16": {"width": 16},
    "auxiliary head (ACGAN)": {"head": "auxiliary"},
    "truncation 0.8": {"truncation": 0.8},
    "no average": {"ema": 0.0},
    "nearest, then convolve": {"upsampling": "nearest"},
    "minibatch deviation": {"deviation": True},
    "adaptive (ADA)": {"adaptive": True, "policy": DiffAugment.STEPS},
    "adaptive, translation and cutout": {"adaptive": True},
    # With --features:
    "projected": {},
    "projected, translation alone": {"policy": ("translation",)},
    "projected, and pixels": {"pixels": True},
    "projected, momentum 0": {"momentum": 0.0},
    "projected, rate 2e-4": {"rate": 2e-4},
    "projected, non-saturating": {"loss": "non_saturating"},
    "projected, latent 32": {"latent": 32},
    "projected, width 16": {"width": 16},
    "projected, width 48": {"width": 48},
    "projected, no average": {"ema": 0.0},
    "projected, no augmentation": {"policy": ()},
    "projected, and colour": {"policy": ("colour", "translation", "cutout")},
}


def projected(name):
    """Says whether a variant's discriminator judges the features of --features."""
    return name.startswith("projected")


def train(films, steps, seed, looks=1, apart=False, truncation=1.0, count=300, **recipe):
    """Trains a GAN on films, or one `apart` on each class.

    Returns a list of so many looks, at equal distances, the last at the end: each the samples by
    class, uint8 (count, ...).
    """
    import keras  # after kerasgan, which turns oneDNN on

    parts = [films.only(name) for name in films.classes] if apart else [films]
    seen, steps = [{} for _ in range(looks)], steps // len(parts)
    for part in parts:
        gan = best_gan(films.size, n_classes=len(part.classes), steps=steps, seed=seed, **recipe)
        gan.adapt(part)
        if (epochs := epochs_of(steps, part)) < looks:
            raise ValueError(f"{looks} looks need as many epochs: more --steps. Received: {epochs}")
        due = {epochs * (look + 1) // looks: images for look, images in enumerate(seen)}

        def draw(epoch, logs, gan=gan, part=part, due=due):
            for label, name in enumerate(part.classes if epoch + 1 in due else ()):
                images = kg.draw(gan.averaged, count, label, seed=1, truncation=truncation)
                due[epoch + 1][name] = images

        batches = part.batches(32, seed=seed, labels=True)
        looking = keras.callbacks.LambdaCallback(on_epoch_end=draw)
        gan.fit(batches, epochs=epochs, callbacks=[looking], verbose=0, shuffle=False)
    return seen


def measure(samples, seen, held_out, encoder):
    """Scores of samples by class, means over the classes."""
    rows = []
    for name, images in samples.items():
        own, count = seen.only(name), len(images)
        real, fresh, fake = (encoder(x) for x in (own.images, held_out.only(name).images, images))
        size = min(len(real), count)
        density, coverage = quality.density_coverage(real, fake[:size])
        flagged = quality.memorization(images, own.images, patients=own.patients)["flagged"]
        rows.append(
            {
                "kid": quality.kid(real, fake, subset_size=min(50, size))[0],
                "kid_held_out": quality.kid(fresh, fake, subset_size=min(50, len(fresh)))[0],
                "fid": quality.fid(real, fake[:size]),
                "density": density,
                "coverage": coverage,
                "detectability": quality.detectability(own.images, images, own.patients)[0],
                "memorized": flagged.mean(),
                "diversity": quality.diversity(images),
                "fingerprint": quality.fingerprint(images),
            }
        )
    return pd.DataFrame(rows).mean()


def main():
    """Runs the variants that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument(
        "--encoder", nargs="+", help=".keras file, or several; the best to be had by default"
    )
    parser.add_argument("--features", help="another .keras encoder, for variants called projected")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1500, help="of 32 films each")
    parser.add_argument("--looks", type=int, default=1, help="measured so often, the end included")
    parser.add_argument("--no-framing", action="store_true", help="a generator of plain canvases")
    parser.add_argument("--moments", type=float, default=2.0, help="weight, of variants projected")
    parser.add_argument("--hog", type=float, default=4.0, help="likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/ablation.csv"))
    given = parser.parse_args()
    if unknown := set(given.variants) - set(VARIANTS):
        parser.error(f"variants are {list(VARIANTS)}. Received: {sorted(unknown)}")
    if any(map(projected, given.variants)) and not given.features:
        parser.error("variants called projected need --features, not the encoder that measures")
    encoders = [*map(quality.Encoder.keras, given.encoder or ())] or [quality.best_encoder()]
    films = kg.load_films(given.data, size=given.size)
    seen, held_out = next(films.train_test()[0].folds(5, seed=given.seed))
    facts = {"size": given.size, "steps": given.steps, "seed": given.seed, "n": len(seen)}
    facts |= {"framing": not given.no_framing, "encoder": ""}
    facts |= {**dict.fromkeys(HELD, 0.0), "judge": "pixels"}
    table = pd.DataFrame(columns=["variant", *facts])
    if given.out.is_file():
        table = pd.read_csv(given.out)
        table = table.assign(**{name: 0.0 for name in HELD if name not in table})  # of before it
    table = table.assign(at=table.get("at", table["steps"]))
    at = [given.steps * number // given.looks for number in range(1, given.looks + 1)]
    for name in given.variants or [v for v in VARIANTS if given.features or not projected(v)]:
        facts |= {weight: getattr(given, weight) * projected(name) for weight in HELD}
        judge = load_safely(given.features, "encoder") if projected(name) else None
        facts["judge"] = judge.name if judge else "pixels"
        known = {key: value for key, value in facts.items() if key != "encoder"}
        same = (table["variant"] == name) & np.all(
            [table[key] == value for key, value in known.items()], axis=0
        )
        done = table[same].groupby("encoder")["at"].agg(set)
        left = [x for x in encoders if not done.get(x.name, set()).issuperset(at)]
        if not left:
            continue
        started = time.monotonic()
        recipe = {key: facts[key] for key in ("framing", *HELD)} | VARIANTS[name]
        if judge:
            recipe["encoder"] = judge
        looks = train(seen, given.steps, given.seed, given.looks, **recipe)
        seconds = round(time.monotonic() - started)
        for encoder, (step, samples) in itertools.product(left, zip(at, looks, strict=True)):
            scores = measure(samples, seen, held_out, encoder)
            row = {"variant": name, **facts, "encoder": encoder.name, **scores.round(4)}
            row |= {"seconds": seconds, "at": step}
            table = pd.DataFrame([*table.to_dict("records"), row])
            print(pd.Series(row).to_string(), "\n", flush=True)
        write_text(given.out, table.to_csv(index=False))


if __name__ == "__main__":
    main()
