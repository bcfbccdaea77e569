"""The command line: `python -m kerasgan run | prepare | audit | quality | compare | ...`."""

import argparse
import contextlib
import errno
import logging
import os
import re
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "; make room on the disk and give the same command again",
    errno.EACCES: "; choose a folder and files that you may read and write",
    errno.EPERM: "; choose a folder and files that you may read and write",
    errno.EROFS: "; choose a folder on a disk that can be written",
    errno.ENOTDIR: "; a file is in the way: choose another folder",
    errno.ENAMETOOLONG: "; choose a shorter name",
}
_TRAIN = "python -m kerasgan train {} FOLDER"
NOTEBOOKS = ("01_data", "02_gans", "03_synthesis", "04_comparison")


def main(arguments=None):
    """Runs one command; returns the exit status.

    Args:
        arguments: List of words, `sys.argv[1:]` when `None`.

    Returns:
        0, or 1 after an error, which is printed in one line.
    """
    arguments = _parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's talk of processors and GPUs
    try:
        _expand(arguments)
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from what is finished.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, MemoryError, FloatingPointError) as error:
        reason = " ".join(f"{error}{_REMEDIES.get(getattr(error, 'errno', None), '')}".split())
        print(f"kerasgan: {reason}", file=sys.stderr)
        return 1
    except BrokenExecutor:
        print(
            "kerasgan: a worker process was lost, perhaps for want of memory; what it finished is "
            "kept: give the same command again, with fewer --jobs",
            file=sys.stderr,
        )
        return 1
    except Exception as error:  # after all others, which it holds
        library = sys.modules.get("tensorflow")
        if library is None or not isinstance(error, library.errors.OpError):
            raise
        reason = (error.message or type(error).__name__).splitlines()[0]
        print(
            f"kerasgan: TensorFlow stopped, perhaps for want of memory: {reason}. What is finished "
            "is kept: try a smaller --size, --width or batch",
            file=sys.stderr,
        )
        return 1


