"""Callbacks: exact resume, sample grids, a stop on numbers that are none."""

import contextlib
import itertools
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np

from kerasgan.gan import classes_of
from kerasgan.runs import read_arrays, write_bytes


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole state of a training, atomically, and restores it exactly.

    One file holds all weights, the average, both optimizers with their step, the seeds and the
    history. As batches and draws are functions of (seed, epoch) and (seed, step), a training that
    was killed, restored and carried on ends with the same bits as one left alone (on a GPU where
    TensorFlow's ops are made deterministic). The file before is kept as well: if the newest is
    damaged, it is set aside, named, and the other is used. Where several workers train together,
    the chief writes and all restore, from a folder they share.

    Args:
        folder: Folder of the checkpoint, made if missing.
        every: Epochs from one save to the next; the last epoch is always saved.

    Example:
        >>> checkpoint = Checkpoint("runs/covid/checkpoint")
        >>> first = checkpoint.restore(gan)
        >>> gan.fit(
        ...     train.batches(32, first_epoch=first),
        ...     initial_epoch=first,
        ...     epochs=200,
        ...     callbacks=[checkpoint],
        ... )
    """

    def __init__(self, folder, every=1):
        super().__init__()
        self.folder, self.every = Path(folder), every
        self.history, self.restored, self.unsaved = [], False, None

    @property
    def path(self):
        """The newest checkpoint's path."""
        return self.folder / "checkpoint.npz"

    def restore(self, model):
        """Restores `model`, compiled, from the newest sound checkpoint.

        Args:
            model: The compiled model, built as it was when saved.

        Returns:
            The number of finished epochs, to pass on as `initial_epoch`; 0 with no checkpoint.

        Raises:
            ValueError: If the checkpoint is of another model (shapes or number of variables).
        """
        self.restored = True
        for path in (self.path, self._previous):
            state = _read(path)
            if state is not None:
                _assign(model, state, path)
                self.history = state["history"]
                return state["epoch"]
        return 0

    @property
    def _previous(self):
        return self.folder / "previous.npz"

    def on_train_begin(self, logs=None):
        """Refuses to overwrite a checkpoint that was not restored."""
        found = [path for path in (self.path, self._previous) if path.exists()]
        if found and not self.restored:
            raise ValueError(
                f"{found[0]} exists: call restore(model) before fit, or delete {self.folder}"
            )
        self.restored = True
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        """Notes the epoch's means and saves when one is due."""
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.history.append({"epoch": epoch + 1, **logs})
        finite, last = all(np.isfinite(list(logs.values()))), epoch + 1 == self.params.get("epochs")
        due = last or (epoch + 1) % self.every == 0
        self.unsaved = epoch + 1 if finite and not due else None
        if finite and due:
            self._save(epoch + 1)

    def on_train_end(self, logs=None):
        """Saves the last epoch of a training that another callback stopped."""
        if self.unsaved:
            self._save(self.unsaved)

    def _save(self, epoch):
        state = {f"v{i}": np.asarray(v) for i, v in enumerate(_variables(self.model))}
        if not is_chief(self.model) or not _all_finite(state.values()):
            return
        partial = self.folder / "partial.npz"
        try:
            with open(partial, "wb") as file:
                np.savez(file, epoch=epoch, history=json.dumps(self.history), **state)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                os.replace(self.path, self._previous)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)


def is_chief(model):
    """Whether this process writes files: one does where several train together."""
    return model.distribute_strategy.extended.should_checkpoint


def _all_finite(arrays):
    return all(np.isfinite(array).all() for array in arrays)


