"""What a server counts of itself, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """
    Args:
        paths: of the server; requests for others are counted together, so that no client can make up labels.
        waiting: returns the number of waiting images.
    """

    def __init__(self, paths: frozenset[str], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.paths = paths
        name = "fusion_captioner"
        self.requests = Counter(
            f"{name}_requests", "Requests that have ended.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{name}_request_seconds", "Seconds per request.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            f"{name}_batch_size", "Images per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        queue = Gauge(f"{name}_waiting_images", "Images in the queue.", registry=self.registry)
        queue.set_function(waiting)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        path = path if path in self.paths else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
