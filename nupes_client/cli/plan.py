"""`nupes plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nupes_client.cli import groups as g
from nupes_client.cli import options as o
from nupes_client.cli.expanding import expanded

if TYPE_CHECKING:
    from nupes_client.schemas.plans import Plan


@expanded
def plan(
    model: o.ModelArgument,
    weights: g.WeightOptions,
    learning: g.LearningOptions,
    data: g.CalibrationOptions,
    activations: g.ActivationOptions,
    json: o.Json = False,
) -> None:
    """Say what quantizing a model would do and cost: layers, bytes, memory, time."""
    from nupes_client.cli import output
    from nupes_client.cli.model_argument import check_model
    from nupes_client.cli.submitting import registered_model, sent_files
    from nupes_client.cli.wish import Wish
    from nupes_client.client import Client

    wish = Wish((weights, learning, data, activations))
    wish.check()
    check_model(model)
    with Client() as client:
        model_id = registered_model(client, model).id
        predicted = client.plans.create(wish.body(model_id, sent_files(client, wish)))
    if json:
        output.print_json(predicted)
    else:
        _show(predicted)


def _show(predicted: Plan) -> None:
    from nupes_client.cli import output

    output.print_table(
        ("layer", "shape", "bits", "group", "before", "after", "left alone because"),
        [
            (
                layer.name,
                "x".join(str(length) for length in layer.shape),
                layer.bits,
                layer.group_size,
                output.size(layer.bytes_before),
                output.size(layer.bytes_after),
                layer.skipped_reason or "",
            )
            for layer in predicted.layers
        ],
        numbers=("bits", "group", "before", "after"),
    )
    adds = predicted.formats[0].adds if predicted.formats else None
    output.print_line(
        f"{output.size(predicted.bytes_before)} -> {output.size(predicted.artifact_bytes)}"
        f"{f' and its {adds}' if adds else ''}, "
        f"{predicted.bits_per_weight:.3f} bits per weight, {predicted.coverage_pct:.1f}% of the parameters quantized"
    )
    output.print_line(
        f"needs {output.size(predicted.peak_memory_bytes)} of memory, {output.size(predicted.disk_bytes)} of disk, "
        f"about {predicted.seconds:.0f} s without the evaluation; "
        f"fits workers: {', '.join(predicted.worker_classes) or 'none that runs now'}"
    )
