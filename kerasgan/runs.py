"""Runs: the folder a chain of notebooks works in, its settings, and the profiles of sizes."""

import errno
import json
import os
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

MAX_BYTES = 2**31  # of an archive when unpacked: beyond, it is no file of ours but a bomb


@dataclass(frozen=True)
class Profile:
    """Every size of a run. Counts of images are per class.

    Attributes:
        size: Side of the films in pixels.
        width: Width of both GAN networks.
        gan_epochs: Epochs of each class's GAN.
        gan_classic: Classic images added to the originals the GANs learn from.
        live: `True` trains the GANs behind DiffAugment instead of on stored images alone.
        learning_rates: Adam's rates of the generator and the discriminator.
        classic: Sizes of the classic sets, cumulative; arm `C1` uses the first, and so on.
        synthetic: Sizes of the synthetic sets, cumulative; arm `G1` uses the first, and so on.
        classifier_epochs: Epochs of the classifier, of `classifier_batches` batches each.
        classifier_batches: Batches an epoch.
        double_softmax: `True` trains the classifier through two softmaxes, as the study did.
        arms: Names of the arms compared.
        passes: Passes of the study's own evaluation.
        seeds: Seeds of the classifiers, added to the run's.
        ema: Decay of the averaged generator.
        best_steps: Steps of the best GAN found, one for all classes, or 0: a DCGAN for each class.
        crossval: Settings of `cross_validate` in notebook 05.
        protocol: `"patient"`, or `"reference"` for the study's own split, which shares a patient.
    """

    size: int
    width: int
    gan_epochs: int
    gan_classic: int
    live: bool
    learning_rates: tuple
    classic: tuple
    synthetic: tuple
    classifier_epochs: int
    classifier_batches: int
    double_softmax: bool
    arms: tuple
    passes: int
    seeds: tuple = (0,)
    ema: float = 0.99
    protocol: str = "patient"
    best_steps: int = 0
    crossval: dict = field(default_factory=lambda: {"repeats": 2})


_ALL_ARMS = ("O1", "O1+C1", "O1+C2", "O1+C3", "O1+C4")
_ALL_ARMS += ("O1+C3+G1", "O1+C3+G2", "O1+C3+G3", "O1+C3+G4")

PROFILES = {
    "smoke": Profile(
        size=16,
        width=4,
        gan_epochs=2,
        gan_classic=8,
        live=True,
        learning_rates=(2e-4, 2e-4),
        classic=(8, 16, 24, 32),
        synthetic=(4, 8, 16, 24),
        classifier_epochs=2,
        classifier_batches=2,
        double_softmax=False,
        arms=("O1", "O1+C3", "O1+C3+G3"),
        passes=3,
        crossval={"n_splits": 2, "repeats": 1, "steps": 2, "gan_steps": 2, "gan_width": 4},
    ),
    "quick": Profile(
        size=64,
        width=24,
        gan_epochs=80,
        gan_classic=0,
        live=True,
        learning_rates=(5e-4, 5e-4),
        classic=(125, 250, 500, 750),
        synthetic=(25, 125, 250, 500),
        classifier_epochs=25,
        classifier_batches=4,
        double_softmax=False,
        arms=("O1", "O1+C1", "O1+C3", "O1+C3+G1", "O1+C3+G3"),
        passes=50,
        crossval={"repeats": 1, "steps": 200, "gan_steps": 300},
    ),
    "paper": Profile(
        size=64,
        width=64,
        gan_epochs=200,
        gan_classic=1000,
        live=False,
        learning_rates=(2e-3, 2e-4),
        classic=(500, 1000, 2000, 3000),
        synthetic=(100, 500, 1000, 2000),
        classifier_epochs=750,
        classifier_batches=4,
        double_softmax=True,
        arms=_ALL_ARMS,
        passes=100,
        ema=0.999,
        protocol="reference",
    ),
}
PROFILES["best"] = replace(
    PROFILES["quick"],
    width=32,
    gan_epochs=100,
    best_steps=3_000,
    classic=PROFILES["paper"].classic,
    synthetic=PROFILES["paper"].synthetic,
    classifier_epochs=150,
    crossval={"repeats": 2},
)


