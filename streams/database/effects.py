"""Statements that compare what handlers wrote with the outbox, for the audit.

Names of tables and columns come from the code that declares an agent; they reach SQL as quoted
identifiers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import sql

from streams.effect import Effect, Tally

Statement = sql.Composed


def compare(effect: Effect) -> Statement:
    """Messages of `audit_rows` whose effect is missing, too early, or not what was sent.

    What was sent is the payload.
    """
    return sql.SQL(
        """
        SELECT id,
               CASE WHEN NOT found THEN 'no_effect' WHEN NOT consumed THEN 'unclaimed_effect'
                    ELSE 'altered_effect' END,
               status
        FROM (
            SELECT a.id, a.status,
                   a.status IS NOT DISTINCT FROM 'consumed' AS consumed, {id} IS NOT NULL AS found,
                   CASE WHEN a.status = 'consumed' AND {id} IS NOT NULL AND p.payload IS NOT NULL
                             AND NOT jsonb_exists(p.payload, '$erased') THEN {differs}
                        ELSE false END AS differs
            FROM audit_rows AS a
            JOIN outbox AS o ON o.id = a.id AND o.id > %(after)s AND o.id <= %(until)s
            LEFT JOIN {table} AS e ON {id} = a.id AND {id} > %(after)s AND {id} <= %(until)s{where}
            LEFT JOIN LATERAL (
                SELECT CASE WHEN a.source_id IS NULL THEN o.payload
                            ELSE (SELECT s.payload FROM outbox AS s WHERE s.id = a.source_id)
                            END::jsonb AS payload
                OFFSET 0
            ) AS p ON a.status = 'consumed' AND {id} IS NOT NULL
            WHERE o.biz_type = %(biz_type)s
              AND (%(ids)s::bigint[] IS NULL OR a.id = ANY(%(ids)s::bigint[]))
        ) AS compared
        WHERE consumed <> found OR differs
        """
    ).format(differs=_differs(effect), **_names(effect))


def doubled(effect: Effect) -> Statement:
    """Messages with more than one effect."""
    return sql.SQL(
        """
        SELECT {id}, count(*)
        FROM {table} AS e
        WHERE {id} > %(after)s AND {id} <= %(until)s
          AND (%(ids)s::bigint[] IS NULL OR {id} = ANY(%(ids)s::bigint[])){where}
        GROUP BY {id}
        HAVING count(*) > 1
        """
    ).format(**_names(effect))


def phantoms(effect: Effect) -> Statement:
    """Effects of messages that there are not.

    They have no outbox row of these biz_types, and were not written directly.
    """
    return sql.SQL(
        """
        SELECT {id}
        FROM {table} AS e
        LEFT JOIN outbox AS o
               ON o.id = {id} AND o.resend_of IS NULL AND o.biz_type = ANY(%(biz_types)s)
              AND o.id > %(after)s AND o.id <= %(until)s
        LEFT JOIN outbox_direct AS d ON d.outbox_id = {id}
        WHERE {id} > %(after)s AND {id} <= %(until)s
          AND (%(ids)s::bigint[] IS NULL OR {id} = ANY(%(ids)s::bigint[])){where}
          AND o.id IS NULL AND d.outbox_id IS NULL
        """
    ).format(**_names(effect))


def beyond(effect: Effect) -> Statement:
    """Effects with ids that were never drawn."""
    return sql.SQL(
        """
        SELECT {id}
        FROM {table} AS e
        WHERE ({id} < 1 OR {id} > (SELECT last_value FROM outbox_id_seq)){where}
        LIMIT 1000
        """
    ).format(**_names(effect))


def reordered(effect: Effect) -> Statement:
    """Messages of `audit_rows` whose effect stands before that of an earlier one.

    Earlier is what was persisted earlier in the same conversation.
    """
    return sql.SQL(
        """
        SELECT id, earlier
        FROM (
            SELECT a.id, e.{order} AS place, lag(e.{order}) OVER conversation AS before,
                   lag(a.id) OVER conversation AS earlier
            FROM audit_rows AS a
            JOIN {table} AS e ON {id} = a.id AND {id} > %(after)s AND {id} <= %(until)s{where}
            WHERE a.applied > 0
            WINDOW conversation AS (PARTITION BY a.line ORDER BY a.applied)
        ) AS steps
        WHERE place < before
        """
    ).format(order=sql.Identifier(effect.order or effect.column), **_names(effect))


def contents(effect: Effect) -> Statement:
    """One message's payload that counts and what its effect holds, for a second look by type."""
    columns = sql.SQL(", ").join(
        sql.SQL("e.{}").format(sql.Identifier(column)) for column in effect.fields.values()
    )
    return sql.SQL(
        """
        SELECT coalesce(s.payload, o.payload)::text, {same_time}{columns}
        FROM outbox AS o
        JOIN outbox_state AS t ON t.outbox_id = o.id
        LEFT JOIN outbox AS s ON s.id = t.source_id
        JOIN {table} AS e ON {id} = o.id{where}
        WHERE o.id = %(id)s
        """
    ).format(
        same_time=_same_time(effect),
        columns=sql.SQL(", ") + columns if effect.fields else sql.SQL(""),
        **_names(effect),
    )


