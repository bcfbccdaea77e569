"""Every figure. Each function returns the matplotlib Figure; a `note` becomes a banner above it."""

import io
import textwrap

import numpy as np
import seaborn as sns
from matplotlib import ticker
from matplotlib.figure import Figure

from kerasgan.runs import write_bytes

WIDTH = 7.2  # inches: a page's width
_NAMES = {
    "covid": "COVID-19",
    "normal": "normal",
    "pneumonia_bac": "bacterial pneumonia",
    "pneumonia_vir": "viral pneumonia",
}
_PALETTE = sns.color_palette("colorblind")


class _Figure(Figure):
    """A figure that notebooks show by themselves, without pyplot and its open figures."""

    def _repr_png_(self):
        return _png(self, 110)


def _png(figure, dpi):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def class_label(name):
    """Returns a class's name as shown in figures."""
    return _NAMES.get(name, str(name).replace("_", " "))


def _colours(classes):
    """A colour per class, by its place in alphabetical order: the same in every figure."""
    known = sorted(_NAMES) if set(classes) <= set(_NAMES) else sorted(classes)
    return {name: _PALETTE[known.index(name) % len(_PALETTE)] for name in classes}


def _figure(height, note, title="", rows=1, columns=1, **options):
    """A figure with axes, its title, and the banner."""
    figure = _Figure(figsize=(WIDTH, height), layout="constrained", dpi=110)
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    heading = [title] if title else []
    if note:
        heading += textwrap.wrap(note, 95)
    if heading:
        figure.suptitle("\n".join(heading), fontsize=9, color="#a04000" if note else "black")
    return figure, axes


def _sheet(images, columns):
    """Tiles uint8 (n, h, w, 1) into one image of so many columns, white where none is left."""
    images = np.asarray(images)[..., 0]
    n, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1)), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[:-1, :-1]


