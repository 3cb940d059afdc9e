"""Metrics for Prometheus: of this process, and of the whole deployment from one snapshot."""

from __future__ import annotations

from sqlalchemy import Connection

from streams.figures.counters import Counters
from streams.figures.metrics import CONTENT_TYPE, process_metrics
from streams.figures.process import Vitals
from streams.operate.faults import faults_of
from streams.operate.limits import limits_of
from streams.operate.look import look
from streams.operate.metrics import cluster_metrics
from streams.web.messages import Response
from streams.web.rights import Right
from streams.web.routes import Call, Route


async def cluster(call: Call) -> Response:
    """The deployment, as whoever is asked tells it; looked at once a second at most."""
    site = call.site

    def make(connection: Connection) -> bytes:
        snapshot = look(connection, limits_of(site.settings), memory=site.memory)
        return cluster_metrics(snapshot, faults_of(snapshot))

    answer = await site.shared.get("/metrics/cluster", lambda: site.pool.run(make))
    return Response(200, answer.value, {"Content-Type": CONTENT_TYPE})


async def process(call: Call) -> Response:
    """This process alone."""
    told = call.site.process
    name = call.site.settings.worker.group
    text = process_metrics(Counters(), Vitals(kind="web", name=name)) if told is None else told()
    return Response(200, text, {"Content-Type": CONTENT_TYPE})


ROUTES = (
    Route(
        "GET",
        "/metrics",
        Right.VIEW,
        process,
        "What this process did since it began, for Prometheus.",
    ),
    Route("GET", "/metrics/cluster", Right.VIEW, cluster, "The whole deployment, for Prometheus."),
)
