"""Training throughput of the reference DCGAN: `GAN.fit` against a plain PyTorch loop.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gan_step.py

Both train the same networks on the same batches with the same losses, optimizers and threads; ours
averages the generator's weights as well. A further row sets our arithmetic against the machine's
float32 matrix product: FLOPs are those of the published updates (generator forward and backward;
discriminator on real and on generated images forward and backward; once more on generated images
forward and back to its input), two per multiplication, convolutions alone. --half sets our training
in bfloat16, one setting of Keras, against that in float32; without AVX-512 it takes minutes.
"""

import time
from functools import partial

from record import arguments, medians, record

BATCH, SIZE, LATENT = 32, 64, 100


def torch_networks(width):
    from torch import nn

    def block(layer, norm, activation):
        return [layer, *([nn.BatchNorm2d(layer.out_channels)] if norm else []), activation]

    widths = [8 * width, 4 * width, 2 * width, width]
    generator = block(
        nn.ConvTranspose2d(LATENT, widths[0], 4, 1, 0, bias=False), True, nn.ReLU(True)
    )
    for before, after in zip(widths, [*widths[1:], 1], strict=True):
        last = after == 1
        layer = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
        generator += block(layer, not last, nn.Tanh() if last else nn.ReLU(True))
    discriminator = []
    for before, after in zip([1, *widths[:0:-1]], widths[::-1], strict=True):
        layer = nn.Conv2d(before, after, 4, 2, 1, bias=False)
        discriminator += block(layer, before > 1, nn.LeakyReLU(0.2, True))
    discriminator += [nn.Conv2d(widths[0], 1, 4, 1, 0, bias=False), nn.Flatten()]
    networks = nn.Sequential(*generator), nn.Sequential(*discriminator)
    for module in (module for network in networks for module in network):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return networks


def torch_trainer(width, images, threads):
    """Returns a function that trains for `steps` steps and returns images a second."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    generator, discriminator = torch_networks(width)
    adam = {"betas": (0.5, 0.999), "eps": 1e-8}
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, **adam)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, **adam)
    loss = torch.nn.BCEWithLogitsLoss()
    real_label, fake_label = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def step():
        real = pixels[torch.randint(len(pixels), (BATCH,))].float() / 127.5 - 1
        fake = generator(torch.randn(BATCH, LATENT, 1, 1))
        discriminator.zero_grad(set_to_none=True)
        loss(discriminator(real), real_label).backward()
        loss(discriminator(fake.detach()), fake_label).backward()
        d_optimizer.step()
        generator.zero_grad(set_to_none=True)
        loss(discriminator(fake), real_label).backward()
        g_optimizer.step()

    def train(steps):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        return BATCH * steps / (time.perf_counter() - started)

    return train


def our_trainer(width, films, policy="float32"):
    """Returns a GAN and a function that trains it for `steps` steps and returns images a second."""
    import keras

    from kerasgan import reference_gan

    keras.mixed_precision.set_global_policy(policy)
    gan = reference_gan(SIZE, width)
    keras.mixed_precision.set_global_policy("float32")

    def train(steps):
        batches = films.batches(BATCH)
        started = time.perf_counter()
        gan.fit(batches, epochs=steps // len(batches), verbose=0)
        return BATCH * steps / (time.perf_counter() - started)

    return gan, train


def flops(gan):
    """FLOPs of one step: those of every convolution's passes in the published updates."""
    import keras

    def of(model):
        total = 0
        for layer in model.layers:
            if isinstance(layer, keras.layers.Conv2D):
                height, width = layer.output.shape[1:3]
            elif isinstance(layer, keras.layers.Conv2DTranspose):
                height, width = layer.input.shape[1:3]
            else:
                continue
            total += 2 * height * width * layer.kernel.shape.num_elements() * BATCH
        return total

    return 3 * of(gan.generator) + 8 * of(gan.discriminator)


def matmul_peak(side=2048):
    """Returns a function that measures float32 matrix products, FLOP/s."""
    import tensorflow as tf

    a, b = tf.random.normal((side, side)), tf.random.normal((side, side))

    def measure():
        started = time.perf_counter()
        for _ in range(3):
            tf.matmul(a, b).numpy()
        return 3 * 2 * side**3 / (time.perf_counter() - started)

    return measure


def main():
    options = arguments(__doc__, {"--half": "also in bfloat16"})
    import torch._dynamo  # noqa: F401 -- before TensorFlow: later, their copies of LLVM collide

    import kerasgan

    steps = 4 if options.quick else 32
    films = kerasgan.simulate_films(steps * BATCH // 4, size=SIZE, test_per_class=0)
    peak = matmul_peak()
    for width in (32,) if options.quick else (64, 32):
        gan, ours = our_trainer(width, films)
        other = torch_trainer(width, films.images, options.threads)
        trainers = {"ours": ours, "torch": other}
        if options.half:
            _, trainers["half"] = our_trainer(width, films, "mixed_bfloat16")
        for train in trainers.values():
            train(steps)  # traces, and warms the caches
        cases = {name: partial(train, steps) for name, train in trainers.items()} | {"peak": peak}
        measured = medians(cases, options.rounds)
        case = f"DCGAN {SIZE} x {SIZE}, width {width}, batch {BATCH}"
        record(options, case, measured["ours"], measured["torch"], "images/s", 1.5)
        if options.half:
            record(options, f"{case}, bfloat16", measured["half"], measured["ours"], "images/s")
        arithmetic = flops(gan) * measured["ours"] / BATCH / 1e9
        record(options, f"{case}, share of matmul", arithmetic, measured["peak"] / 1e9, "GFLOP/s")


if __name__ == "__main__":
    main()
