"""`trimline analyse similarity|attention RUN`: what the layers of a trained model have in common, and do not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.errors import UserError
from launch.answers import Answer
from launch.exposure import Exposure, in_caption, in_words
from launch.model_names import model_name, names_apart, split_in_file, split_name
from launch.report.figures import MARKERS, OKABE_ITO, Drawing, count_layers, draw
from launch.report.html import ANALYSES, ANALYSIS
from launch.report.table import aligned
from launch.trained_export import Trained, open_trained
from launch.trained_run import TrainedRun
from pipeline.measure.similarity import Row, measure_divergence, measure_similarity
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.weights.reading import read_foreign
from pipeline.weights.vision import load_vision

BATCH = 8  # maps of every layer and head are in memory at once

_CSV = ("part", "layer", "stream", "metric", "value", "low", "high", "samples", "pictures", "groups")
_LEAST_SPAN = 1e-3
"""Of an axis: less is rounding, which would look like a finding."""
_AXES = {
    "tokens": "mean cosine of token pairs",
    "heads": "mean cosine of head pairs",
    "divergence": "KL of attention maps, nats",
}


def similarity_command(folder: Path, split: str | None, samples: int, out: Path | None) -> Answer:
    """`trimline analyse similarity RUN`.

    Args:
        folder: Of a run that got as far as pre-training, or an export folder, of a fine-tuned model too.
        split: Of a run's own, or a folder of indexed shards; None for the first that a run evaluates.
        samples: Pairs to look at.
        out: Folder of the figure and its numbers; None for one in `folder`.

    Raises:
        UserError: There is no model to look at, or no such split, or too few pairs for an interval.
    """
    run = _run(folder, split, samples)
    model = run.model()
    rows = measure_similarity(model, run.normalise, run.batches(samples, BATCH))
    said = (
        "Tokens: of what enters the layer. Heads: of what they attend to. Unpruned, untrimmed; bands are 95% intervals."
    )
    title, named = f"{model.config.backbone}: similarity by layer", {"model": model_name(folder)}
    return _answer(run, rows, "similarity", title, f"{named['model']}. {said}", out, [run.exposure], named)


def divergence_command(folder: Path, against: Path | None, split: str | None, samples: int, out: Path | None) -> Answer:
    """`trimline analyse attention RUN`; arguments as in `similarity_command`.

    Args:
        folder: Of a run that got as far as pre-training.
        against: Another run's folder, or weights of a vision tower, as `pretrain.init.vision` takes them; None for
            those that the run itself began from: the vision-only model beside the vision-language one.
        split: As there.
        samples: As there.
        out: As there.

    Raises:
        UserError: A folder has no pre-trained model, a file no tower that fits, or the towers differ.
    """
    run = _run(folder, split, samples)
    model = run.model()
    other, where, others = _other(run, model, against)
    exposures = [run.exposure, *others]
    named = dict(zip(("model", "against"), names_apart([folder, where]), strict=True))
    rows = measure_divergence(model, other, run.normalise, run.batches(samples, BATCH))
    pair = " ‖ ".join(named.values())
    note = f"KL( {pair} ) of the vision tower's attention maps; bands are 95% intervals."
    return _answer(run, rows, "attention", "how far attention is apart by layer", note, out, exposures, named)


def _other(run: Trained, model: Backbone, against: Path | None) -> tuple[Backbone, Path, list[Exposure]]:
    """What a run's model is held against, where it is, and whether it knows the split where it is a run's too."""
    if against is not None and (against / "config.yaml").is_file():
        if against.resolve() == run.folder.resolve():
            raise UserError(f"--against {against} is the run itself; give another one, or weights of a vision tower")
        other = TrainedRun.of(against, str(run.split_folder))
        return other.model(), against, [other.exposure]
    path = against or run.began.get("vision") or run.began.get("model")
    if path is None and isinstance(run, TrainedRun) and run.config.pretrained is None:
        raise UserError(
            f"the vision tower of {run.folder} began from random weights, so there is nothing to compare with: give "
            "--against WEIGHTS_OR_RUN"
        )
    if path is None:
        raise UserError(
            f"{run.folder} does not say of weights that its vision tower began from: give those of a vision-only "
            "model, or another run, with --against"
        )
    if not path.exists():
        raise UserError(f"{path} is no run folder, and no file or folder of weights; give one that is, with --against")
    begun = build_model(model.config)
    try:
        load_vision(begun.visual_encoder, read_foreign(path))
    except UserError as error:
        raise UserError(f"{path}: {error}; give other weights, or a run folder, with --against") from error
    return begun.to(run.device).eval(), path, []


def _run(folder: Path, split: str | None, samples: int) -> Trained:
    if samples < 2:
        raise UserError(f"--samples {samples} must be at least 2: one picture has no interval")
    return open_trained(folder, split)


def _answer(
    run: Trained,
    rows: list[Row],
    what: str,
    title: str,
    note: str,
    out: Path | None,
    exposures: Sequence[Exposure],
    named: Mapping[str, str],
) -> Answer:
    """Figure, numbers and table; `named` are the models by the columns of the CSV that name them."""
    place = run.folder / ANALYSES if out is None else out
    name, split = f"{what}-{split_in_file(run.split)}", split_name(run.split)
    seen = "{samples:,} pairs of {pictures:,} pictures in {groups:,} groups".format_map(rows[0])
    caption = f"{note} {seen} from {split}. {in_caption(exposures)}"
    told = f"{title}, {split} ({ANALYSIS}, {seen})"  # figures of several splits stand in one report
    drawing = _drawing(name, told, caption, rows, {**named, "split": split})
    again = " (in the place of older ones)" if (place / f"{name}.csv").exists() else ""
    drawing.save(place)
    lines = [f"split {run.split}, {seen}", *in_words(exposures), *_table(rows)]
    data = {"run": str(run.folder), "split": run.split, "held_out": exposures[0].held_out, "rows": rows}
    return 0, data, "\n".join([*lines, f"{note} Figure and numbers: {place / name}.svg, .csv{again}"])


def _table(rows: Sequence[Row]) -> list[str]:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    places = dict.fromkeys((row["part"], row["layer"], row["stream"]) for row in rows)
    cells = [["part", "stream", "layer", *metrics]]
    for part, layer, stream in places:
        own = {r["metric"]: r for r in rows if (r["part"], r["layer"], r["stream"]) == (part, layer, stream)}
        cells.append([part, stream, str(layer), *(_cell(own[metric]) if metric in own else "-" for metric in metrics)])
    return aligned(cells, left=2)


def _cell(row: Row) -> str:
    value, low, high = (f"{round(row[name], 3) + 0.0:.3f}" for name in ("value", "low", "high"))  # no -0.000
    return f"{value} ({low} to {high})"


def _drawing(name: str, title: str, note: str, rows: Sequence[Row], same: Mapping[str, str]) -> Drawing:
    """Panels by metric; `same` are columns whose value all rows share."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))

    def paint(figure: Figure) -> None:
        for at, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), at + 1)
            _panel(axes, metric, [row for row in rows if row["metric"] == metric])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))

    numbers = [[*same.values(), *(row[column] for column in _CSV)] for row in rows]
    return draw(name, title, note, (4.4 * len(metrics) + 0.6, 3.4), paint, (*same, *_CSV), numbers)


def _panel(axes: Axes, metric: str, rows: Sequence[dict[str, Any]]) -> None:
    """A line for each part and stream."""
    lines = dict.fromkeys((row["part"], row["stream"]) for row in rows)
    for (part, stream), colour, marker in zip(lines, OKABE_ITO.values(), MARKERS, strict=False):
        own = [row for row in rows if (row["part"], row["stream"]) == (part, stream)]
        layers = [row["layer"] for row in own]
        axes.plot(layers, [row["value"] for row in own], color=colour, marker=marker, label=f"{part}, {stream}")
        axes.fill_between(layers, [row["low"] for row in own], [row["high"] for row in own], color=colour, alpha=0.2)
    count_layers(axes)
    axes.set_xlabel("layer, from 0")
    axes.set_ylabel(_AXES[metric])
    axes.set_ylim(*_limits(*axes.get_ylim(), from_zero=metric == "divergence"))


def _limits(low: float, high: float, from_zero: bool) -> tuple[float, float]:
    """Ends of an axis that shows no rounding; from 0 on where nothing can lie below."""
    low = 0.0 if from_zero else low
    missing = max(0.0, _LEAST_SPAN - (high - low))
    return (low, high + missing) if from_zero else (low - missing / 2, high + missing / 2)