def foreign(effect: Effect) -> Statement:
    """Another system's messages of a range whose state and effect contradict each other.

    One that is noted as consumed without having been persisted here may have an effect or not.
    """
    return sql.SQL(
        """
        SELECT outbox_id,
               CASE WHEN e.n > 1 THEN 'doubled_effect' WHEN e.n = 1 THEN 'unclaimed_effect'
                    ELSE 'no_effect' END,
               f.status
        FROM (
            SELECT outbox_id, status, status = 'consumed' AS consumed, applied
            FROM outbox_foreign
            WHERE source = %(source)s AND outbox_id > %(after)s AND outbox_id <= %(until)s
              AND (biz_type IS NULL OR biz_type = ANY(%(biz_types)s))
        ) AS f
        FULL JOIN (
            SELECT {id} AS outbox_id, count(*) AS n
            FROM {table} AS e
            WHERE {id} > %(after)s AND {id} <= %(until)s AND e.{source} = %(source)s{where}
            GROUP BY {id}
        ) AS e USING (outbox_id)
        WHERE e.n > 1
           OR (f.consumed AND f.applied IS NOT NULL AND e.n IS NULL)
           OR (NOT f.consumed AND e.n IS NOT NULL)
           OR (f.consumed IS NULL AND outbox_id > %(known)s)
        ORDER BY outbox_id
        """
    ).format(source=sql.Identifier(effect.source or ""), **_marked(effect))


def tally_table(effect: Effect, tally: Tally) -> Statement:
    """A temporary table for counts by range."""
    keys = _columns(tally.keys)
    return sql.SQL(
        "CREATE TEMP TABLE {name} AS SELECT {keys}, 0::bigint AS n FROM {table} AS e WHERE false"
    ).format(name=_temporary(tally), keys=keys, table=_table(effect.table))


def tally_range(effect: Effect, tally: Tally) -> Statement:
    """Count the effects of a range, whatever their `where`."""
    return sql.SQL(
        """
        INSERT INTO {name}
        SELECT {keys}, count(*)
        FROM {table} AS e
        WHERE {id} > %(after)s AND {id} <= %(until)s
        GROUP BY {keys}
        """
    ).format(
        name=_temporary(tally),
        keys=_columns(tally.keys),
        table=_table(effect.table),
        id=_id(effect),
    )


def tally_suspects(effect: Effect, tally: Tally) -> Statement:
    """Keys whose count seems wrong; what was written meanwhile may be the reason."""
    return sql.SQL(
        """
        SELECT {keys}
        FROM (SELECT {keys}, sum(n) AS n FROM {name} GROUP BY {keys}) AS e
        FULL JOIN {tally} AS t USING ({keys})
        WHERE coalesce(e.n, 0) <> coalesce(t.{count}, 0)
        LIMIT 10000
        """
    ).format(
        name=_temporary(tally),
        keys=_columns(tally.keys),
        tally=_table(tally.table),
        count=sql.Identifier(tally.count),
    )


def tally_wrong(effect: Effect, tally: Tally) -> Statement:
    """Those of the suspects whose count is wrong, seen in one snapshot.

    The suspects come as one array of text for each key column.
    """
    given = sql.SQL(", ").join(
        sql.SQL("%({})s::text[]").format(sql.SQL(f"k{n}")) for n in range(len(tally.keys))
    )
    names = sql.SQL(", ").join(sql.Identifier(f"k{n}") for n in range(len(tally.keys)))

    def on(alias: str) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{}.{}::text = g.{}").format(
                sql.Identifier(alias), sql.Identifier(key), sql.Identifier(f"k{n}")
            )
            for n, key in enumerate(tally.keys)
        )

    return sql.SQL(
        """
        SELECT {names}, counted, found
        FROM (
            SELECT g.*, coalesce(max(t.{count}), 0) AS counted, count(e.*) AS found
            FROM unnest({given}) AS g ({names})
            LEFT JOIN {tally} AS t ON {on_tally}
            LEFT JOIN {table} AS e ON {on_effect}
            GROUP BY {names}
        ) AS counts
        WHERE counted <> found
        """
    ).format(
        names=names,
        given=given,
        count=sql.Identifier(tally.count),
        tally=_table(tally.table),
        table=_table(effect.table),
        on_tally=on("t"),
        on_effect=on("e"),
    )


def _differs(effect: Effect) -> sql.Composable:
    parts: list[sql.Composable] = [
        sql.SQL("e.{}::text IS DISTINCT FROM p.payload->>{}").format(
            sql.Identifier(column), sql.Literal(name)
        )
        for name, column in effect.fields.items()
    ]
    if effect.created_at:
        parts.append(
            sql.SQL("e.{} IS DISTINCT FROM o.created_at").format(sql.Identifier(effect.created_at))
        )
    return sql.SQL(" OR ").join(parts) if parts else sql.SQL("false")


def _same_time(effect: Effect) -> sql.Composable:
    if not effect.created_at:
        return sql.SQL("true")
    return sql.SQL("e.{} IS NOT DISTINCT FROM o.created_at").format(
        sql.Identifier(effect.created_at)
    )


def _names(effect: Effect) -> dict[str, Any]:
    """For statements about our own messages."""
    marked = _marked(effect)
    if effect.source:
        marked["where"] += sql.SQL(" AND e.{} = ''").format(sql.Identifier(effect.source))
    return marked


def _marked(effect: Effect) -> dict[str, Any]:
    where = [
        sql.SQL(" AND e.{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in effect.where.items()
    ]
    return {"table": _table(effect.table), "id": _id(effect), "where": sql.Composed(where)}


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split("."))


def _id(effect: Effect) -> sql.Composed:
    return sql.SQL("e.{}").format(sql.Identifier(effect.column))


def _columns(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _temporary(tally: Tally) -> sql.Identifier:
    return sql.Identifier(f"audit_tally_{tally.table.replace('.', '_')}")
