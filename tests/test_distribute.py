"""Several devices and several machines: real logical devices and real worker processes."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

DEVICES = """
import sys
import keras, numpy as np, tensorflow as tf
import kerasgan as kg

norm, folder = sys.argv[1:]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
films = kg.simulate_films(4, size=16, test_per_class=0)
batch = tf.data.Dataset.from_tensors((kg.to_float(films.images), films.labels))
fewer = tf.data.Dataset.from_tensors((kg.to_float(films.images[:15]), films.labels[:15]))
uneven = batch.concatenate(fewer)
penalties = {"r1": 1.0, "r2": 1.0} if norm == "none" else {}
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
devices = {"one": tf.distribute.get_strategy(), "two": two}
for name, strategy in devices.items():
    with strategy.scope():
        keras.utils.set_random_seed(0)
        gan = kg.GAN(kg.build_generator(16, 8, 4), kg.build_discriminator(16, 4, norm=norm),
                     **penalties)
        gan.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
        keras.utils.set_random_seed(0)
        classifier = kg.build_classifier(16, 4, dropout=0.0)
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        classifier.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    logs = gan.fit(uneven, verbose=0).history | classifier.fit(batch, verbose=0).history
    weights = [*gan.get_weights(), *classifier.get_weights()]
    np.savez(f"{folder}/{name}.npz", *weights, logs=[logs[key][0] for key in sorted(logs)])
    drawn = gan.generate(5, seed=3)
    with strategy.scope():
        table = kg.fit_classifier(classifier, films.images, films.labels, epochs=2, batch_size=8)
    print(drawn.shape, len(table), np.isfinite(table.to_numpy()).all())
"""

WORKER = """
import sys, time
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before all else, as it opens the ports
import keras, numpy as np
import kerasgan as kg

folder, pause = sys.argv[1], float(sys.argv[2])
films = kg.simulate_films(8, size=16, test_per_class=0)

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch + 1, flush=True)
        time.sleep(pause)

with strategy.scope():
    keras.utils.set_random_seed(0)
    gan = kg.GAN(kg.build_generator(16, 8, 4, 4), kg.build_discriminator(16, 4, 4, norm="none"),
                 augment=kg.DiffAugment())
    gan.compile(keras.optimizers.Adam(1e-3, 0.5), keras.optimizers.Adam(1e-3, 0.5))
checkpoint = kg.Checkpoint(folder)
first = checkpoint.restore(gan)
print("first", first, flush=True)
gan.fit(films.batches(16, first_epoch=first, labels=True), initial_epoch=first, epochs=6, verbose=0,
        callbacks=[checkpoint, Slow(), kg.SampleGrid(folder + "/samples", every=6)])
with strategy.scope():
    keras.utils.set_random_seed(0)
    classifier = kg.build_classifier(16, 4, dropout=0.0)
    table = kg.fit_classifier(classifier, films.images, films.labels, epochs=3, batch_size=16,
                              validation=(films.images, films.labels), folder=folder + "/cnn")
print("classifier", table.round(4).to_dict("list"), flush=True)
task = strategy.cluster_resolver.task_id
np.savez(f"{folder}/end-{task}.npz", *gan.get_weights(), *classifier.get_weights())
"""


@pytest.mark.parametrize("norm", ["batch", pytest.param("none", marks=pytest.mark.slow)])
def test_two_devices_take_the_step_of_one_on_the_same_global_batch(tmp_path, norm):
    command = [sys.executable, "-c", DEVICES, norm, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == 2 * ["(5, 16, 16, 1) 2 True"]
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert len(one.files) == len(two.files) > 20
    for name in one.files:
        near = 1e-2 if name == "logs" else 1e-4  # means of the devices' means
        np.testing.assert_allclose(one[name], two[name], atol=2e-5, rtol=near, err_msg=name)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(folder, pause):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for task in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": task}}
        command = [sys.executable, "-c", WORKER, str(folder), str(pause)]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        workers.append(subprocess.Popen(command, env=environment, **quiet))
    return workers


@pytest.mark.slow
def test_a_job_of_two_workers_restarts_where_it_was_when_one_is_killed(tmp_path):
    workers = start_workers(tmp_path, 0.5)
    for line in workers[1].stdout:
        if line.strip() == "epoch 3":
            break
    workers[1].kill()
    time.sleep(1)
    workers[0].kill()  # what a job's manager does when a worker is gone
    for worker in workers:
        worker.wait()
        worker.stdout.close()
    assert (tmp_path / "checkpoint.npz").exists() and not (tmp_path / "end-0.npz").exists()
    again = start_workers(tmp_path, 0)
    outputs = [worker.communicate(timeout=300)[0].split("\n") for worker in again]
    assert [worker.returncode for worker in again] == [0, 0]
    firsts = {int(output[0].split()[1]) for output in outputs}
    assert len(firsts) == 1 and 2 <= firsts.pop() < 6
    assert outputs[0][1:] == outputs[1][1:] and "val_accuracy" in outputs[0][-2]
    for worker in start_workers(tmp_path / "calm", 0):
        assert worker.communicate(timeout=300) and worker.returncode == 0
    one, two, calm = (
        np.load(tmp_path / f"{name}.npz") for name in ("end-0", "end-1", "calm/end-0")
    )
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        np.testing.assert_allclose(one[name], calm[name], atol=1e-3, err_msg=name)
    assert len(list((tmp_path / "samples").iterdir())) == 1
    assert not list(tmp_path.glob("partial*"))
