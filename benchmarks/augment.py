"""Live augmentation, images a second: our layers against torchvision, image by image.

    pip install -r benchmarks/requirements.txt
    python benchmarks/augment.py

torchvision applies the same operations, as the study did, to one PIL image after another, in as
many DataLoader workers as we have threads. The last row is what DiffAugment costs a training step.
"""

import time

import numpy as np
from record import arguments, medians, record

SIZE, BATCH = 64, 64


def classic_of_torchvision():
    """The study's classic augmentation: PIL image -> tensor (1, 64, 64) in [-1, 1]."""
    from torchvision.transforms import v2

    def maybe(operation, times):
        return [v2.RandomApply([operation], 0.5)] * times

    return v2.Compose(
        [
            v2.Resize(2 * SIZE),
            *maybe(v2.ColorJitter(brightness=0.5, contrast=0.5), 2),
            *maybe(v2.RandomRotation(5), 2),
            *[v2.RandomHorizontalFlip()] * 2,
            *maybe(v2.RandomAffine(0, scale=(0.9, 1.1)), 4),
            *maybe(v2.RandomAffine(0, translate=(0.1, 0.1)), 4),
            v2.Resize(SIZE),
            *_to_tensor(v2),
        ]
    )


def diffaugment_of_torchvision():
    """Colour, translation and cutout as DiffAugment's: PIL image -> tensor (1, 64, 64)."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.ColorJitter(brightness=0.5, contrast=0.5),
            v2.RandomCrop(SIZE, padding=SIZE // 8),
            *_to_tensor(v2),
            v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1, 1)),
        ]
    )


def _to_tensor(v2):
    import torch

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]


def torchvision_speed(transform, images, threads):
    """Returns a function that measures a pass over the images by a DataLoader, images a second."""
    import torch
    from PIL import Image

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, position):
            return transform(Image.fromarray(images[position, ..., 0]))

    loader = torch.utils.data.DataLoader(
        Pictures(), BATCH, num_workers=threads, persistent_workers=True
    )

    def measure():
        batches = iter(loader)
        next(batches)  # the workers are up
        started = time.perf_counter()
        count = sum(len(batch) for batch in batches)
        return count / (time.perf_counter() - started)

    return measure


def our_speed(layer, images):
    """Returns a function that measures passes over the images, images a second."""
    import tensorflow as tf

    @tf.function
    def augmented(batch, number):
        return layer(tf.cast(batch, tf.float32) / 127.5 - 1, seed=tf.stack([0, number]))

    batches = [tf.constant(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]

    def measure():
        started = time.perf_counter()
        for number, batch in enumerate(batches):
            augmented(batch, tf.constant(number)).numpy()
        return len(images) / (time.perf_counter() - started)

    measure()
    return measure


def step_seconds(augment, films, width):
    """Returns a function that measures a training step of the reference DCGAN, seconds."""
    from kerasgan import reference_gan

    gan, batches = reference_gan(SIZE, width, augment=augment), films.batches(32)
    gan.fit(batches, verbose=0)

    def measure():
        started = time.perf_counter()
        gan.fit(batches, verbose=0)
        return (time.perf_counter() - started) / len(batches)

    return measure


def main():
    options = arguments(__doc__)
    import torch._dynamo  # noqa: F401 -- before TensorFlow: later, their copies of LLVM collide

    import kerasgan

    count = BATCH * (4 if options.quick else 32)
    images = np.resize(kerasgan.simulate(np.arange(256) % 4, SIZE), (count, SIZE, SIZE, 1))
    pipelines = {
        "classic": (classic_of_torchvision(), kerasgan.ClassicAugmentation()),
        "DiffAugment": (
            diffaugment_of_torchvision(),
            kerasgan.DiffAugment(("colour", "translation", "cutout")),
        ),
    }
    other = {
        name: torchvision_speed(transform, images, options.threads)
        for name, (transform, _) in pipelines.items()
    }
    for measure in other.values():
        measure()  # starts the workers: forked, as they must be, before TensorFlow has threads
    for name, (_, layer) in pipelines.items():
        cases = {"ours": our_speed(layer, images), "torchvision": other[name]}
        measured = medians(cases, options.rounds)
        case = f"{name} {SIZE} x {SIZE}"
        record(options, case, measured["ours"], measured["torchvision"], "images/s", 10)
    films = kerasgan.simulate_films(32 if options.quick else 128, size=SIZE, test_per_class=0)
    width = 32 if options.quick else 64
    cases = {
        "with": step_seconds(kerasgan.DiffAugment(), films, width),
        "without": step_seconds(None, films, width),
    }
    measured = medians(cases, options.rounds)
    case = f"a step of width {width} with DiffAugment against without"
    record(options, case, measured["with"], measured["without"], "s", 0.9, lower_is_better=True)


if __name__ == "__main__":
    main()
