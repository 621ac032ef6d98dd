"""`nupes quantize`."""

from __future__ import annotations

from nupes_client.cli import options as o


def quantize(
    model: o.ModelArgument,
    bits: o.Bits = 4,
    group_size: o.GroupSize = 64,
    exponent_scope: o.ExponentScope = o.Scope.LAYER,
    exponent: o.Exponent = None,
    scale_bits: o.ScaleBits = 8,
    layout: o.LayoutOption = o.Layout.AUTO,
    exclude: o.Exclude = None,
    embeddings: o.Embeddings = False,
    format_: o.Formats = None,
    eval_text: o.EvalText = None,
    eval_context: o.EvalContext = 256,
    eval_tokens: o.EvalTokens = 20_000,
    no_eval: o.NoEval = False,
    gate: o.Gates = None,
    label: o.Labels = None,
    name: o.Name = None,
    priority: o.Priority = 0,
    job_timeout: o.JobTimeout = 3600,
    seed: o.Seed = 0,
    wait: o.Wait = False,
    timeout: o.WaitTimeout = None,
    download: o.Download = None,
    json: o.Json = False,
) -> None:
    """Quantize a model: send it when it is a folder, submit the job, and with --wait see it through.

    Asking again for the same thing finds the same job instead of making another.

    Gates: max_perplexity_increase_pct (needs --eval-text), max_kl, min_top1_agreement, max_bytes, min_coverage_pct.
    """
    from nupes_client.cli.submitting import submit
    from nupes_client.cli.wish import Wish

    wish = Wish(
        bits=bits,
        group_size=group_size,
        exponent_scope=exponent_scope.value,
        exponent=exponent,
        scale_bits=scale_bits,
        layout=layout.value,
        exclude=exclude,
        embeddings=embeddings,
        formats=[item.value for item in format_ or [o.Format.NUPES]],
        eval_text=eval_text,
        eval_context=eval_context,
        eval_tokens=eval_tokens,
        no_eval=no_eval,
        gates=gate or (),
        labels=label or (),
        extra={"name": name, "priority": priority, "timeout_s": job_timeout, "seed": seed},
    )
    submit(model, wish, wait=wait or download is not None, timeout_s=timeout, download=download, as_json=json)