def default_root():
    """Returns the folder of all runs: `KERASGAN_RUNS`, else `runs` of the checkout or of here."""
    if root := os.environ.get("KERASGAN_RUNS"):
        return absolute(root)
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def run_folder(name, root=None):
    """Returns the folder of the run of this name in `root`, by default `default_root()`.

    Raises:
        ValueError: If the name is no folder name.
    """
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"a run's name is the name of a folder. Received: name={name!r}")
    return absolute(root or default_root()) / name


class Run:
    """One run: a folder that the notebooks share, and the settings it was begun with.

    The folder holds `settings.json`, `films/`, `classic/`, `gans/`, `synthetic/`, `figures/`,
    tables, and a mark in `stages/` for each finished stage. A run goes on only with the settings
    it was begun with.

    Args:
        name: Name of the run, a folder of `root`.
        profile: Name in `PROFILES`; `None` takes the run's own settings.
        data: Source of the films, as `load_films` takes it; a path is made absolute.
        seed: Integer seed of everything random.
        root: Folder of the runs; `default_root()` when `None`.

    Raises:
        ValueError: If the profile is unknown, the name no folder name, the seed not of 0 to
            2^31 - 1, or the run was begun with other settings.
        FileNotFoundError: If `profile` is `None` and there is no such run, or a new run's films
            are in a folder that is not there.
        OSError: If the folder cannot be written.

    Example:
        >>> run = Run("reproduce", profile="quick", data="auto", seed=0)
        >>> run.path("films")
    """

    def __init__(self, name, profile="quick", data="auto", seed=0, root=None):
        self.name = name
        self.folder = run_folder(name, root)
        begun = self._read()
        if profile is None:
            if begun is None:
                raise FileNotFoundError(f"no run at {self.folder}; begin with notebook 01_data")
            self.settings = begun
        else:
            if profile not in PROFILES:
                raise ValueError(f"profile must be one of {list(PROFILES)}. Received: {profile!r}")
            if not 0 <= int(seed) < 2**31:
                raise ValueError(f"seed must be of 0 to 2^31 - 1. Received: {seed}")
            data = str(absolute(data)) if _is_path(data) else data
            self.settings = {"profile": profile, "data": data, "seed": int(seed)}
            if begun is not None and begun != self.settings:
                raise ValueError(
                    f"{self.folder} was begun with {begun}, not {self.settings}: choose another "
                    "run name (RUN=name), or delete that folder"
                )
            if begun is None and _is_path(data) and not Path(data).is_dir():
                raise FileNotFoundError(
                    f"no folder {data}. Films come from auto, simulated, a collection's name, or "
                    "a folder with one folder of images per class"
                )
        self.profile = PROFILES[self.settings["profile"]]
        self.seed = self.settings["seed"]
        if begun is None:
            write_text(self.folder / "settings.json", json.dumps(self.settings, indent=2) + "\n")

    def _read(self):
        path = self.folder / "settings.json"
        if not path.is_file():
            return None
        remedy = f"delete {self.folder} to begin anew"
        settings = read_json(path, remedy)
        kept = {name: settings.get(name) for name in ("profile", "data", "seed")}
        kinds = [type(value) for value in kept.values()]
        known = kinds == [str, str, int] and kept["profile"] in PROFILES
        if not known or not 0 <= kept["seed"] < 2**31:
            raise ValueError(f"{path} is damaged; {remedy}")
        return kept

    def path(self, *parts):
        """Returns a path inside the run's folder, whose parent folder is made."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def films(self, name="films"):
        """Returns the `Films` of one of the run's folders.

        Args:
            name: `"films"`, `"classic"`, `"synthetic"`.

        Returns:
            The films at their stored size, with the banner of their origin.

        Raises:
            FileNotFoundError: If the notebook that makes them has not run.
        """
        from kerasgan.sources import load_films

        if not (self.folder / name / "index.csv").is_file():
            maker = {"films": "01_data", "classic": "01_data", "synthetic": "03_synthesis"}
            raise FileNotFoundError(
                f"{self.folder / name} is not there yet: run notebook "
                f"{maker.get(name, '01_data')} with RUN={self.name!r} first"
            )
        return load_films(self.folder / name)

    def split(self):
        """Returns the run's training and test films, split by patient.

        Patients and pictures on both sides of the collection's own split leave the training films,
        but under `protocol="reference"`.

        Returns:
            `(train, test)`, two `Films`.

        Raises:
            ValueError: If one side is empty.
        """
        films = self.films()
        together = self.profile.protocol == "patient"
        train, test = films.train_test() if together else map(films.split, ("train", "test"))
        if not len(train) or not len(test):
            raise ValueError(
                f"{films.name} has {len(train)} training and {len(test)} test films; both are "
                "needed. Make train/ and test/ folders, or an index.csv whose column split says so"
            )
        return train, test

    @property
    def published(self):
        """Whether sizes and films are the study's own, so that its published figures compare."""
        from kerasgan.sources import COLLECTIONS

        return self.profile.protocol == "reference" and self.films().name in COLLECTIONS

    def save_table(self, table, name):
        """Writes a DataFrame as `<name>.csv` of the run, whole or not at all.

        Args:
            table: The DataFrame.
            name: Name without ending.

        Returns:
            The same DataFrame.
        """
        write_text(self.path(f"{name}.csv"), table.to_csv(index=False))
        return table

    def save_figure(self, figure, name):
        """Writes a figure as `figures/<name>.png` of the run.

        Args:
            figure: A matplotlib Figure.
            name: Name without ending.

        Returns:
            The same figure, so that a cell can end with it.
        """
        from kerasgan.plots import save_figure

        save_figure(figure, self.path("figures", f"{name}.png"))
        return figure

    def finished(self, stage):
        """Returns the seconds a stage took, or `None` if it has not finished.

        A damaged mark is named and counts as not finished: the stage runs again.
        """
        path = self.folder / "stages" / f"{stage}.json"
        if not path.is_file():
            return None
        try:
            seconds = float(read_json(path, "the stage is run again")["seconds"])
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"seconds are 0 or more. Received: {seconds}")
            return seconds
        except (ValueError, KeyError, TypeError) as error:
            print(f"Damaged mark of a finished stage, which is run again: {path} ({error})")
            return None

    def finish(self, stage, seconds):
        """Marks a stage as finished after `seconds`; it is not run again."""
        mark = json.dumps({"seconds": round(seconds, 1)})
        write_text(self.path("stages", f"{stage}.json"), mark + "\n")