def _show(axis, sheet, title=""):
    # One grey scale for all: an image stretched on its own would hide its exposure.
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _rows_figure(rows, labels, note, title=""):
    """One row of images per label."""
    sheets = [_sheet(row, len(row)) if np.ndim(row) == 4 else np.asarray(row) for row in rows]
    aspect = [sheet.shape[0] / sheet.shape[1] for sheet in sheets]
    width = WIDTH - 1.1
    height = sum(width * a + 0.06 for a in aspect) + 0.3 + 0.2 * len(textwrap.wrap(note, 95))
    figure, axes = _figure(height, note, title, len(rows), height_ratios=aspect)
    for axis, sheet, label in zip(axes[:, 0], sheets, labels, strict=True):
        _show(axis, sheet)
        wrapped = "\n".join(textwrap.wrap(label, 12))
        axis.set_ylabel(wrapped, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def plot_counts(films):
    """Plots films and patients of each class and split.

    Args:
        films: `Films`.

    Returns:
        The Figure.
    """
    counts = films.counts()
    splits = sorted(counts["split"].unique(), reverse=True)
    figure, axes = _figure(2.6, films.note, columns=len(splits), sharey=True)
    colours = _colours(films.classes)
    for axis, split in zip(axes[0], splits, strict=True):
        own = counts[counts["split"] == split]
        names = [class_label(name) for name in own["class"]]
        bars = axis.barh(names, own["films"], color=[colours[name] for name in own["class"]])
        texts = [f"{row.films} films, {row.patients} patients" for row in own.itertuples()]
        axis.bar_label(bars, texts, fontsize=8, padding=2)
        axis.set_xlim(0, counts["films"].max() * 1.9)
        axis.set_title(f"{split or 'all'} (n = {own['films'].sum()})", fontsize=9)
        axis.set_xlabel("films")
        axis.invert_yaxis() if axis is axes[0][0] else None
        axis.grid(axis="y", visible=False)
    return figure


def plot_films(films, per_class=8, seed=0):
    """Shows a row of films of each class, drawn at random.

    Args:
        films: `Films` of one size.
        per_class: Films a row.
        seed: Integer seed of the choice.

    Returns:
        The Figure.
    """
    rng, rows, labels = np.random.default_rng(seed), [], []
    for label, name in enumerate(films.classes):
        own = np.flatnonzero(films.labels == label)
        rows.append(films.images[rng.permutation(own)[:per_class]])
        labels.append(class_label(name))
    blank = np.full((1, *rows[0].shape[1:]), 255, np.uint8)
    rows = [np.concatenate([row, *[blank] * (per_class - len(row))]) for row in rows]
    return _rows_figure(rows, labels, films.note)


def plot_intensities(films):
    """Plots the mean grey-level histogram of each class, with the spread over films.

    Args:
        films: `Films` of one size.

    Returns:
        The Figure.
    """
    figure, axes = _figure(2.8, films.note)
    axis, bins = axes[0, 0], np.linspace(0, 256, 33)
    colours, labels = _colours(films.classes), films.labels
    for label, name in enumerate(films.classes):
        own = films.images[labels == label]
        shares = np.array([np.histogram(image, bins)[0] / image.size for image in own]) * 100
        middle, mean = (bins[:-1] + bins[1:]) / 2, shares.mean(0)
        error = 1.96 * shares.std(0) / np.sqrt(len(own))
        text = f"{class_label(name)} (n = {len(own)})"
        axis.plot(middle, mean, color=colours[name], label=text)
        axis.fill_between(middle, mean - error, mean + error, color=colours[name], alpha=0.2, lw=0)
    axis.set(xlabel="grey level (0 black, 255 white)", ylabel="share of pixels, %", xlim=(0, 255))
    axis.set_title("mean over films, with its 95 % interval", fontsize=9)
    axis.legend(fontsize=8)
    return figure


def plot_real_and_generated(real, generated, title="", columns=8, note=""):
    """Shows real films and generated images side by side, both with one grey scale.

    Args:
        real: uint8 (n, h, w, 1).
        generated: uint8 (n, h, w, 1).
        title: What is shown, such as the class.
        columns: Images a row, on each side.
        note: A banner.

    Returns:
        The Figure.
    """
    rows = -(-max(len(real), len(generated)) // columns)
    height = (WIDTH / 2) * rows / columns + 0.5 + 0.2 * len(textwrap.wrap(note, 95))
    figure, axes = _figure(height, note, class_label(title), columns=2)
    for axis, images, name in zip(axes[0], (real, generated), ("real", "generated"), strict=True):
        _show(axis, _sheet(images, columns), f"{name} (n = {len(images)})")
    return figure


def plot_evolution(frames, title="", note=""):
    """Shows how samples of the same latents change over a training.

    Args:
        frames: Dict from epoch to uint8 (n, h, w, 1), or to one grid (h, w).
        title: What is shown, such as the class.
        note: A banner.

    Returns:
        The Figure.
    """
    labels = [f"epoch {epoch}" for epoch in frames]
    return _rows_figure(list(frames.values()), labels, note, class_label(title))


def plot_latent_walk(images, title="", note=""):
    """Shows images in a row, or several rows of them.

    Args:
        images: uint8 (steps, h, w, 1), or a dict from the names of several rows to such images.
        title: What is shown, such as the class.
        note: A banner.

    Returns:
        The Figure.
    """
    rows = images if isinstance(images, dict) else {"": images}
    return _rows_figure(list(rows.values()), map(class_label, rows), note, class_label(title))


def plot_gan_history(histories, note=""):
    """Plots the losses and the discriminator's beliefs of each class's training.

    Args:
        histories: Dict from class to DataFrame `epoch, g_loss, d_loss, d_real, d_fake`.
        note: A banner.

    Returns:
        The Figure.
    """
    columns = len(histories)
    figure, axes = _figure(3.6, note, rows=2, columns=columns, sharex=True, sharey="row")
    panels = (
        (("g_loss", "generator"), ("d_loss", "discriminator")),
        (("d_real", "D(x), real"), ("d_fake", "D(G(z)), generated")),
    )
    for column, (name, history) in enumerate(histories.items()):
        for row, curves in enumerate(panels):
            for colour, (key, label) in enumerate(curves):
                axes[row, column].plot(
                    history["epoch"], history[key], color=_PALETTE[colour], label=label, lw=1
                )
        axes[0, column].set_title(class_label(name), fontsize=9)
        axes[1, column].set(xlabel="epoch", ylim=(0, 1))
        axes[1, column].axhline(0.5, color="0.4", lw=0.8, ls=":")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("belief in real")
    for row in range(2):
        axes[row, -1].legend(fontsize=7, loc="upper right")
    return figure


def plot_classifier_history(history, title="", note=""):
    """Plots loss and accuracy of a classifier's training.

    Args:
        history: DataFrame `epoch, loss, accuracy, val_loss, val_accuracy`, or what Keras' `fit`
            returns; in a DataFrame the last two may be missing in most epochs.
        title: What is shown, such as the arm.
        note: A banner.

    Returns:
        The Figure.

    Raises:
        ValueError: If Keras validated every few epochs, as it does not say which.
    """
    if hasattr(history, "history"):  # of Keras
        import pandas as pd

        if len({*map(len, history.history.values())}) > 1:
            raise ValueError("Keras does not say of which epochs val_loss is: validate after each")
        history = pd.DataFrame(history.history).assign(epoch=np.array(history.epoch) + 1)
    figure, axes = _figure(2.7, note, title, columns=2)
    for axis, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        axis.plot(history["epoch"], history[name], color=_PALETTE[0], lw=0.8, label="training")
        watched = f"val_{name}"
        if watched in history:
            seen = history.dropna(subset=[watched])
            axis.plot(
                seen["epoch"],
                seen[watched],
                "o-",
                ms=3,
                lw=1,
                color=_PALETTE[1],
                label="test, watched only",
            )
        axis.set(xlabel="epoch", ylabel=name)
    axes[0, 1].set_ylim(0, 1.02)
    axes[0, 1].legend(fontsize=8, loc="lower right")
    return figure


def plot_confusion(matrices, classes, note=""):
    """Plots confusion matrices with counts and, as shade, shares of each true class.

    Args:
        matrices: (k, k) counts, true classes in rows, or a dict from title to such counts.
        classes: The k class names.
        note: A banner.

    Returns:
        The Figure.
    """
    matrices = matrices if isinstance(matrices, dict) else {"": matrices}
    names = [class_label(name).replace(" ", "\n") for name in classes]
    height = WIDTH / max(2, len(matrices)) + 0.9
    figure, axes = _figure(height, note, columns=len(matrices), sharey=True)
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.55 else "black"
            text = f"{count:.0f}\n{share[row, column]:.0%}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_title(f"{title} (n = {matrix.sum():.0f})".strip(), fontsize=9)
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=60, ha="right")
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_xlabel("predicted")
        axis.grid(visible=False)
    axes[0, 0].set_ylabel("true")
    return figure


def plot_accuracy_curve(table, note="", title=""):
    """Plots total accuracy against images per class, classic and synthetic.

    Args:
        table: DataFrame `arm, kind, count, seed, evaluation, value, low, high, n, published`, as
            `compare.accuracy_curve` makes it; several seeds of an arm are averaged, and shown as
            points beside the mean, which is filled where it is one of several.
        note: A banner.
        title: What is shown, such as whose samples.

    Returns:
        The Figure.
    """
    figure, axes = _figure(3.4, note, title, columns=2, sharey=True)
    titles = {
        "classic": "classic images added per class",
        "synthetic": "synthetic images added per class,\non top of the third classic set",
    }
    for axis, (kind, text) in zip(axes[0], titles.items(), strict=True):
        start = "O1" if kind == "classic" else "O1+C3"
        own = table[(table["kind"] == kind) | (table["arm"] == start)].copy()
        own.loc[own["arm"] == start, "count"] = 0
        for place, evaluation in enumerate(("deterministic", "reference")):
            each = own[own["evaluation"] == evaluation]
            _plot_seeds(axis, each, place, 0.03 * own["count"].max())
        known = own.dropna(subset=["published"]).groupby("count")["published"].mean()
        if len(known):
            axis.plot(known.index, known, "x--", ms=5, lw=1, color="0.3", label="published")
        axis.set_xlabel(text)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    lowest = table[["value", "low", "published"]].min().min()
    axes[0, 0].set_ylim(max(0, np.floor(10 * lowest - 0.5) / 10), 1.02)
    axes[0, 0].set_ylabel(f"total accuracy on {table['n'].max()} test films")
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _plot_seeds(axis, rows, place, width):
    """Draws the means of seeds, hollow those of one where others are of several, and each seed."""
    colour, marker = _PALETTE[place], "os"[place]
    means, seeds = rows.groupby("count").mean(numeric_only=True), rows.groupby("count")["seed"]
    several = rows[seeds.transform("nunique") > 1]
    x = several["count"] + (place - 0.5) * width
    label = ("one pass, 95 % interval", "study's evaluation")[place]
    axis.plot(means.index, means["value"], "-", lw=1, color=colour)
    hollow = seeds.nunique().eq(1) & (len(several) > 0)
    counts = " or ".join(str(n) for n in sorted(set(seeds.nunique()) - {1}))
    seen = {colour: f", {counts} seeds" if counts else "", "white": ", one seed"}
    for mask, face in ((~hollow, colour), (hollow, "white")):
        axis.plot(
            means.index[mask],
            means["value"][mask],
            marker,
            ms=4.5,
            color=colour,
            mfc=face,
            label=f"{label}{seen[face]}" if mask.any() else None,
        )
    each = "each seed" if place == 0 and len(several) else None
    axis.plot(x, several["value"], marker, ms=2.5, color=colour, alpha=0.5, label=each)
    if place == 0:
        axis.fill_between(means.index, means["low"], means["high"], color=colour, alpha=0.18, lw=0)


def plot_class_scores(comparison, metrics=("sensitivity", "specificity"), note="", title=""):
    """Plots the scores of each class by arm, with their intervals.

    Args:
        comparison: Tidy table `arm, kind, class, metric, value, low, high[, published]`; seeds are
            averaged, and what was published is marked.
        metrics: The metrics, one panel each.
        note: A banner.
        title: What is shown, such as whose samples.

    Returns:
        The Figure.
    """
    classes = [name for name in comparison["class"].unique() if name != "macro"]
    arms = list(comparison["arm"].unique())
    height = 0.9 + 0.3 * len(arms) * max(1, len(classes) / 3)
    figure, axes = _figure(height, note, title, columns=len(metrics), sharey=True)
    colours, step = _colours(classes), 0.8 / len(classes)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, name in enumerate(classes):
            rows = comparison[(comparison["metric"] == metric) & (comparison["class"] == name)]
            rows = rows.groupby("arm").mean(numeric_only=True).loc[arms]
            y = np.arange(len(arms)) + (place - (len(classes) - 1) / 2) * step
            error = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            style = {"fmt": "osD^v"[place % 5], "ms": 4, "lw": 1, "color": colours[name]}
            films = f" (n = {rows['n'].max():.0f})" if "n" in rows else ""
            label = f"{class_label(name)}{films}"
            axis.errorbar(rows["value"], y, xerr=error, label=label, **style)
            if "published" in rows and rows["published"].notna().any():
                label = "published" if name == classes[-1] else None
                axis.plot(rows["published"], y, "x", color="0.25", ms=5, zorder=3, label=label)
        axis.set(xlabel=f"{metric}, 95 % interval", xlim=(-0.02, 1.02))
        axis.set_yticks(range(len(arms)), arms, fontsize=8)
        for edge in np.arange(0.5, len(arms) - 1):
            axis.axhline(edge, color="0.85", lw=0.8)
        axis.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return figure


QUALITY = ("kid", "fid", "density", "coverage", "detectability", "detectability_encoder")


def plot_quality(table, metrics=QUALITY, note=""):
    """Plots quality scores with their intervals, a panel per metric; a tick marks the floor.

    Args:
        table: DataFrame of `quality.compare_films`; of several encoders, the first is shown.
        metrics: The metrics shown, of those that the table has.
        note: A banner.

    Returns:
        The Figure.
    """
    lower = ("kid", "fid", "detectability", "detectability_encoder")
    table = table.drop_duplicates(["generator", "class", "metric"])
    metrics = [name for name in metrics if name in set(table["metric"])]
    classes = [kind for kind in table["class"].unique() if kind != "macro"]
    generators = sorted(table["generator"].unique(), key=lambda name: name != "authors")
    figure, axes = _figure(0.9 + 0.5 * len(classes), note, columns=len(metrics), sharey=True)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, generator in enumerate(generators):
            own = table.query("metric == @metric and generator == @generator").set_index("class")
            own, y = own.reindex(classes), np.arange(len(classes)) + 0.22 * (place + 0.5)
            y -= 0.11 * len(generators)
            error = [own["value"] - own["low"], own["high"] - own["value"]]
            colour = _PALETTE[7 if generator == "authors" else 1 + place % 6]  # theirs in grey
            label = "the study's samples" if generator == "authors" else generator
            style = {"fmt": "os^Dv"[place % 5], "color": colour, "label": label}
            axis.errorbar(own["value"], y, xerr=np.clip(error, 0, None), ms=4, **style)
        floors = table[table["metric"] == metric].groupby("class")["floor"].mean().reindex(classes)
        axis.plot(floors, np.arange(len(classes)), "k|", ms=14, mew=1.2)
        name = metric.upper() if len(metric) == 3 else metric.replace("_", "\nby ")
        better = "lower" if metric in lower else "higher"
        axis.set_title(f"{name}\n{better} is better", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(classes)), [class_label(kind) for kind in classes], fontsize=8)
    axes[0, 0].invert_yaxis()
    handles = axes[0, 0].get_legend_handles_labels()
    encoder = table.loc[table["metric"] == metrics[0], "encoder"].iloc[0]
    figure.legend(
        *handles,
        loc="outside lower center",
        ncols=len(generators),
        fontsize=8,
        frameon=False,
        title=f"mean and 95 % interval; features: {encoder} (detectability: HOG); "
        "black tick: real against real",
        title_fontsize=8,
    )
    return figure


