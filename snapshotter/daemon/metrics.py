"""Prometheus metrics over HTTP; their names are documented in docs/configuration.md."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from socketserver import BaseServer
from threading import Thread

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ipfs_store import __version__
from ipfs_store.errors import InvalidInput, IpfsStoreError
from snapshotter.dataplane.client import DataPlane

_log = logging.getLogger(__name__)


class _Snapshotter(Collector):
    """Asks the data plane when it is asked."""

    def __init__(self, plane: DataPlane, count: Callable[[], int], mode: str) -> None:
        self._plane = plane
        self._count = count
        self._mode = mode

    def collect(self) -> Iterator[Metric]:
        """Every metric now. A data plane that does not answer is one of them."""
        yield InfoMetricFamily("ipfs_snapshotter", "What runs", {"version": __version__, "mount_mode": self._mode})
        yield GaugeMetricFamily("ipfs_snapshots", "Snapshots of every kind", self._count())
        try:
            status, holder = self._plane.status(), self._plane.status_of_holder()
        except IpfsStoreError as error:
            _log.debug("no metrics of the data plane: %s", error.message)
            yield GaugeMetricFamily("ipfs_dataplane_up", "Whether the data plane answers", 0)
            return
        yield GaugeMetricFamily("ipfs_dataplane_up", "Whether the data plane answers", 1)
        yield CounterMetricFamily("ipfs_dataplane_starts", "Data planes that served since the mount was made", holder["served"])
        yield GaugeMetricFamily("ipfs_dataplane_resident_bytes", "Memory of the data plane", status.rss_bytes)
        yield GaugeMetricFamily("ipfs_cache_bytes", "What the cache takes on disk", status.cache_bytes)
        layers = GaugeMetricFamily("ipfs_layers", "Mounted layers", labels=["mode"])
        for mode in ("native", "portable"):
            layers.add_metric([mode], sum(layer.mode == mode for layer in status.layers))
        yield layers
        names = ["layer", "cid"]
        fetched = CounterMetricFamily("ipfs_layer_fetched_bytes", "Bytes got from the node since the data plane started", labels=names)
        read = CounterMetricFamily("ipfs_layer_read_bytes", "Bytes given to readers since the data plane started", labels=names)
        hits = CounterMetricFamily("ipfs_layer_chunk_hits", "Chunks found in memory or on disk", labels=names)
        misses = CounterMetricFamily("ipfs_layer_chunk_misses", "Chunks that had to be fetched", labels=names)
        waiting = GaugeMetricFamily("ipfs_layer_reads_waiting", "Fetches that readers wait for", labels=names)
        oldest = GaugeMetricFamily("ipfs_layer_oldest_wait_seconds", "Age of the oldest of them", labels=names)
        # A layer under two numbers is served, and counted, once.
        for layer in {(layer.digest, layer.cid): layer for layer in status.layers}.values():
            values = [layer.digest or str(layer.layer), layer.cid]
            fetched.add_metric(values, layer.fetched)
            read.add_metric(values, layer.read)
            hits.add_metric(values, layer.hits)
            misses.add_metric(values, layer.misses)
            waiting.add_metric(values, len(layer.waiting))
            oldest.add_metric(values, max((wait.age for wait in layer.waiting), default=0.0))
        yield from (fetched, read, hits, misses, waiting, oldest)


class Metrics:
    """A server of metrics, in a thread of its own until `close`."""

    def __init__(self, address: str, plane: DataPlane, count: Callable[[], int], mode: str) -> None:
        """``address``: ``HOST:PORT``. An address that is taken costs the metrics and nothing else; raises InvalidInput for what is none."""
        self._server: BaseServer | None = None
        self._thread: Thread | None = None
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise InvalidInput(f"metrics = {address!r} is no address", hint='write "127.0.0.1:9817", or "" for no metrics')
        registry = CollectorRegistry()
        registry.register(_Snapshotter(plane, count, mode))
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            _log.warning("no metrics on %s: %s", address, error.strerror)
            return
        self._server, self._thread = server, thread
        _log.info("metrics on http://%s/metrics", address)

    def close(self) -> None:
        """End it."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
