import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from test_gan import small_gan

from kerasgan.callbacks import Checkpoint, SampleGrid, StopOnNaN
from kerasgan.networks import build_classifier
from kerasgan.reading import read_film

TRAINING = """
import sys, time
import keras, numpy as np
from kerasgan import Checkpoint, DiffAugment, GAN, build_classifier, build_discriminator
from kerasgan import build_generator, fit_classifier, simulate_films

kind, folder, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
films = simulate_films(12, size=16, test_per_class=0)
keras.utils.set_random_seed(5)

class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
        time.sleep(pause)

if kind == "gan":
    model = GAN(build_generator(16, width=4, n_classes=4), build_discriminator(16, 4, 4),
                augment=DiffAugment(), r1=1.0, penalty_every=3, seed=5)
    model.compile(keras.optimizers.Adam(1e-3, 0.5), keras.optimizers.Adam(1e-3, 0.5))
    checkpoint = Checkpoint(folder, every=2)
    first = checkpoint.restore(model)
    model.fit(films.batches(16, seed=5, first_epoch=first, labels=True), initial_epoch=first,
              epochs=12, callbacks=[checkpoint, Slow()], verbose=0)
    history = checkpoint.history
else:
    model = build_classifier(16, 4)
    if pause:
        fit = model.fit
        model.fit = lambda *a, callbacks, **k: fit(*a, callbacks=[*callbacks, Slow()], **k)
    table = fit_classifier(model, films.images, films.labels, epochs=12, batches=3, batch_size=8,
                           seed=5, folder=folder, validation=(films.images, films.labels))
    history = table.where(table.notna(), None).to_dict("records")
np.savez(folder + "-end.npz", *model.get_weights(), epochs=len(history),
         last=[history[-1][name] for name in sorted(history[-1])])
"""


def start(kind, folder, pause):
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, kind, str(folder), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("kind", ["gan", "classifier"])
def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path, kind):
    assert start(kind, tmp_path / "calm", 0).wait(300) == 0
    rng = np.random.default_rng()
    for steps in (rng.integers(7, 20), rng.integers(2, 12)):  # of 36: killed twice, at random
        process = start(kind, tmp_path / "killed", 0.01)
        for _ in range(steps):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"ended before it was killed at step {steps}"
        process.stdout.close()
    assert start(kind, tmp_path / "killed", 0).wait(300) == 0
    calm, killed = (np.load(tmp_path / f"{name}-end.npz") for name in ("calm", "killed"))
    assert calm["epochs"] == 12
    for name in calm.files:
        np.testing.assert_array_equal(calm[name], killed[name], err_msg=name)


def test_a_damaged_checkpoint_gives_way_to_the_previous_one(films16, tmp_path, capsys):
    gan, checkpoint = small_gan(), Checkpoint(tmp_path)
    gan.fit(films16.batches(16), epochs=3, callbacks=[checkpoint], verbose=0)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:1000])
    again, other = small_gan(), Checkpoint(tmp_path)
    assert other.restore(again) == 2 and len(other.history) == 2
    assert "set aside" in capsys.readouterr().err
    other.path.write_bytes(b"")  # the second to be set aside
    other._previous.write_bytes(b"")
    assert Checkpoint(tmp_path).restore(small_gan()) == 0
    assert len(list(tmp_path.glob("checkpoint.damaged*"))) == 2


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_called_damaged(films16, tmp_path):
    gan, checkpoint = small_gan(), Checkpoint(tmp_path)
    gan.fit(films16.batches(16), epochs=1, callbacks=[checkpoint], verbose=0)
    kept = checkpoint.path.rename(tmp_path / "kept.npz")
    checkpoint.path.mkdir()  # an OSError, as of a disk that is gone
    with pytest.raises(IsADirectoryError):
        Checkpoint(tmp_path).restore(small_gan())
    checkpoint.path.rmdir()
    kept.replace(checkpoint.path)
    assert Checkpoint(tmp_path).restore(small_gan()) == 1


