"""`nupes quantize`."""

from __future__ import annotations

from nupes_client.cli import groups as g
from nupes_client.cli import options as o
from nupes_client.cli.expanding import expanded


@expanded
def quantize(
    model: o.ModelArgument,
    weights: g.WeightOptions,
    learning: g.LearningOptions,
    data: g.CalibrationOptions,
    activations: g.ActivationOptions,
    evaluation: g.EvaluationOptions,
    push: g.PushOptions,
    job: g.JobOptions,
    wait: o.Wait = False,
    timeout: o.WaitTimeout = None,
    download: o.Download = None,
    junit: o.JUnit = None,
    json: o.Json = False,
) -> None:
    """Quantize a model: send it when it is a folder, submit the job, and with --wait see it through.

    Asking again for the same thing finds the same job instead of making another.

    Gates: max_perplexity_increase_pct (needs --eval-text), max_kl, min_top1_agreement, max_bytes, min_coverage_pct.
    """
    from nupes_client.cli.following import Keepsakes
    from nupes_client.cli.submitting import submit
    from nupes_client.cli.wish import Wish

    wish = Wish((weights, learning, data, activations, evaluation, push, job))
    keep = Keepsakes(download, junit)
    submit(model, wish, wait=wait or bool(keep), timeout_s=timeout, keep=keep, as_json=json)
