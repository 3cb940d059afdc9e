"""Is everything there? What audits found, and what is not proved yet."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import acts, look
from streams.operate.acts import AskedAudit, Audit
from streams.operate.snapshot import Proof
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Limit


class ProofQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the list of audits goes on."""

    before: Before | None = None
    limit: Limit = 20


@dataclass(frozen=True, slots=True)
class Proofs:
    """What the last audit proves (None: there was none yet), all audits, the newest first.

    And which audit somebody asked for last, from a page.
    """

    proof: Proof | None
    asked: AskedAudit | None
    audits: list[Audit]
    before: int | None


def read(source: Source, query: ProofQuery) -> Proofs:
    """The last proof, and one page of audits."""
    with source.connection.begin():
        audits = acts.audits(source.connection, before=query.before, limit=query.limit + 1)
        shown = audits[: query.limit]
        before = shown[-1].id if len(audits) > query.limit else None
        asked = acts.asked_audit(source.connection)
        return Proofs(look.proof(source.connection), asked, shown, before)


PAGE = Page(
    path="/proof/",
    title="Proof",
    about="What audits found, and what is not proved yet.",
    query=ProofQuery,
    gives=Proofs,
    read=read,
    template="proof.html",
    command=lambda _: ("streams", "audit"),
    nav="proof",
)
