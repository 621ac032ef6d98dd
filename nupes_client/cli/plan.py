"""`nupes plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nupes_client.cli import options as o

if TYPE_CHECKING:
    from nupes_client.schemas.plans import Plan


def plan(
    model: o.ModelArgument,
    bits: o.Bits = 4,
    group_size: o.GroupSize = 64,
    exponent_scope: o.ExponentScope = o.Scope.LAYER,
    exponent: o.Exponent = None,
    scale_bits: o.ScaleBits = 8,
    layout: o.LayoutOption = o.Layout.AUTO,
    exclude: o.Exclude = None,
    embeddings: o.Embeddings = False,
    json: o.Json = False,
) -> None:
    """Say what quantizing a model would do and cost: layers, bytes, memory, time."""
    from nupes_client.cli import output
    from nupes_client.cli.model_argument import check_model
    from nupes_client.cli.submitting import registered_model
    from nupes_client.cli.wish import Wish
    from nupes_client.client import Client

    wish = Wish(
        bits=bits,
        group_size=group_size,
        exponent_scope=exponent_scope.value,
        exponent=exponent,
        scale_bits=scale_bits,
        layout=layout.value,
        exclude=exclude,
        embeddings=embeddings,
    )
    wish.check()
    check_model(model)
    with Client() as client:
        predicted = client.plans.create(wish.body(registered_model(client, model).id, None))
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
    output.print_line(
        f"{output.size(predicted.bytes_before)} -> {output.size(predicted.artifact_bytes)}, "
        f"{predicted.bits_per_weight:.3f} bits per weight, {predicted.coverage_pct:.1f}% of the parameters quantized"
    )
    output.print_line(
        f"needs {output.size(predicted.peak_memory_bytes)} of memory, {output.size(predicted.disk_bytes)} of disk, "
        f"about {predicted.seconds:.0f} s without the evaluation; "
        f"fits workers: {', '.join(predicted.worker_classes) or 'none that runs now'}"
    )
