"""OpenTelemetry, when `NUPES_OTLP_ENDPOINT` is set: one trace from the request over the job's attempts to their stages.

Nothing of OpenTelemetry is imported otherwise (extra `otel`), and `span` is one comparison. A request that makes a job
leaves its `traceparent` (W3C Trace Context) with it; from there the worker goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from app.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Kind = Literal["internal", "server", "consumer"]
FLUSH_S = 5.0

_provider: TracerProvider | None = None


def start(settings: Settings, service: str) -> None:
    """Send spans of this process from now on, as `service`; nothing happens without an endpoint.

    To be called after a fork: the exporter has a thread.
    """
    global _provider
    if not settings.otlp_endpoint or _provider is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=FLUSH_S)
    _provider = TracerProvider(resource=Resource.create({"service.name": service}))
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))


def stop() -> None:
    """Send what is left and end the thread."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.shutdown()


def is_on() -> bool:
    """Whether this process sends spans."""
    return _provider is not None


def span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: str | int
) -> AbstractContextManager[Any]:
    """Measure a block; yields the span, None while traces are off.

    Args:
        name: the same for all blocks of a kind.
        parent: a `traceparent` from elsewhere; default: the span around this one.
        kind: its role between processes.
        attributes: what tells this one from the others.
    """
    return nullcontext() if _provider is None else _span(_provider, name, parent, kind, attributes)


def traceparent() -> str | None:
    """The present span as a `traceparent`, to be carried elsewhere; None outside of any."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def _span(
    provider: TracerProvider, name: str, parent: str | None, kind: Kind, attributes: dict[str, str | int]
) -> Iterator[Any]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    tracer = provider.get_tracer("nupes")
    with tracer.start_as_current_span(name, context, SpanKind[kind.upper()], dict(attributes)) as current:
        yield current
