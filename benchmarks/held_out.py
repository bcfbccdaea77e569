"""GANs against films they never saw: those of an evaluation's folds, and these folds' test films.

    python benchmarks/held_out.py covid-xray-64 --encoder runs/lite0.keras

Takes the GANs that `python -m kerasgan compare` has trained, one a fold. Each fold gives, class by
class, KID and neighbours on equal counts against films seen and not seen, the floor between the
two, and the AUC of two attacks on membership: by the nearness of the samples, and by the
discriminator's logits. Means over folds, whose intervals are corrected for shared training films
(Nadeau and Bengio 2003). With --keep-off each class's generator is kept off the films of its fold
first. Replaces the rows of these GANs in --out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

import kerasgan as kg
from kerasgan import crossval, quality
from kerasgan.runs import short_hash, write_text
from kerasgan.scores import corrected_t_test

COLUMNS = ["generator", "class", "reference_set", "encoder", "metric"]
COLUMNS += ["value", "low", "high", "floor", "authors"]


def near(real, fake):
    """KID, density and coverage of two sets of features of one size."""
    density, coverage = quality.density_coverage(real, fake, k=min(5, len(real) - 1))
    kid = quality.kid(real, fake, len(real), subsets=1)[0]
    return {"kid": kid, "density": density, "coverage": coverage}


def measure(gan, train, test, encoder, truncation=None, draws=10):
    """Rows (class, reference_set, encoder, metric, value, floor) of one fold."""
    rng, attacks = np.random.default_rng(0), {"nearness": ([], []), "discriminator": ([], [])}
    for label, name in enumerate(train.classes):
        seen, fresh = (side.only(name).images for side in (train, test))
        generator = kg.one_class(gan.averaged, label)
        if truncation:
            generator = kg.keep_off(generator, train.only(name), truncation=truncation)
        samples = kg.draw(generator, max(300, len(fresh)), seed=1)
        features = [encoder(images) for images in (seen, fresh, samples)]
        count, scores = len(fresh), {"seen films": [], "held-out films": [], None: []}
        for _ in range(draws):
            known, fake = (x[rng.permutation(len(x))[:count]] for x in features[::2])
            for key, pair in {
                "seen films": (known, fake),
                "held-out films": (features[1], fake),
                None: (features[1], known),
            }.items():
                scores[key].append(near(*pair))
        means = {key: pd.DataFrame(rows).mean() for key, rows in scores.items()}
        for key in ("seen films", "held-out films"):
            for metric, value in means[key].items():
                yield name, key, encoder.name, metric, value, means[None][metric]
        for side, images in enumerate((seen, fresh)):
            attacks["nearness"][side].append(quality.nearness(images, samples))
            logits = quality.verdicts(gan.discriminator, images, label)
            attacks["discriminator"][side].append(logits)
    classes = np.concatenate([np.sort(side.labels) for side in (train, test)])
    for name, sides in attacks.items():
        auc = quality.attack_auc(*(np.concatenate(side) for side in sides), classes=classes)[0]
        kind = "pixels" if name == "nearness" else "discriminator"
        yield "macro", "seen against held-out films", kind, "membership", auc, 0.5


def main():
    """Measures every fold whose GAN is there, and joins the rows to those of other generators."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--folder", type=Path, default=Path("runs/crossval"))
    parser.add_argument("--encoder", help=".keras file; the best that can be had by default")
    parser.add_argument("--gan-encoder", help="as given to compare, where it judged the GANs")
    parser.add_argument("--held", action="store_true", help="the GANs of the arm held samples")
    parser.add_argument("--keep-off", type=float, metavar="TRUNCATION", help="after the training")
    parser.add_argument("--folds", type=int, help="the first so many alone, 2 or more")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/quality.csv"))
    given = parser.parse_args()
    films = kg.load_films(given.data, size=given.size)
    encoder = quality.Encoder.keras(given.encoder) if given.encoder else quality.best_encoder()
    facts = json.loads((given.folder / "settings.json").read_text())["facts"]
    if facts["films"] != films.hash:
        parser.error(f"{given.folder} is of other films, or of another --size")
    if facts["code"] != crossval.CODE:
        parser.error(f"{given.folder} is of other code, whose GANs would be trained anew")
    steps, width = facts["gan_steps"], facts["gan_width"]
    judge = given.gan_encoder and short_hash(Path(given.gan_encoder).read_bytes())
    if judge != facts.get("gan_encoder"):
        parser.error("give --gan-encoder where compare was given one, and the same file")
    kind = "projected" if given.gan_encoder else "conditional"
    kind, arm = (f"{kind}, held", "held samples") if given.held else (kind, crossval.PRIMARY[0])
    kind += f", kept off at {given.keep_off}" if given.keep_off else ""
    done = crossval.read_predictions(given.folder).query("arm == @arm")
    keys = ["class", "reference_set", "encoder", "metric"]
    trained, tables = set(zip(done["repeat"], done["fold"], strict=True)), []
    for fold, (train, test) in enumerate(
        films.folds(facts["n_splits"], given.repeats, facts["seed"])
    ):
        place = divmod(fold, facts["n_splits"])
        if place not in trained or len(tables) == given.folds:
            continue
        recipe = given.folder / "gans", width, given.gan_encoder, given.held
        gan = crossval.fold_gan(train, steps, *recipe, crossval.fold_seed(place))
        rows = measure(gan, train, test, encoder, given.keep_off)
        tables.append(pd.DataFrame(rows, columns=[*keys, "value", "floor"]))
        print(f"fold {fold} measured", flush=True)
    n_test = len(films) // facts["n_splits"]
    rows = []
    for key, own in pd.concat(tables).groupby(keys, sort=False):
        value, low, high = corrected_t_test(own["value"], len(films) - n_test, n_test)[:3]
        rows.append((*key, value, low, high, own["floor"].mean()))
    table = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "floor"])
    name = f"{kind}, {steps:,} steps"
    table.insert(0, "generator", f"{name}, {len(tables)} folds")
    if given.out.is_file():
        others = pd.read_csv(given.out)
        others = others[~others["generator"].str.startswith(f"{name}, ")]
        table = pd.concat([others, table], ignore_index=True)
    write_text(given.out, table.reindex(columns=COLUMNS).to_csv(index=False))
    print(table[table["generator"].str.startswith(f"{name}, ")].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
