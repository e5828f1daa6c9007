"""What a launch tells Prometheus, through Ray: every node of a Ray cluster exports what its processes measure.

All of it is measured by the driver, from what workers say of each shard, so that nothing is counted twice; what a worker made
that died before it could say so is found in the store and not counted. Names and tags are those that deploy/grafana and
deploy/prometheus ask for; tests hold the three together.
"""

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.events import AttemptFailed, Done, Event, ShardDone, Snapshot

PREFIX = "affectome_"
COUNTERS = {
    "rows_total": "Utterances extracted.",
    "tokens_total": "Tokens that went through the model.",
    "bytes_total": "Bytes made durable in the store.",
    "shards_total": "Shards committed.",
    "retries_total": "Attempts at shards that had to be repeated, by reason.",
    "quarantined_total": "Shards given up.",
}
GAUGES = {
    "queue_depth": "Shards that nobody computes yet.",
    "in_flight": "Attempts at shards under way.",
    "workers": "Workers, by state.",
    "tokens_per_second": "Tokens computed over the last half minute, by second.",
    "share_of_limit": "tokens_per_second as a share of what the workers' matrix products alone would do.",
}
HISTOGRAMS = {
    "write_seconds": "Time to make a shard durable.",
    "compute_seconds": "Time to compute a shard.",
}
_SECONDS = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
_OWN_TAGS = {"retries_total": ("reason",), "workers": ("state",)}
_TAGS = ("run", "model")


class LaunchMetrics:
    """The metrics of one launch; a listener of the driver's events."""

    def __init__(self, run_id: str, model: str) -> None:
        tags = {"run": run_id, "model": model}
        self._counters = {
            name: Counter(PREFIX + name, text, (*_TAGS, *_OWN_TAGS.get(name, ()))) for name, text in COUNTERS.items()
        }
        self._gauges = {name: Gauge(PREFIX + name, text, (*_TAGS, *_OWN_TAGS.get(name, ()))) for name, text in GAUGES.items()}
        self._histograms = {name: Histogram(PREFIX + name, text, _SECONDS, _TAGS) for name, text in HISTOGRAMS.items()}
        for metric in (*self._counters.values(), *self._gauges.values(), *self._histograms.values()):
            metric.set_default_tags(tags)

    def __call__(self, event: Event) -> None:
        """Count what happened."""
        match event:
            case ShardDone(done=done):
                self._done(done)
            case AttemptFailed():
                if event.given_up:
                    self._counters["quarantined_total"].inc()
                else:
                    self._counters["retries_total"].inc(1, {"reason": str(event.kind)})
            case Snapshot():
                self._stand(event)

    def _done(self, done: Done) -> None:
        values = {"rows": done.n_rows, "tokens": done.n_computed, "bytes": done.n_bytes, "shards": 1}
        for name, value in values.items():
            if value:
                self._counters[f"{name}_total"].inc(value)
        self._histograms["write_seconds"].observe(done.write_seconds)
        self._histograms["compute_seconds"].observe(done.compute_seconds)

    def _stand(self, state: Snapshot) -> None:
        self._gauges["queue_depth"].set(state.n_waiting)
        self._gauges["in_flight"].set(state.n_in_flight)
        for name, count in (("starting", state.n_starting), ("idle", state.n_idle), ("busy", state.n_busy)):
            self._gauges["workers"].set(count, {"state": name})
        self._gauges["tokens_per_second"].set(state.tokens_per_second)
        self._gauges["share_of_limit"].set(state.tokens_per_second / state.limit if state.limit else 0.0)