def plot_contrasts(table, metric="sensitivity", note=""):
    """Plots paired differences from the control with their 95 % intervals: a forest plot by kind.

    Args:
        table: DataFrame of `crossval.contrasts`.
        metric: The macro metric shown.
        note: A banner.

    Returns:
        The Figure.
    """
    kinds = ["real", "classic", "duplicated", "synthetic", "baseline"]
    rows = table[table["metric"] == metric]
    rows = rows.sort_values("kind", key=lambda kind: kind.map(kinds.index), kind="stable")[::-1]
    control = rows["control"].iloc[0]
    figure, axes = _figure(0.9 + 0.32 * len(rows), note)
    axis = axes[0, 0]
    for y, row in enumerate(rows.itertuples()):
        colour = "0.45" if row.kind == "baseline" else _PALETTE[kinds.index(row.kind)]
        axis.plot([row.low, row.high], [y, y], color=colour, lw=1.4)
        axis.plot(row.difference, y, "D" if row.primary else "o", ms=5, color=colour)
    several, most = rows["classifier"].nunique() > 1, rows["n"].max()

    def name(row):
        facts = ["primary"] if row.primary else []
        facts = ", ".join([*facts, f"{row.n} folds"] if row.n < most else facts)
        classifier = f", {row.classifier}" if several else ""
        return f"{row.arm}{classifier}{f' ({facts})' if facts else ''}"

    names = [name(row) for row in rows.itertuples()]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    for edge in np.flatnonzero(rows["kind"].to_numpy()[1:] != rows["kind"].to_numpy()[:-1]):
        axis.axhline(edge + 0.5, color="0.85", lw=0.8)
    axis.axvline(0, color="0.3", lw=0.8, ls=":")
    fewer = " unless noted" if rows["n"].nunique() > 1 else ""
    axis.set_xlabel(
        f"difference in macro {metric} from {control}\n95 % interval (n = {most} folds{fewer})"
    )
    axis.grid(axis="y", visible=False)
    return figure


