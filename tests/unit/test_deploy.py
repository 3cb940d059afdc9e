"""What deploy/ holds is what Kubernetes, systemd and compose take.

It names commands and settings that exist.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from streams.cli import COMMANDS, cli
from streams.extras import EXTRAS
from streams.settings import Settings, load

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted(
    file
    for file in (DEPLOY / "kubernetes").rglob("*.yaml")
    if file.name not in ("kustomization.yaml", "scaledobject.yaml")
)
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in MANIFESTS:
        for each in documents(file):
            if template := each["spec"].get("template"):
                yield each["metadata"]["name"], template


def check_command(words: list[str]) -> None:
    """It is ours, and exists."""
    program = words[0].rpartition("/")[2]
    if program == "faust":
        assert words[1:] == ["-A", "streams.app", "worker"]
    else:
        assert program == "streams" and words[1] in COMMANDS
        command = cli.get_command(click.Context(cli), words[1])
        for word in words[2:]:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_are_what_the_schema_of_kubernetes_says(file: Path) -> None:
    for each in documents(file):
        kubernetes_validate.validate(each, "1.34", strict=True)


def test_the_schema_is_looked_at() -> None:
    [job] = documents(DEPLOY / "kubernetes/base/migrate.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


# What KEDA's definition of a ScaledObject says of the fields that ours may have, and its Kafka
# scaler of a trigger.  Nothing else is allowed: a field that is misspelt would be ignored.
SCALED_OBJECT = {
    "type": "object",
    "required": ["scaleTargetRef", "triggers"],
    "additionalProperties": False,
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "kind": {"type": "string"},
                "apiVersion": {"type": "string"},
            },
        },
        "minReplicaCount": {"type": "integer", "minimum": 0},
        "maxReplicaCount": {"type": "integer", "minimum": 1},
        "pollingInterval": {"type": "integer", "minimum": 1},
        "cooldownPeriod": {"type": "integer", "minimum": 0},
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "metadata"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "kafka"},
                    "authenticationRef": {"type": "object", "required": ["name"]},
                    "metadata": {
                        "type": "object",
                        "required": ["bootstrapServers", "consumerGroup", "topic", "lagThreshold"],
                        # Text, numbers too: another type is refused when it is applied.
                        "additionalProperties": {"type": "string"},
                        "properties": {
                            "lagThreshold": {"type": "string", "pattern": "^[1-9][0-9]*$"},
                            "offsetResetPolicy": {"enum": ["latest", "earliest"]},
                        },
                    },
                },
            },
        },
    },
}


def test_scaling_is_what_keda_takes() -> None:
    [scaled] = documents(DEPLOY / "kubernetes/autoscaling/scaledobject.yaml")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    jsonschema.validate(scaled["spec"], SCALED_OBJECT)
    for spoilt in ({"lagThreshold": 50000}, {"offsetResetPolicy": "first"}):
        trigger = {"type": "kafka", "metadata": scaled["spec"]["triggers"][0]["metadata"] | spoilt}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**scaled["spec"], "triggers": [trigger]}, SCALED_OBJECT)
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate({**scaled["spec"], "maxReplicas": 8}, SCALED_OBJECT)


def test_every_pod_may_do_nothing_but_its_work() -> None:
    by_name = dict(pods())
    assert by_name.keys() == {"outbox-migrate", "outbox-relay", "outbox-worker"}
    for template in by_name.values():
        spec = template["spec"]
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
        assert spec["securityContext"]["runAsNonRoot"]
        [container] = spec["containers"]
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        check_command(container["command"])


def test_kustomizations_name_every_file_and_selectors_select_pods() -> None:
    for folder in (DEPLOY / "kubernetes/base", DEPLOY / "kubernetes/autoscaling"):
        [kustomization] = documents(folder / "kustomization.yaml")
        named = {(folder / each).resolve() for each in kustomization["resources"]}
        assert all(each.exists() for each in named)
        assert {
            file.resolve() for file in folder.glob("*.yaml") if file.name != "kustomization.yaml"
        } <= named
    [base] = documents(DEPLOY / "kubernetes/base/kustomization.yaml")
    [labels] = base["labels"]
    assert labels["includeTemplates"], "the network policy would select nothing"
    names = {template["metadata"]["labels"]["app.kubernetes.io/name"] for _, template in pods()}
    for file in MANIFESTS:
        for each in documents(file):
            selector = (each["spec"].get("selector") or each["spec"].get("podSelector") or {}).get(
                "matchLabels", {}
            )
            assert (
                selector.items() <= labels["pairs"].items()
                or selector["app.kubernetes.io/name"] in names
            )


def test_probes_and_scaling_fit_the_settings() -> None:
    settings = load(DEPLOY / "kubernetes/base/faust.yml", {})
    assert settings.web.probe is not None
    port = int(settings.web.probe.rpartition(":")[2])
    [container] = dict(pods())["outbox-worker"]["spec"]["containers"]
    assert [each["containerPort"] for each in container["ports"]] == [port]
    [policy] = documents(DEPLOY / "kubernetes/base/network.yaml")
    assert policy["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": port}]}]
    [scaled] = documents(DEPLOY / "kubernetes/autoscaling/scaledobject.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "outbox-worker"
    assert scaled["spec"]["maxReplicaCount"] == Settings().topic.partitions
    assert scaled["spec"]["triggers"][0]["metadata"]["consumerGroup"] == settings.worker.group


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_units_restart_but_for_what_restarting_cannot_mend(file: Path) -> None:
    unit = ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    service = unit["Service"]
    check_command(shlex.split(service["ExecStart"]))
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("always", "2")
    assert (service["ProtectSystem"], service["NoNewPrivileges"], service["DynamicUser"]) == (
        "strict",
        "yes",
        "yes",
    )
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_compose_runs_commands_that_exist_on_a_read_only_root() -> None:
    [compose] = documents(DEPLOY / "compose.yml")
    ours = {
        name: each
        for name, each in compose["services"].items()
        if each.get("image") == "outbox-streams"
    }
    assert ours.keys() == {"migrate", "relay", "worker"}
    for each in ours.values():
        assert each["read_only"] and each["cap_drop"] == ["ALL"]
        if "command" in each:
            check_command(each["command"])
        assert set(each["environment"]) >= {"STREAMS_DATABASE__URL", "STREAMS_BROKER__URL"}
    check_command(ours["relay"]["healthcheck"]["test"][1:])
    # After a reboot all of it runs again, with the data that it had.
    services = compose["services"]
    assert {each["restart"] for name, each in services.items() if name != "migrate"} == {"always"}
    [kept] = [each.partition(":")[2] for each in services["kafka"]["volumes"]]
    assert services["kafka"]["environment"]["KAFKA_LOG_DIRS"] == kept


def test_the_image_installs_extras_that_exist_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    [extras] = re.findall(r"/src\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= EXTRAS.keys()
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    check_command(yaml.safe_load(command))
