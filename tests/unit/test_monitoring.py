"""Metrics are read as Prometheus reads them.

Rules are valid, and each alert fires when it should and not before.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streams.figures.counters import Counters, RunTally
from streams.figures.metrics import process_metrics
from streams.figures.process import Vitals
from streams.operate.faults import BY_COMMANDS, CODES, faults_of
from streams.operate.metrics import cluster_metrics
from tests.fixtures.programs import program
from tests.unit.test_faults import WELL

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))[
    "groups"
][0]["rules"]


# What no snapshot can say, and what only a command asks.
def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_the_deployment_is_told_as_the_snapshot_is() -> None:
    told = samples(cluster_metrics(WELL, faults_of(WELL)))
    assert told["outbox_messages", (("status", "dead"),)] == WELL.totals.dead
    assert told["outbox_messages", (("status", "held"),)] == WELL.totals.held
    cause = (("biz_type", "chat"), ("error_code", "23503"), ("fingerprint", "f"))
    assert told["outbox_dead_messages", cause] == 2
    assert told["outbox_lag_records", (("partition", "0"), ("topic", "t"))] == 4
    faults = {labels: value for (name, labels), value in told.items() if name == "outbox_fault"}
    assert len(faults) == len(CODES.keys() - BY_COMMANDS)
    assert set(faults.values()) == {0}
    sick = replace(WELL, rejects=3)
    told = samples(cluster_metrics(sick, faults_of(sick)))
    assert told["outbox_fault", (("code", "rejects.arrive"), ("severity", "watch"))] == 1


def test_a_process_tells_what_it_counted() -> None:
    counters, tally = Counters(), RunTally()
    tally.consumed("chat", [999_990] * 3 + [900_000])
    tally.aside("chat", "dead")
    counters.count(tally, 1000)
    vitals = Vitals(kind="worker", name="g", partitions={"t": [0, 1]}, runs=2)
    told = samples(process_metrics(counters, vitals))
    chat = ("biz_type", "chat")
    assert told["outbox_worker_consumed_total", (chat,)] == 4
    assert told["outbox_worker_dead_total", (chat,)] == 1
    assert told["outbox_worker_latency_seconds_bucket", (chat, ("le", "0.0128"))] == 3
    assert told["outbox_worker_latency_seconds_bucket", (chat, ("le", "+Inf"))] == 4
    assert told["outbox_worker_partitions", (("topic", "t"),)] == 2


def test_every_fault_has_an_alert_with_its_section_of_the_runbook() -> None:
    sections = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in RULES}
    assert sections >= {
        code.replace(".", "-").replace("_", "-") for code in CODES.keys() - BY_COMMANDS
    }
    for rule in RULES[1:]:
        code = rule["expr"].partition('code="')[2].partition('"')[0]
        assert code not in BY_COMMANDS  # no metric tells it
        assert rule["labels"]["severity"] == CODES[code]
        assert rule["annotations"]["runbook_url"].endswith(
            "#" + code.replace(".", "-").replace("_", "-")
        )


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    counters, tally = Counters(), RunTally()
    tally.consumed("chat", [1])
    counters.count(tally, 1)
    told = cluster_metrics(WELL, []) + process_metrics(counters, Vitals(kind="worker", name="g"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            name = next(
                word
                for word in target["expr"].replace("(", " ").replace("{", " ").split()
                if word.startswith("outbox_")
            )
            assert name.partition("[")[0].rstrip(")").encode() in told, name


def test_each_alert_fires_and_does_not_fire(promtool: str, tmp_path: Path) -> None:
    rules = tmp_path / "alerts.yml"
    rules.write_text((FOLDER / "alerts.yml").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([promtool, "check", "rules", str(rules)], check=True, capture_output=True)
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(_cases()), encoding="utf-8")
    ended = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _cases() -> dict[str, Any]:
    """All faults at once for half an hour, told by two processes; none; and nobody who tells."""
    clock = {"series": "outbox_snapshot_timestamp_seconds", "values": "0+60x40"}
    codes = [(rule, rule["expr"].partition('code="')[2].partition('"')[0]) for rule in RULES[1:]]

    def series(value: int) -> list[dict[str, str]]:
        return [
            {
                "series": (
                    f'outbox_fault{{code="{code}",severity="{CODES[code]}",instance="{instance}"}}'
                ),
                "values": f"{value}x40",
            }
            for _, code in codes
            for instance in ("a", "b")
        ]

    def alert(rule: dict[str, Any], code: str) -> dict[str, Any]:
        labels = {"severity": rule["labels"]["severity"], "code": code}
        return {
            "alertname": rule["alert"],
            "eval_time": "20m",
            # Fmt: skip
            "exp_alerts": [{"exp_labels": labels, "exp_annotations": rule["annotations"]}],
        }

    silent = {
        "alertname": RULES[0]["alert"],
        "eval_time": "20m",
        # Fmt: skip
        "exp_alerts": [
            {"exp_labels": RULES[0]["labels"], "exp_annotations": RULES[0]["annotations"]}
        ],
    }
    none = [{"alertname": rule["alert"], "eval_time": "20m", "exp_alerts": []} for rule in RULES]
    return {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [clock, *series(1)],
                "alert_rule_test": [alert(*each) for each in codes],
            },
            {"interval": "1m", "input_series": [clock, *series(0)], "alert_rule_test": none},
            {"interval": "1m", "input_series": [], "alert_rule_test": [silent]},
            {
                "interval": "1m",
                "input_series": [
                    {**clock, "series": clock["series"] + '{env="staging"}'},
                    {"series": clock["series"] + '{env="production"}', "values": "0x40"},
                ],
                "alert_rule_test": [
                    {
                        **silent,
                        "exp_alerts": [
                            {
                                "exp_labels": {**RULES[0]["labels"], "env": "production"},
                                "exp_annotations": RULES[0]["annotations"],
                            }
                        ],
                    }
                ],
            },
        ],
    }


@pytest.fixture(scope="session")
def promtool() -> str:
    """Debian's, which `make test` installs where it can."""
    return program("prometheus", "promtool")