def plot_reliability(tables, note=""):
    """Plots accuracy against confidence, with Wilson intervals, one panel per classifier.

    Args:
        tables: Dict from title to DataFrame of `scores.calibration_table`.
        note: A banner.

    Returns:
        The Figure.
    """
    figure, axes = _figure(2.9, note, columns=max(2, len(tables)), sharey=True)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=False):
        own = table[table["count"] > 0]
        error = [own["accuracy"] - own["accuracy_low"], own["accuracy_high"] - own["accuracy"]]
        axis.plot([0, 1], [0, 1], color="0.4", lw=0.8, ls=":")
        axis.errorbar(own["confidence"], own["accuracy"], np.clip(error, 0, None), fmt="o", ms=4)
        axis.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1.02))
        axis.set_title(f"{title} (n = {int(own['count'].sum())})", fontsize=9)
    axes[0, 0].set_ylabel("accuracy, 95 % interval")
    for axis in axes[0, len(tables) :]:
        axis.set_visible(False)
    return figure


def plot_grad_cam(images, maps, columns=8, note=""):
    """Shows films and, under each row, the same films with what spoke for a class in colour.

    Args:
        images: uint8 (n, h, w, 1). A figure of real films is for the screen, never to be published.
        maps: float (n, h, w) in [0, 1], of `classify.grad_cam`.
        columns: Films a row.
        note: A banner.

    Returns:
        The Figure.
    """
    rows = -(-len(images) // columns)
    height = 2 * WIDTH * rows / columns + 0.4 + 0.2 * len(textwrap.wrap(note, 95))
    figure, axes = _figure(height, note, rows=2 * rows)
    for row in range(rows):
        part = slice(row * columns, (row + 1) * columns)
        fill = [(0, max(0, columns - len(images[part]))), (0, 0), (0, 0)]
        sheet = _sheet(np.pad(images[part], [*fill, (0, 0)], constant_values=255), columns)
        heat = _sheet(np.pad(255 * maps[part], fill).astype(np.uint8)[..., None], columns)
        for axis in axes[2 * row : 2 * row + 2, 0]:
            _show(axis, sheet)
        axes[2 * row + 1, 0].imshow(heat, cmap="inferno", vmin=0, vmax=255, alpha=0.5)
    return figure


def plot_gain(table, note=""):
    """Plots the gain of synthetic over duplicated films against films per class.

    Args:
        table: DataFrame `films, ratio, difference, low, high, n`, a row a point; `n` is the number
            of training sets.
        note: A banner.

    Returns:
        The Figure.
    """
    figure, axes = _figure(3.1, note)
    axis = axes[0, 0]
    for place, (ratio, own) in enumerate(table.groupby("ratio")):
        x = own["films"] * (1 + 0.04 * place)  # side by side, on a logarithmic axis
        error = [own["difference"] - own["low"], own["high"] - own["difference"]]
        label = f"{ratio:g} synthetic per film (n = {own['n'].min()} training sets or more)"
        style = {"fmt": f"{'osD^v'[place % 5]}-", "ms": 4, "lw": 1, "capsize": 2}
        axis.errorbar(x, own["difference"], error, color=_PALETTE[place], label=label, **style)
    axis.axhline(0, color="0.3", lw=0.8, ls=":")
    axis.set_xscale("log")
    films = sorted(table["films"].unique())
    axis.set_xticks(films, [f"{count:g}" for count in films])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel="films per class", ylabel="gain in macro sensitivity\nover duplicated films")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def save_figure(figure, path, dpi=150):
    """Writes a figure as PNG, whole or not at all.

    Args:
        figure: A matplotlib Figure.
        path: The file's path.
        dpi: Dots an inch.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    write_bytes(path, _png(figure, dpi))