def test_a_training_that_is_stopped_early_is_saved(films16, tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    gan = small_gan()
    callbacks = [Enough(), Checkpoint(tmp_path, every=2)]
    gan.fit(films16.batches(16), epochs=9, callbacks=callbacks, verbose=0)
    assert Checkpoint(tmp_path).restore(small_gan()) == 3


def test_a_clock_that_jumped_misleads_no_checkpoint(films16, tmp_path):
    gan, checkpoint = small_gan(), Checkpoint(tmp_path)
    gan.fit(films16.batches(16), epochs=2, callbacks=[checkpoint], verbose=0)
    os.utime(checkpoint._previous, (2e9, 2e9))  # the older one, from the year 2033
    os.utime(checkpoint.path, (1, 1))
    assert Checkpoint(tmp_path).restore(small_gan()) == 2
    checkpoint.path.unlink()  # killed between the two
    with pytest.raises(ValueError, match=r"previous\.npz exists: call restore"):
        small_gan().fit(films16.batches(16), callbacks=[Checkpoint(tmp_path)], verbose=0)


def test_a_checkpoint_of_another_model_is_refused(films16, tmp_path):
    gan, checkpoint = small_gan(), Checkpoint(tmp_path)
    gan.fit(films16.batches(16), callbacks=[checkpoint], verbose=0)
    with pytest.raises(ValueError, match="another model"):
        Checkpoint(tmp_path).restore(small_gan(n_classes=4))
    with pytest.raises(ValueError, match=r"call restore\(model\)"):
        small_gan().fit(films16.batches(16), callbacks=[Checkpoint(tmp_path)], verbose=0)


def test_a_full_disk_keeps_the_last_checkpoint(films16, tmp_path, monkeypatch):
    gan, checkpoint = small_gan(), Checkpoint(tmp_path)
    gan.fit(films16.batches(16), callbacks=[checkpoint], verbose=0)
    kept = checkpoint.path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        gan.fit(films16.batches(16), initial_epoch=1, epochs=2, callbacks=[checkpoint], verbose=0)
    assert checkpoint.path.read_bytes() == kept


def test_nan_stops_the_training_and_keeps_the_last_good_state(films16, tmp_path):
    gan, stop, checkpoint = small_gan(), StopOnNaN(), Checkpoint(tmp_path)

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                kernel = self.model.generator.trainable_variables[0]
                kernel.assign(kernel * np.nan)

    callbacks = [Poison(), stop, checkpoint]
    gan.fit(films16.batches(16), epochs=9, callbacks=callbacks, verbose=0)
    assert "epoch 3, batch 1" in stop.reason and "learning rate" in stop.reason
    small_gan().fit(films16.batches(16), epochs=2, callbacks=[stop], verbose=0)
    assert stop.reason is None, "it forgets a training before"
    again = small_gan()
    assert Checkpoint(tmp_path).restore(again) == 2
    assert all(np.isfinite(value).all() for value in again.get_weights())


def test_nan_that_a_relu_hides_is_found_in_the_weights(films16, tmp_path):
    model = build_classifier(16, 4)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    stop, checkpoint = StopOnNaN(), Checkpoint(tmp_path)

    class Poison(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.trainable_variables[0]
                kernel.assign(kernel * np.nan)

    batches = films16.batches(16, labels=True)
    model.fit(batches, epochs=9, callbacks=[Poison(), stop, checkpoint], verbose=0)
    assert "weights" in stop.reason and "epoch 2" in stop.reason
    assert Checkpoint(tmp_path).restore(model) == 1


def test_grids_show_the_same_latents_at_intervals(films16, tmp_path):
    gan = small_gan(n_classes=4)
    grid = SampleGrid(tmp_path, every=2, count=3)
    gan.fit(films16.batches(16, labels=True), epochs=5, callbacks=[grid], verbose=0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch-00002.png", "epoch-00004.png", "epoch-00005.png"]
    last = read_film(tmp_path / names[-1])
    assert last.shape == (4 * 16, 3 * 16)
    np.testing.assert_array_equal(last[:16, :16], gan.generate(3, 0)[0, ..., 0])
