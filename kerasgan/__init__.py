"""GAN augmentation for small medical image sets, in Keras. Research code, not for diagnosis.

Public names are resolved when first used, so `import kerasgan` is cheap and the parts that need no
TensorFlow do not load it.
"""

import importlib
import os
import sys
import warnings
from pathlib import Path

__version__ = "0.1.0"

_NAMES = {
    "films": ("Films", "save_films", "to_float", "to_uint8"),
    "sources": ("load_films",),
    "preparation": ("prepare",),
    "auditing": ("audit",),
    "phantom": ("simulate", "simulate_films"),
    "augment": ("AdaptiveAugment", "ClassicAugmentation", "DiffAugment"),
    "networks": (
        "build_classifier",
        "build_discriminator",
        "build_generator",
        "build_imagenet_encoder",
        "build_projected_discriminator",
        "build_resnet",
        "one_class",
        "truncated",
    ),
    "losses": ("LOSSES",),
    "gan": ("GAN", "draw"),
    "callbacks": ("Checkpoint", "SampleGrid", "StopOnNaN"),
    "synthesis": ("classic_set", "draw_fresh", "load_samples", "screen", "synthesise"),
    "store": (
        "add_scores",
        "check_trained_on",
        "list_models",
        "load_model",
        "read_card",
        "save_classifier",
        "save_generator",
    ),
    "compare": (
        "REFERENCE_ARMS",
        "Arm",
        "accuracy_curve",
        "compare_arms",
        "confusion_of",
        "fit_classifier",
        "history_of",
        "predict",
        "reference_arms",
        "reproduce",
        "seed_noise",
        "with_published",
    ),
    "mixes": ("CORE_ARMS", "FURTHER_ARMS", "PROBES", "Mix"),
    "crossval": (
        "contrasts",
        "cross_validate",
        "detectable",
        "read_predictions",
        "shortcut_warnings",
        "source_confusion",
    ),
    "classify": ("CLASSIFIERS", "fit_steps", "grad_cam", "predict_mean"),
    "training": (
        "best_gan",
        "epochs_of",
        "fit_best",
        "fit_gan",
        "keep_off",
        "latent_walk",
        "read_sample_grids",
        "reference_gan",
    ),
    "runs": ("PROFILES", "Profile", "Run"),
    "report": ("banner", "summary_table", "write_report"),
}
_MODULES = ("plots", "quality", "scores")
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted([*_HOME, *_MODULES])


def _check_backend():
    # Set where unset, so that a backend in ~/.keras/keras.json does not step in unseen.
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "keras" in sys.modules:
        backend = sys.modules["keras"].config.backend()
    if backend == "tensorflow":
        return
    message = (
        "kerasgan trains through tf.data and tf.GradientTape and needs the TensorFlow backend: "
        f"unset KERAS_BACKEND or set it to tensorflow. Received: KERAS_BACKEND={backend}"
    )
    if sys.argv[:1] == ["-m"]:  # `python -m kerasgan`: one line instead of a traceback
        sys.exit(f"kerasgan: {message}")
    raise ImportError(message)


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"kerasgan.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'kerasgan' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kerasgan.{_HOME[name]}"), name)


def __dir__():
    return __all__


def _enable_onednn():
    """Turns oneDNN on, which halves a GAN's training step and on some processors is off."""
    if "tensorflow" in sys.modules and "TF_ENABLE_ONEDNN_OPTS" not in os.environ:
        try:
            flags = set(Path("/proc/cpuinfo").read_text().split())
        except OSError:
            flags = set()
        if "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_tile"}:
            warnings.warn(
                "keras or tensorflow was imported before kerasgan, so that on this processor a "
                "training takes twice as long: import kerasgan first, or set "
                "TF_ENABLE_ONEDNN_OPTS=1",
                stacklevel=2,
            )
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


_check_backend()
_enable_onednn()