def _expand(arguments):
    """Makes folders absolute, and a ~ a home: a shell leaves that of `--folder=~/films`."""
    from kerasgan.runs import absolute

    for name, value in vars(arguments).items():
        if isinstance(value, str) and name in ("folder", "models", "out"):
            setattr(arguments, name, str(absolute(value)))
        elif isinstance(value, str) and value.startswith("~"):
            setattr(arguments, name, os.path.expanduser(value))


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kerasgan", description="GAN augmentation for small medical image sets."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "execute the four notebooks and write the report")
    run.add_argument(
        "name", nargs="?", default="reproduce", help="its folder in runs/ beside the notebooks"
    )
    run.add_argument("--profile", default="quick", help="smoke, quick (default), best or paper")
    run.add_argument("--data", default="auto", help="collection, folder, or simulated")
    run.add_argument("--seed", type=_seed, default=0)

    prepare = _command(commands, "prepare", _prepare, "turn raw films into square grey PNG files")
    prepare.add_argument("data", help="collection or folder of class folders")
    prepare.add_argument("folder", help="where the prepared films go")
    prepare.add_argument("--size", type=int, default=64, help="pixels a side, default 64")
    prepare.add_argument("--fit", default="squash", choices=("squash", "pad"))

    audit = _command(commands, "audit", _audit, "look for leaks, duplicates and confounds")
    audit.add_argument("data", help="collection or folder of class folders")
    audit.add_argument(
        "--patients", help="regular expression: the part of a file name that names the patient"
    )

    train = _command(commands, "train", _train, "train and save generators and a classifier")
    train.add_argument("data", help="collection or folder of class folders; test films stay out")
    train.add_argument("folder", help="where checkpoints and best-<class>/ or dcgan-<class>/ go")
    train.add_argument("--size", type=int, default=64)
    train.add_argument("--width", type=_count, help="32 by default, 64 with --reference")
    train.add_argument("--steps", type=_count, help="batches of 32, default 6000")
    train.add_argument("--seed", type=_seed, default=0)
    train.add_argument(
        "--encoder",
        help="MobileNetV2 or a .keras file: the discriminator judges its features (projected GAN)",
    )
    train.add_argument("--moments", type=float, help="weight of films' moments: 2 with --encoder")
    train.add_argument("--hog", type=float, help="weight of films' gradients, likewise 4")
    train.add_argument(
        "--no-framing", action="store_true", default=None, help="a generator that does not frame"
    )
    train.add_argument(
        "--reference",
        nargs="*",
        metavar="CLASS",
        help="instead: the study's DCGAN, profile paper, of every class, or of these",
    )
    train.add_argument("--epochs", type=_count, help="of --reference; 200 by default")

    off = _command(commands, "keep-off", _keep_off, "move generators' near copies off their films")
    off.add_argument("models", help="folder of a saved generator, or saved_models/best for best-*")
    off.add_argument("data", help="the collection or folder that they were trained on")
    off.add_argument("folder", help="where the changed generators go")
    off.add_argument(
        "--truncation", type=float, default=1.0, help="below 1: less variety, for good"
    )
    off.add_argument(
        "--hog", type=float, default=0.5, help="weight of films' gradients, 0 for none"
    )
    off.add_argument(
        "--margin", type=float, default=1.12, help="how far off, in limits of the screen for copies"
    )
    off.add_argument("--seed", type=_seed, default=0)

    synthesise = _command(commands, "synthesise", _synthesise, "draw images from a saved generator")
    synthesise.add_argument("model", help="folder of a saved generator")
    synthesise.add_argument("folder", help="where the images go")
    synthesise.add_argument("--count", type=_count, default=100, help="images a class")
    synthesise.add_argument("--seed", type=_seed, default=0)
    synthesise.add_argument("--truncation", type=float, default=1.0, help="below 1: less variety")
    screening = synthesise.add_mutually_exclusive_group()
    screening.add_argument(
        "--screen",
        help="films trained on, by default the card's collection where it can be had: leave out "
        "what comes near to one",
    )
    screening.add_argument("--no-screen", action="store_true")

    quality = _command(commands, "quality", _quality, "measure generated images beside real ones")
    quality.add_argument(
        "real", help="collection or folder of real films, the training side; read at FAKE's size"
    )
    quality.add_argument(
        "fake",
        nargs="+",
        help="folders of class folders, .npz by class, or saved_models/best for the models best-*",
    )
    quality.add_argument("--classes", nargs="+", metavar="CLASS", help="these alone")
    quality.add_argument(
        "--authors", help="published samples by class, .npz or a folder, to compare with"
    )
    quality.add_argument(
        "--discriminator", help="of the first FAKE, a .keras file: adds its attack on membership"
    )
    quality.add_argument(
        "--encoder", nargs="+", help="hog, an ImageNet architecture, or a .keras file; or several"
    )
    quality.add_argument(
        "--out",
        help="CSV file for the table; a figure and a list of near copies come beside it (of saved "
        "models by their number in `synthesise --seed 1`)",
    )
    quality.add_argument("--cards", action="store_true", help="write scores to the models' cards")

    compare = _command(commands, "compare", _compare, "cross-validate the arms by patient")
    compare.add_argument("data", nargs="?", default="auto", help="collection or folder")
    compare.add_argument("--folder", default="runs/crossval", help="where finished cells are kept")
    compare.add_argument("--size", type=int, default=64)
    compare.add_argument("--folds", type=_folds, default=5, help="at least 2")
    compare.add_argument("--repeats", type=_count, default=2)
    compare.add_argument(
        "--first-repeat",
        type=int,
        default=0,
        help="go on from OUT's table of the repeats before this one",
    )
    compare.add_argument("--seeds", type=_count, default=1, help="classifiers per arm and fold")
    compare.add_argument("--steps", type=_count, default=600, help="gradient steps of a classifier")
    compare.add_argument("--gan-steps", type=_count, default=1500)
    compare.add_argument("--gan-width", type=_count, default=32)
    compare.add_argument(
        "--classifiers", default="resnet", help="comma-separated: cnn, resnet, transfer"
    )
    compare.add_argument(
        "--encoder", help="of transfer: hog, MobileNetV2, or a pretrained .keras file"
    )
    compare.add_argument(
        "--gan-encoder", help="MobileNetV2 or a .keras file: the GANs are judged by its features"
    )
    compare.add_argument(
        "--further", nargs="*", metavar="ARM", help="also ratios, filters, schedules: all, or these"
    )
    compare.add_argument("--no-probes", action="store_true", help="leave out no lungs, no covid")
    compare.add_argument("--out", help="folder of tables and figures; by default that of the cells")
    compare.add_argument(
        "--jobs",
        type=_count,
        default=max(1, (os.cpu_count() or 1) // 4),
        help="folds at a time on this machine; by default one for every four processors",
    )
    compare.add_argument("--scheduler", help="address of a Dask scheduler")

    reproduction = _command(
        commands, "reproduction", _reproduction, "repeat the study's nine arms on its own split"
    )
    reproduction.add_argument("data", nargs="?", default="covid-xray-64", help="with a test split")
    reproduction.add_argument(
        "--synthetic", required=True, help="the study's samples: folder, or .npz by class"
    )
    reproduction.add_argument("--ours", help="samples of other GANs, for arms of their own")
    reproduction.add_argument("--out", default="results", help="folder of reproduction.csv")
    reproduction.add_argument("--folder", default="runs/reproduction", help="of finished arms")
    reproduction.add_argument("--size", type=int, default=64)
    reproduction.add_argument("--seeds", type=_count, default=10, help="of the arms --again")
    reproduction.add_argument(
        "--again", nargs="+", metavar="ARM", help="by default O1, O1+C3 and O1+C3+G3"
    )
    reproduction.add_argument(
        "--first-seed",
        type=int,
        default=0,
        help="go on from OUT's table of the seeds before this one",
    )
    reproduction.add_argument("--epochs", type=_count, default=750, help="of 4 batches of 64")
    reproduction.add_argument(
        "--passes", type=_count, default=100, help="of the study's evaluation"
    )
    reproduction.add_argument(
        "--single-softmax", action="store_true", help="plain cross entropy, not the study's loss"
    )
    reproduction.add_argument("--jobs", type=_count, default=1, help="arms at a time")
    reproduction.add_argument(
        "--transfer", help="first a linear model on hog, or a pretrained .keras file's features"
    )

    models = _command(commands, "models", _models, "list saved models")
    models.add_argument("folder", nargs="?", default="saved_models")
    return parser


def _command(commands, name, function, text):
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(command=function)
    return command


def _count(text):
    """An argument that counts something: a whole number of at least 1."""
    if not 1 <= (number := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f"must be at least 1 and below 2**31. Received: {text}")
    return number


def _folds(text):
    if (number := _count(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2. Received: {text}")
    return number


def _seed(text):
    if not 0 <= (number := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**31 - 1. Received: {text}")
    return number


def _run(arguments):
    from kerasgan.runs import Run, locked, run_folder

    # Held before its settings are looked at: a second run's are not to be written over them.
    with locked(run_folder(arguments.name), "choose another run name (RUN=name)"):
        return _run_stages(Run(arguments.name, arguments.profile, arguments.data, arguments.seed))


def _run_stages(run):
    from kerasgan.report import write_report

    print(f"Run {run.name}: {run.settings}\nFolder: {run.folder}", flush=True)
    for stage in NOTEBOOKS:
        seconds = run.finished(stage)
        if seconds is None:
            print(f"\n== {stage}", flush=True)
            started = time.monotonic()
            if not _execute(run, stage):
                return 1
            run.finish(stage, time.monotonic() - started)
        else:
            print(f"\n== {stage}: finished earlier, in {seconds:.0f} s", flush=True)
    report = write_report(run, NOTEBOOKS)
    _print_results(run, report)
    return 0


def _execute(run, stage):
    """Executes one notebook into the run's folder; prints what went wrong if it fails."""
    import nbclient
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel

    source = Path(__file__).resolve().parent.parent / "notebooks" / f"{stage}.ipynb"
    if not source.is_file():
        raise FileNotFoundError(f"no notebook at {source}: run this from a checkout of kerasgan")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.WARNING)  # the cells' progress bars alone
    os.environ.setdefault("TQDM_MININTERVAL", "15")  # a line now and then, not ten a second
    os.environ["KERASGAN_RUNS"] = str(run.folder.parent)
    target = run.path("notebooks", f"{stage}.ipynb")
    names = {"profile": "PROFILE", "data": "DATA", "seed": "SEED"}
    parameters = {names[key]: value for key, value in run.settings.items()} | {"RUN": run.name}
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=False,
            log_output=True,
            extra_arguments=[
                "--log-level=50"
            ],  # no warnings of the kernel's own, nor its tracebacks
        )
    except (nbclient.exceptions.DeadKernelError, NoSuchKernel) as error:
        raise ChildProcessError(
            f"{stage}: {error}. Was it short of memory, or is Jupyter's kernel not installed? Give "
            "the same command again: it goes on from the last finished stage"
        ) from None
    except papermill.exceptions.PapermillExecutionError as error:
        print(
            f"kerasgan: {stage} stopped in a cell: {error.ename}: {error.evalue}\n"
            f"The notebook so far: {target}\nMend the cause and give the same command again: it "
            "goes on from the last finished stage.",
            file=sys.stderr,
        )
        return False
    return True


def _print_results(run, report):
    from kerasgan.report import caution, summary_table

    print(f"\n{summary_table(run).to_string(index=False)}\n")
    for stage in NOTEBOOKS:
        print(f"{stage:15} {run.finished(stage):8.0f} s")
    films = run.films()
    if films.note:
        print(f"\n{films.note}")
    print(f"\n{caution(films)}\nReport: {report}")


def _prepare(arguments):
    from kerasgan.preparation import prepare
    from kerasgan.runs import locked
    from kerasgan.sources import load_films

    raw = load_films(arguments.data)
    with locked(arguments.folder):
        films = prepare(raw, arguments.folder, size=arguments.size, fit=arguments.fit)
    print(films.counts().to_string())
    for file, reason in films.skipped:
        print(f"passed over {file}: {reason}")
    passed = f", {len(films.skipped)} files passed over" if films.skipped else ""
    print(f"{len(films)} films in {Path(arguments.folder).resolve()}{passed}")


def _audit(arguments):
    from kerasgan.auditing import audit
    from kerasgan.sources import load_films

    print(audit(load_films(arguments.data, patient_pattern=arguments.patients)))


def _train(arguments):
    from kerasgan.runs import locked
    from kerasgan.sources import load_films, refuse_inside

    for_reference = arguments.reference is not None
    best = ("steps", "encoder", "moments", "hog", "no_framing")
    others = best if for_reference else ("epochs",)
    others = [name for name in others if getattr(arguments, name) is not None]
    if others:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"{told}: not {'with' if for_reference else 'without'} --reference")
    arguments.steps = arguments.steps or 6_000
    films = load_films(arguments.data, size=arguments.size)
    refuse_inside(arguments.folder, films)
    train, _ = films.train_test()
    with locked(arguments.folder):
        (_train_best if arguments.reference is None else _train_reference)(train, arguments)


def _asked(train, arguments):
    """The command of a training, as its models' cards name it, as far as all trainings share it."""
    options = {
        "size": (train.size, 64),
        "width": (arguments.width, None),
        "seed": (arguments.seed, 0),
    }
    changed = (f" --{name} {now}" for name, (now, default) in options.items() if now != default)
    return f"{_TRAIN.format(train.name)}{''.join(changed)}"


def _train_best(train, arguments):
    """The best GAN found, for all classes at once, a classifier, and an encoder made of it."""
    from kerasgan.store import load_safely, save_generator, write_model
    from kerasgan.training import HELD, fit_best

    steps, folder, encoder = arguments.steps, Path(arguments.folder), None
    changes = {name: getattr(arguments, name) for name in HELD}
    changes = {name: weight for name, weight in changes.items() if weight is not None}
    command = "".join(f" --{name} {weight:g}" for name, weight in changes.items())
    if arguments.no_framing:
        changes, command = changes | {"framing": False}, f"{command} --no-framing"
    command = f"{_asked(train, arguments)} --steps {steps}{command}"
    facts = {"seed": arguments.seed, "command": command}
    if arguments.encoder:
        encoder = load_safely(_pretrained(arguments.encoder, arguments), "encoder")
        facts["command"] += f" --encoder {Path(arguments.encoder).name}"
        facts["judged_by"] = f"features of {encoder.name}"
    width = arguments.width or 32
    gan, history, own = fit_best(train, steps, folder, width, encoder, arguments.seed, **changes)
    facts |= {name: getattr(gan, name) for name in HELD}
    # Beside the checkpoint, not among the models to share: it knows its films (`membership`).
    write_model(gan.discriminator, folder / "discriminator.keras")
    # One network learnt all classes together.
    told = {"trained_with": train, "kind": "best", "epochs": len(history), **facts}
    for name, generator in own.items():
        place = folder / f"best-{name}"
        print(save_generator(generator, place, train.only(name), precision="float16", **told))
    _train_classifier(train, min(steps, 600), folder, facts)


def _train_reference(train, arguments):
    """The study's DCGAN of each class asked for, by the profile `paper`."""
    from kerasgan.films import Films
    from kerasgan.runs import PROFILES
    from kerasgan.store import save_generator
    from kerasgan.synthesis import classic_set
    from kerasgan.training import fit_gan, reference_gan

    paper, folder, seed = PROFILES["paper"], Path(arguments.folder), arguments.seed
    epochs, width = arguments.epochs or paper.gan_epochs, arguments.width or paper.width
    names = train.only(*(arguments.reference or train.classes)).classes  # refuses unknown ones
    classic = classic_set(train, paper.gan_classic, folder / "classic", seed=seed)
    for name in names:
        own = Films.concat([train.only(name), classic.only(name)])
        gan = reference_gan(train.size, width, paper.learning_rates, ema=paper.ema, seed=seed)
        history = fit_gan(gan, own, epochs, folder / "gans" / name)
        facts = {"kind": "dcgan", "epochs": len(history), "seed": seed}
        facts["command"] = f"{_asked(train, arguments)} --reference {name} --epochs {epochs}"
        place = folder / f"dcgan-{name}"
        print(save_generator(gan, place, train.only(name), precision="bfloat16", **facts))


def _keep_off(arguments):
    """Saved generators, moved off their films by `keep_off`, with cards that say so."""
    from kerasgan.runs import locked
    from kerasgan.sources import load_films
    from kerasgan.store import load_model, models_called, read_card

    path, out = Path(arguments.models), Path(arguments.folder)
    one = (path / "card.json").is_file()
    places = [path] if one else [*models_called(path).values()]
    if not places:
        raise ValueError(f"no saved generator in {path}, nor any {path.name}-CLASS beside it")
    if out == places[0].parent or {out, *out.parents} & {*places}:
        raise ValueError(f"{out} holds the generators as they are: give another folder")
    models = {place: (load_model(place), read_card(place)) for place in places}
    films = load_films(arguments.data, size=models[places[0]][0].output_shape[1])
    sides = [_trained_on(card, films) for _, card in models.values()]  # refuses other films
    with locked(out):
        for (place, (generator, card)), side in zip(models.items(), sides, strict=True):
            print(_kept_off(generator, card, side, out / place.name, arguments))


def _trained_on(card, films):
    """The films of the split `train`, of all classes, that a saved generator was trained on."""
    from kerasgan.store import shared_patients

    for side in _training_sides(films):
        seen = side.only(*card.get("trained_with", card["classes"]))
        known = len(shared_patients(card, seen)) == len(card["data"].get("patients", []))
        if known and seen.only(*card["classes"]).hash == card["data"].get("hash"):
            return seen
    told = _of_other_films(card, films) or f"{card['name']} was trained on more films"
    raise ValueError(f"{told}. Give the films it was trained on, of all its classes")


def _kept_off(generator, card, seen, place, arguments):
    """Saves one generator kept off its films; a sentence of what that changed."""
    import numpy as np

    from kerasgan.gan import draw
    from kerasgan.quality import memorization
    from kerasgan.store import load_model, read_card, save_generator
    from kerasgan.training import HELD, keep_off

    told = ("kind", "epochs", "seed", "judged_by", "truncation", *HELD)
    facts = {name: card[name] for name in told if name in card}
    options = {name: getattr(arguments, name) for name in ("seed", "hog", "truncation", "margin")}
    facts["truncation"] = facts.get("truncation", 1) * options["truncation"]
    words = [f"--{name} {value}" for name, value in options.items()]
    command = f"python -m kerasgan keep-off MODELS {seen.name} FOLDER {' '.join(words)}"
    facts["command"] = f"{card.get('command', 'unknown')}; {command}"
    if (place / "card.json").is_file():
        if read_card(place).get("command") == facts["command"]:
            return f"{place}: kept off before"
        raise ValueError(f"{place} holds a generator of other options: give another folder")
    own = seen.only(*card["classes"])
    tuned = keep_off(generator, own, **options)
    others = seen if "trained_with" in card else None
    save_generator(tuned, place, own, others, card.get("weights"), **facts)
    drawn = [draw(model, 1_000, seed=1) for model in (generator, load_model(place))]
    near = [memorization(x, own.images, patients=own.patients)["flagged"].sum() for x in drawn]
    moved = np.abs(np.subtract(*drawn, dtype=float)).mean()
    return (
        f"{place}: near copies among 1,000 samples: {near[0]} before, {near[1]} now; a sample "
        f"differs from what it was by {moved:.1f} of 256 grey levels in the mean"
    )


def _train_classifier(train, steps, folder, facts):
    """A classifier of the training films, and an encoder: the classifier less its last layers."""
    import keras

    from kerasgan.classify import fit_steps
    from kerasgan.store import save_classifier

    phases = [(1.0, train.images, train.labels)]
    model = fit_steps("resnet", phases, len(train.classes), steps, 64, seed=facts["seed"])
    facts |= {"trained": f"resnet, {steps} steps of 64, classic augmentation, real films alone"}
    print(save_classifier(model, folder / "classifier-classic", train, **facts))
    encoder = keras.Model(model.input, model.layers[-3].output, name="domain_encoder")
    print(save_classifier(encoder, folder / "encoder", train, "encoder", **facts))


def _synthesise(arguments):
    import numpy as np
    import pandas as pd

    from kerasgan.films import Films, save_films
    from kerasgan.gan import draw
    from kerasgan.runs import locked, write_text
    from kerasgan.store import load_model, read_card
    from kerasgan.synthesis import draw_fresh

    card, generator = read_card(arguments.model), load_model(arguments.model)
    classes, distances = card.get("classes"), Path(arguments.folder) / "distances.csv"
    if distances.is_file() and not distances.with_name("about.json").is_file():
        raise ValueError(f"{distances} is of no samples drawn here: choose another folder")
    if not classes:
        raise ValueError(f"the card of {arguments.model} names no classes; save the model again")
    size, conditional = generator.output_shape[1], len(generator.inputs) > 1
    films = _screening_films(card, size, arguments)
    images, tables = [], []
    for label, name in enumerate(classes):
        which = label if conditional else None
        options = {"seed": arguments.seed + label, "truncation": arguments.truncation}
        if films is None:
            images.append(draw(generator, arguments.count, which, **options))
            continue
        own = films.split("train").only(name)
        drawn, table = draw_fresh(generator, own, arguments.count, which, **options)
        images.append(drawn)
        tables.append(table.assign(**{"class": name}))
    labels = np.repeat(range(len(classes)), arguments.count)
    facts = {"name": f"samples of {card['name']}", "note": films.note if films else ""}
    facts["filenames"] = [f"synthetic-{i:05d}.png" for i in range(arguments.count)] * len(classes)
    drawn = Films.from_arrays(np.concatenate(images), labels, classes, **facts)
    with locked(arguments.folder):
        made = save_films(drawn, arguments.folder)
        distances.unlink(missing_ok=True)  # of samples drawn there before
        if tables:
            table = pd.concat(tables, ignore_index=True).drop(columns="flagged")
            table.insert(0, "filename", made.index["filename"])
            write_text(distances, table.to_csv(index=False))
    if tables:
        near = table.groupby("class")["distance"].min() / table.groupby("class")["limit"].first()
        print(
            f"nearest to a film, in multiples of the screen's limit:\n{near.round(2).to_string()}"
        )
    print(f"{len(made)} synthetic images in {Path(arguments.folder).resolve()}; not for diagnosis")


def _screening_films(card, size, arguments):
    """The films that samples are screened against, or `None`: given, or the card's collection."""
    from kerasgan.sources import COLLECTIONS, load_films

    name, films = card["data"].get("name"), None
    if arguments.screen:
        films = load_films(arguments.screen, size=size)
        films.only(*card["classes"])  # refuses films that lack one
        if text := _of_other_films(card, films):
            print(f"WARNING: {text}")
    elif name in COLLECTIONS and not arguments.no_screen:
        with contextlib.suppress(OSError, ValueError):  # also where it is damaged
            films = load_films(name, size=size)
        if films is not None and _of_other_films(card, films):
            films = None
    if films is None:
        print("not screened for copies of films: --screen FILMS leaves out what comes near to one")
    return films


def _of_other_films(card, films):
    """A sentence where films are not those that the generator was trained on, else nothing."""
    classes = card.get("classes") or films.classes
    films = films.only(*(name for name in classes if name in films.classes))
    rest, own = _training_sides(films)
    if card["data"].get("hash") in (own.hash, rest.hash):
        return ""
    return (
        f"{card['name']} was trained on other films ({card['data'].get('films')} of "
        f"{card['data'].get('name')}) than {films.name}'s {len(own)}: copies of those may pass"
    )


def _training_sides(films):
    """What a model of these films is trained on: all but the test films' patients, or `train`."""
    return films.train_test()[0], films.split("train")


def _quality(arguments):
    from kerasgan import plots, quality, report
    from kerasgan.sources import load_films
    from kerasgan.store import add_scores, load_safely, read_card
    from kerasgan.synthesis import load_samples

    if arguments.classes and arguments.discriminator:
        raise ValueError("a discriminator knows its classes by number: leave --classes")
    if arguments.out and not arguments.out.endswith(".csv"):
        raise ValueError(f"--out is a CSV file, beside which the figure comes: {arguments.out}")
    films, paths = load_films(arguments.real), _named(arguments.fake)
    classes = films.only(*(arguments.classes or films.classes)).classes  # refuses unknown ones
    cards = _cards(paths, classes)
    if arguments.cards and not cards:
        raise ValueError(
            f"no saved models in {arguments.fake}, whose cards to write: leave --cards"
        )
    samples = {name: load_samples(path, classes) for name, path in paths.items()}
    fakes = {name: _by_class(drawn) for name, drawn in samples.items()}
    films = load_films(arguments.real, size=next(iter(samples.values())).size).only(*classes)
    told = (_of_other_films(read_card(folder), films) for _, _, folder in cards)
    if other := [text for text in told if text]:
        if arguments.cards:
            raise ValueError(f"{other[0]}. Leave --cards, or give the films trained on")
        print(f"WARNING: {other[0]}")
    real, test = films.train_test()
    authors = _by_class(load_samples(arguments.authors, classes)) if arguments.authors else None
    encoder = [_encoder(name) for name in arguments.encoder or [None]]
    for judge in {read_card(folder).get("judged_by", "") for _, _, folder in cards}:
        if same := [each.name for each in encoder if _is_the_judge(each.name, judge)]:
            print(
                f"WARNING: {same[0]} judged these generators in their training ({judge}), and is "
                "no blind judge of their samples: add --encoder with another"
            )
    discriminators = {}
    if arguments.discriminator:
        discriminators[next(iter(fakes))] = load_safely(Path(arguments.discriminator))
    table = quality.compare_films(
        real, fakes, encoder, authors, "train", test if len(test) else None, discriminators
    )
    if arguments.out:
        from kerasgan.runs import write_text

        write_text(arguments.out, table.to_csv(index=False))
        figure = plots.plot_quality(table, note=films.note)
        plots.save_figure(figure, Path(arguments.out).with_suffix(".png"))
        copies = Path(arguments.out).with_suffix(".copies.csv")
        write_text(copies, _near_copies(real, samples).to_csv(index=False))
    for name, kind, folder in cards if arguments.cards else ():
        own = (table["generator"] == name) & table["class"].isin([kind, "macro"])
        add_scores(folder, table[own])
    shown = table.to_string(index=False, float_format="{:.3g}".format)
    print(f"{shown}\n\n{report.caution(films)}")


def _is_the_judge(encoder, judged_by):
    """Whether an encoder's architecture is named as what a GAN was judged by, on its card."""
    plain = re.sub("imagenet|[^a-z0-9]", "", encoder.split("(")[0].lower())
    return plain != "" and plain in re.sub("[^a-z0-9]", "", judged_by.lower())


def _named(paths):
    """Paths of generated sets by what tables call them: last names, or with their folders'."""
    names = [Path(path).name.removesuffix(".npz") for path in paths]
    if len(set(names)) < len(names):
        whole = zip(paths, names, strict=True)
        names = [f"{Path(path).parent.name}/{name}" for path, name in whole]
    if len(set(names)) < len(names):
        raise ValueError(f"generated sets need names of their own. Received: {paths}")
    return dict(zip(names, paths, strict=True))


def _by_class(samples):
    return {name: samples.only(name).images for name in samples.classes}


def _near_copies(real, samples):
    """The generated images that the screen takes for copies, and the film each is nearest to."""
    import pandas as pd

    from kerasgan.synthesis import screen

    tables = []
    for name, drawn in samples.items():
        found = screen(drawn, real, per_class=None).assign(generator=name)
        found["sample"] = found.groupby("class").cumcount()
        found["film"] = real.index["filename"].to_numpy()[found["nearest"]]
        tables.append(found[found["flagged"]])
    columns = ["generator", "class", "sample", "film", "distance", "limit"]
    return pd.concat(tables, ignore_index=True)[columns]


def _encoder(name):
    from kerasgan.quality import Encoder, best_encoder

    if name is None:
        return best_encoder()
    if name.lower() == "hog":
        return Encoder.hog()
    return Encoder.keras(name) if name.endswith(".keras") else Encoder.imagenet(name)


def _cards(paths, classes):
    """The saved generators `<path>-<class>` of named paths: (name of the set, class, folder)."""
    from kerasgan.store import models_called

    return [
        (name, kind, folder)
        for name, path in paths.items()
        for kind, folder in models_called(path).items()
        if kind in classes
    ]


def _pretrained(name, arguments):
    """The path of an encoder; MobileNetV2 is fetched once and kept in the folder."""
    from kerasgan.networks import build_imagenet_encoder
    from kerasgan.store import write_model

    if name != "MobileNetV2":
        return name
    path = Path(arguments.folder) / f"{name}-{arguments.size}.keras"
    if not path.is_file():
        write_model(build_imagenet_encoder(arguments.size), path)
    return path


def _sole_writer(out, folder):
    """Holds the folder of the tables; that of the evaluation itself is held anyway."""
    from kerasgan.runs import locked

    same = out.resolve() == Path(folder).resolve()
    return contextlib.nullcontext() if same else locked(out)


def _compare(arguments):
    import pandas as pd

    from kerasgan import crossval, mixes, report
    from kerasgan.classify import CLASSIFIERS
    from kerasgan.sources import load_films

    classifiers = tuple(name.strip() for name in arguments.classifiers.split(","))
    known = [*CLASSIFIERS, "transfer"]
    if unknown := set(classifiers) - set(known):
        raise ValueError(f"classifiers are {known}. Received: {sorted(unknown)}")
    if arguments.encoder and "transfer" not in classifiers:
        raise ValueError("--encoder is of --classifiers transfer; the GANs' is --gan-encoder")
    out = Path(arguments.out or arguments.folder)
    films, go_on = load_films(arguments.data, size=arguments.size), arguments.first_repeat > 0
    if films.note:
        print(films.note)
    if not 0 <= arguments.first_repeat < arguments.repeats:
        raise ValueError(
            f"--first-repeat must be of 0 to {arguments.repeats - 1}. Received: "
            f"{arguments.first_repeat}"
        )
    settings = {
        "n_splits": arguments.folds,
        "steps": arguments.steps,
        "gan_steps": arguments.gan_steps,
        "gan_width": arguments.gan_width,
        "classifiers": classifiers,
        "encoder": _pretrained(arguments.encoder, arguments),
        "gan_encoder": _pretrained(arguments.gan_encoder, arguments),
    }
    probes = () if arguments.no_probes else mixes.PROBES
    further = {arm.name: arm for arm in mixes.FURTHER_ARMS}
    chosen = () if arguments.further is None else arguments.further or further
    if unknown := set(chosen) - set(further):
        raise ValueError(f"further arms are {[*further]}. Received: {sorted(unknown)}")
    made = crossval.facts_of(films, **settings)
    place = out, films, arguments.folds, classifiers[0], arguments.first_repeat
    with _sole_writer(out, arguments.folder):
        report.check_tables(*place, made)

        def save(folder):
            rows = crossval.read_scores(folder, films, classifiers)
            report.write_rows(out, "comparison", rows, go_on)

        crossval.cross_validate(
            films,
            [*mixes.CORE_ARMS, *probes, *(further[name] for name in chosen)],
            arguments.folder,
            on_fold=save,
            **settings,
            repeats=arguments.repeats,
            first_repeat=arguments.first_repeat,
            seeds=tuple(range(arguments.seeds)),
            n_jobs=arguments.jobs,
            scheduler=arguments.scheduler,
        )
        scores, table = report.write_evaluation(
            films, arguments.folder, out, arguments.folds, classifiers, go_on, made
        )
        macro = scores[scores["class"] == "macro"]
        print(macro.pivot_table("value", ["classifier", "arm"], "metric").round(3).to_string())
        print(pd.read_csv(out / "levels.csv").round(3).to_string(index=False))
        print(table.round(3).to_string(index=False))
        for warning in crossval.shortcut_warnings(scores):
            print(f"WARNING {warning}")
        print(f"\n{report.caution(films)}\nTables: {out.resolve()}")


def _reproduction(arguments):
    import pandas as pd

    from kerasgan import compare, report
    from kerasgan.crossval import transfer_encoder
    from kerasgan.runs import write_text
    from kerasgan.sources import load_films
    from kerasgan.synthesis import load_samples

    films, out = load_films(arguments.data, size=arguments.size), Path(arguments.out)
    given, sets = {"": arguments.synthetic, "ours": arguments.ours}, {}
    for suffix, path in given.items():
        if path:
            largest = max(arm.synthetic for arm in compare.REFERENCE_ARMS.values())
            sets[suffix] = own = load_samples(path, films.classes, largest)
            print(f"{path}: {len(own)} samples, repeated where an arm asks for more", flush=True)

    path, first, fast = out / "reproduction.csv", arguments.first_seed, None
    if not 0 <= first < arguments.seeds:
        raise ValueError(f"--first-seed must be of 0 to {arguments.seeds - 1}. Received: {first}")
    again = arguments.again or compare.MAIN_ARMS
    arms, seeds = compare.REFERENCE_ARMS, range(first, arguments.seeds)
    fitted = {(arm.name, seed) for arm, seed, _ in compare.plan(arms, sets, seeds, again)}
    options = {
        "epochs": arguments.epochs,
        "passes": arguments.passes,
        "double_softmax": not arguments.single_softmax,
    }
    made = options | {f"synthetic {suffix}".strip(): own.hash for suffix, own in sets.items()}
    with _sole_writer(out, arguments.folder):
        earlier = report.earlier_rows(path, fitted, films, arguments.transfer, first > 0, made)

        def together(table):
            return pd.concat([earlier, table, fast], ignore_index=True)

        def save(table):
            write_text(path, together(table).to_csv(index=False))
            report.write_options(path, made)

        if arguments.transfer:
            encoder = transfer_encoder(arguments.transfer)
            fast = compare.reproduce_by_transfer(films, arguments.folder, sets, encoder)
        table = together(
            compare.reproduce(
                films,
                arguments.folder,
                sets,
                seeds,
                save,
                again=again,
                n_jobs=arguments.jobs,
                **options,
            )
        )
        report.write_reproduction(films, table, arguments.folder, out)
        accuracy = table[table["metric"] == "accuracy"]
        summary = accuracy.pivot_table(
            ["value", "published"], ["arm"], "evaluation", ["mean", "std", "count"], sort=False
        )
        print(summary["mean"].round(3).to_string())
        print(compare.seed_noise(table).round(3).to_string(index=False))
        print(f"\n{report.caution(films)}\nTables: {out.resolve()}")


def _models(arguments):
    from kerasgan.store import list_models

    print(list_models(arguments.folder).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