def _is_path(data):
    from kerasgan.sources import COLLECTIONS

    return data not in ("auto", "simulated", *COLLECTIONS)


def absolute(path):
    """Returns the absolute path, `~` expanded.

    Args:
        path: The path.

    Raises:
        ValueError: If it is empty, names the home of an unknown user, or holds a null character.
    """
    try:
        if not str(path):
            raise ValueError("it is empty")
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, TypeError) as error:  # the last of odd command lines
        raise ValueError(f"{str(path)!r} is no usable path ({error}); give another") from None


def read_json(path, remedy):
    """Reads a JSON object.

    Args:
        path: The file's path.
        remedy: What to do about a damaged file, for the message.

    Returns:
        The object, a dict.

    Raises:
        ValueError: If the file is damaged or holds something else.
        OSError: If it cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged, it is no JSON object; {remedy}")
    return found


_TEXTS = ("arm", "class", "classifier", "data_hash", "filename", "kind", "label", "patient")
_TEXTS += ("split",)


def short_hash(content):
    """Returns the first 16 digits of the sha256 of bytes or of a text: what settings note."""
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def begin(folder, arms, **facts):
    """Notes what a folder of results was begun with, and refuses to mix it with anything else.

    Args:
        folder: The folder, made if missing.
        arms: Dict from name to definition; further arms may join later.
        **facts: Whatever all its results have in common.

    Raises:
        ValueError: If the folder was begun with other facts, or an arm meant something else.
    """
    path = Path(folder) / "settings.json"
    new = json.loads(json.dumps({"facts": facts, "arms": arms}))
    remedy = f"delete {folder}, or give another folder"
    known = read_json(path, remedy) if path.is_file() else new
    if not all(isinstance(known.get(part), dict) for part in new):
        raise ValueError(f"{path} is damaged, or of a run of the notebooks: give another folder")
    for part in ("facts", "arms"):
        for name in new[part]:
            if name in known[part] and known[part][name] != new[part][name]:
                raise ValueError(
                    f"{folder} was begun with {name}={known[part][name]}: give another folder, or "
                    f"delete that one. Received: {name}={new[part][name]}"
                )
    merged = {part: {**known[part], **new[part]} for part in ("facts", "arms")}
    if merged != known or not path.is_file():
        write_text(path, json.dumps(merged, indent=2) + "\n")


@contextmanager
def locked(folder, remedy="choose another folder"):
    """Holds a folder for this process, in a `with` block, so that no second one writes to it.

    The operating system gives the lock back when the process ends, however it ends.

    Args:
        folder: The folder, made if missing.
        remedy: What else to do, for the message.

    Raises:
        BlockingIOError: If another process holds it; the message has its number.
        OSError: If the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock"), folder / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        number = holder.read_text().strip() if holder.is_file() else "not known"
        raise BlockingIOError(
            f"{folder} is in use by another process (pid {number}): wait for it or stop it, or "
            f"{remedy}"
        ) from None
    try:
        write_text(holder, f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        if made and {*os.listdir(folder)} <= {".lock"}:  # nothing came of it
            with suppress(OSError):  # Windows keeps a file that is open
                (folder / ".lock").unlink()
                for path in made:
                    path.rmdir()
        lock.release()


def read_table(path, remedy, needs=()):
    """Reads a CSV file that this package wrote.

    Args:
        path: The file's path.
        remedy: What to do about a damaged file, for the message.
        needs: Names of columns that it must have.

    Returns:
        The table, a DataFrame with rows.

    Raises:
        ValueError: If the file is damaged, or lacks a column or any row.
        OSError: If it cannot be read.
    """
    import pandas as pd

    try:
        # As text even where a class is called 0 or NA, or a patient 007.
        table = pd.read_csv(path, converters=dict.fromkeys(_TEXTS, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None
    if table.empty:
        raise ValueError(f"{path} holds no row: {remedy}")
    if missing := sorted({*needs} - {*table}):
        raise ValueError(f"{path} is damaged, it lacks the columns {', '.join(missing)}: {remedy}")
    return table


def read_arrays(path):
    """Reads an `.npz` file without running anything in it, and not beyond `MAX_BYTES`.

    Args:
        path: The file's path.

    Returns:
        Dict from name to array.

    Raises:
        ValueError: If the file is damaged, too large, or holds other things than numbers and text.
        OSError: If it is missing or may not be read.
    """
    import numpy as np

    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds for damaged files
        # A disk's own trouble is none of the file's; a damaged one sends zipfile to odd places.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{path} is no readable .npz file: {error}") from None
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{path} is no .npz file: {other[0]} in it is no array")
    return arrays


def check_archive(path):
    """Raises `ValueError` unless `path` is a zip archive of at most `MAX_BYTES` unpacked.

    One that takes as much on the disk, as a large checkpoint does, is no bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"damaged, or no archive at all ({error})") from None
    if size > max(MAX_BYTES, Path(path).stat().st_size):
        raise ValueError(f"{size:,} bytes when unpacked, the limit is {MAX_BYTES:,}")


def write_text(path, text):
    """Writes a text file whole or not at all.

    Args:
        path: The file's path; its folder is made.
        text: The text, written as UTF-8.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    write_bytes(path, text.encode())


def write_bytes(path, content):
    """Writes a file whole or not at all, as `write_text` does.

    Args:
        path: The file's path; its folder is made.
        content: The bytes.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
