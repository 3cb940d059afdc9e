"""Is everything all right? One snapshot, what is wrong in it, and how it went."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import faults, look, series
from streams.operate.faults import Fault
from streams.operate.limits import limits_of
from streams.operate.series import Series, Span
from streams.operate.snapshot import Snapshot
from streams.web.page import Page, Source


class OverviewQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Over which span the charts go."""

    span: Span = "10m"


@dataclass(frozen=True, slots=True)
class Overview:
    """What is wrong, `bad` first; the deployment at one moment; and its figures over time."""

    faults: list[Fault]
    snapshot: Snapshot
    series: Series


def read(source: Source, query: OverviewQuery) -> Overview:
    """Look once, and judge that."""
    snapshot = look.look(source.connection, limits_of(source.settings), memory=source.memory)
    with source.connection.begin():
        figures = series.series(source.connection, query.span)
    return Overview(faults.faults_of(snapshot), snapshot, figures)


PAGE = Page(
    path="/",
    title="Overview",
    about="Is everything all right: faults, where the messages are, rates, relay, workers.",
    query=OverviewQuery,
    gives=Overview,
    read=read,
    template="overview.html",
    command=lambda _: ("streams", "status"),
    nav="overview",
)