def _read(path):
    """The arrays of a checkpoint; `None` where there is none or it is damaged (set aside)."""
    if not path.exists():
        return None
    try:
        state = read_arrays(path)
        if any(value.dtype.kind not in "fiub" for name, value in state.items() if name[0] == "v"):
            raise ValueError("a variable is no number")
        history, epoch = json.loads(str(state["history"])), int(state["epoch"])
        if epoch < 0 or not isinstance(history, list):
            raise ValueError("the history is no list")
        return state | {"history": history, "epoch": epoch}
    except FileNotFoundError:  # another worker set it aside
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        names = (path.with_suffix(f".damaged{number or ''}") for number in itertools.count())
        aside = next(name for name in names if not name.exists())
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            os.replace(path, aside)
        # On stderr, which `run` shows from its notebooks.
        print(f"Damaged checkpoint set aside as {aside}: {error}", file=sys.stderr)
        return None


def _variables(model):
    """All state of a training, in a fixed order, each variable once."""
    optimizers = [
        optimizer
        for name in ("optimizer", "generator_optimizer", "discriminator_optimizer")
        if (optimizer := getattr(model, name, None)) is not None
    ]
    if getattr(model, "optimizer", None) is not None:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    found = list(model.variables)
    for optimizer in optimizers:
        found += optimizer.variables
    return list({id(variable): variable for variable in found}.values())


def _assign(model, state, path):
    variables = _variables(model)
    values = [state.get(f"v{i}") for i in range(len(state) - 2)]
    shapes = [tuple(variable.shape) for variable in variables]
    if [getattr(value, "shape", None) for value in values] != shapes:
        raise ValueError(
            f"{path} is a checkpoint of another model or optimizer; delete {path.parent} to train "
            f"anew. Received: {len(values)} variables where the model has {len(variables)}"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class StopOnNaN(keras.callbacks.Callback):
    """Stops a training as soon as any logged number is not finite, and says which and when.

    Unlike `keras.callbacks.TerminateOnNaN`, which reads only `loss`, it reads every log, and after
    every epoch the weights: a ReLU on some devices makes 0 of NaN, so that no log shows it. Put it
    first in the list; `Checkpoint` saves no such state, so the last good one stays.

    Attributes:
        reason: `None`, or a sentence: which number, in which epoch.
    """

    def __init__(self):
        super().__init__()
        self.reason, self.epoch = None, 0

    def on_train_begin(self, logs=None):
        """Forgets a training before."""
        self.reason = None

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Checks the batch's logs."""
        bad = [name for name, value in (logs or {}).items() if not np.isfinite(float(value))]
        if bad:
            self._stop(f"{', '.join(bad)} became NaN or infinite", f", batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        """Checks the weights."""
        if not _all_finite(np.asarray(v) for v in self.model.trainable_variables):
            self._stop("weights became NaN or infinite")

    def _stop(self, what, batch=""):
        if self.reason is None:
            self.reason = f"{what} in epoch {self.epoch + 1}{batch}; try a lower learning rate"
            print(f"\nStopped: {self.reason}")
            self.model.stop_training = True


class SampleGrid(keras.callbacks.Callback):
    """Writes a grid of samples of the same latents every few epochs, `epoch-00010.png`.

    Args:
        folder: Folder of the grids, made if missing.
        every: Epochs from one grid to the next; the last epoch is always drawn.
        count: Images in a grid, a row of them per class for a conditional GAN; of one whose number
            of classes is not known, as of those without an `Embedding`, there are no grids.
        seed: Integer seed of the latents.
    """

    def __init__(self, folder, every=10, count=8, seed=0):
        super().__init__()
        self.folder, self.every, self.count, self.seed = Path(folder), every, count, seed

    def on_epoch_end(self, epoch, logs=None):
        """Draws and writes a grid when one is due."""
        due = epoch + 1 == self.params.get("epochs") or (epoch + 1) % self.every == 0
        if not due or self.model.stop_training or not is_chief(self.model):
            return
        import cv2

        n_classes = classes_of(self.model.generator) if self.model.conditional else 1
        if n_classes == np.inf:
            return
        rows = range(n_classes) if self.model.conditional else [None]
        images = [self.model.generate(self.count, label, self.seed) for label in rows]
        grid = np.vstack([np.hstack(list(row)) for row in images])
        path = self.folder / f"epoch-{epoch + 1:05d}.png"
        write_bytes(path, cv2.imencode(".png", grid)[1].tobytes())
