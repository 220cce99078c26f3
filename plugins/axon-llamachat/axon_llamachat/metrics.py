"""What `/metrics` tells, in a registry of its own: requests, tokens and latencies, and the state of each engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from axon_eet import Answer, EngineReport
from axon_llamachat.served import ServedModels

__all__ = ["Metrics", "Timer"]

_SHORT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_LONG = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The numbers of a server."""

    def __init__(self, models: ServedModels) -> None:
        self._registry = to = CollectorRegistry()
        self._requests = Counter("axon_requests", "Responses by path and status.", ["path", "status"], registry=to)
        self._tokens = Counter("axon_tokens", "Tokens: prompt, cached, generated.", ["model", "kind"], registry=to)

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"axon_{name}_seconds", about, ["model"], buckets=buckets, registry=to)

        self._first = histogram("time_to_first_token", "From the question to its first token.", _LONG)
        self._between = histogram("time_between_tokens", "Between two tokens of a text.", _SHORT)
        self._whole = histogram("answer", "From the question to the end of its answer.", _LONG)
        self._registry.register(_Engines(models))

    def responded(self, path: str, status: int) -> None:
        """Count a response; `path` is a route's, never a client's text."""
        self._requests.labels(path, str(status)).inc()

    def timer(self, model: str) -> Timer:
        """Return what times an answer of a model that begins now."""
        return Timer(
            self._first.labels(model), self._between.labels(model), self._whole.labels(model), self._count(model)
        )

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self._registry)

    def _count(self, model: str) -> dict[str, Counter]:
        return {kind: self._tokens.labels(model, kind) for kind in ("prompt", "cached", "generated")}


class Timer:
    """Times one answer.

    Args:
        first: takes the time to the first token.
        between: takes the times between two tokens of a text.
        whole: takes the time to the end.
        tokens: count tokens, by kind.
    """

    def __init__(self, first: Histogram, between: Histogram, whole: Histogram, tokens: dict[str, Counter]) -> None:
        self._first, self._between, self._whole, self._tokens = first, between, whole, tokens
        self._begin = time.perf_counter()
        self._last: dict[int, float] = {}

    def piece(self, choice: int) -> None:
        """Note a token of a text."""
        now, last = time.perf_counter(), self._last.get(choice)
        if last is not None:
            self._between.observe(now - last)
        elif not self._last:
            self._first.observe(now - self._begin)
        self._last[choice] = now

    def end(self, answers: Sequence[Answer]) -> None:
        """Note the end of the answer."""
        self._whole.observe(time.perf_counter() - self._begin)
        usages = [answer.usage for answer in answers]
        self._tokens["prompt"].inc(sum(usage.prompt_tokens for usage in usages))
        self._tokens["cached"].inc(sum(usage.cached_tokens for usage in usages))
        self._tokens["generated"].inc(sum(usage.completion_tokens for usage in usages))


class _Engines(Collector):
    """The state of the engines when it is asked for."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield a family of numbers for each figure that engines report."""
        reports = {name: model.engine.report() for name, model in self._models.items()}
        for name, about, figure in _GAUGES:
            gauge = GaugeMetricFamily(f"axon_{name}", about, labels=["model"])
            for model, report in reports.items():
                gauge.add_metric([model], figure(report))
            yield gauge
        preempted = CounterMetricFamily(
            "axon_preemptions", "Texts that gave their memory to others and were computed again.", labels=["model"]
        )
        for model, report in reports.items():
            preempted.add_metric([model], report.preemptions)
        yield preempted


_GAUGES: tuple[tuple[str, str, Callable[[EngineReport], float]], ...] = (
    ("running", "Texts that are being written.", lambda report: report.running),
    ("waiting", "Texts that wait.", lambda report: report.waiting),
    ("memory_total_bytes", "Memory for keys and values.", lambda report: report.memory.total),
    ("memory_used_bytes", "Memory that running texts hold.", lambda report: report.memory.used),
    ("memory_kept_bytes", "Memory kept for texts that begin like earlier ones.", lambda report: report.memory.kept),
)
