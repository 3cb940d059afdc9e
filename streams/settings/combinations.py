"""Combinations of settings that cannot work."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from streams.errors import SettingsInvalid
from streams.settings.addresses import is_bootstrap, is_database
from streams.settings.secrets import redact
from streams.settings.sections import Broker, Connect, Relay, Settings, Web

# With `web.access: local` nobody but this machine may ask for the pages.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check(settings: Settings) -> None:
    """Raises SettingsInvalid for the first of them."""
    _check_login(settings.broker)
    _check_relay(settings.relay)
    _check_connect(settings.connect)
    _check_formats(settings)
    if settings.relay.wal_limit is not None and settings.relay.wal_limit < settings.relay.wal_warn:
        raise SettingsInvalid(
            f"setting 'relay.wal_limit' is {settings.relay.wal_limit}: "
            f"expected at least relay.wal_warn ({settings.relay.wal_warn})"
        )
    if settings.worker.lock_timeout >= settings.worker.handler_timeout:
        raise SettingsInvalid(
            f"setting 'worker.lock_timeout' is {settings.worker.lock_timeout}: "
            f"expected less than worker.handler_timeout ({settings.worker.handler_timeout})"
        )
    archive = settings.outbox.archive
    if archive is not None and "://" not in archive and not Path(archive).is_absolute():
        raise SettingsInvalid(
            f"setting 'outbox.archive' is {archive!r}: expected a folder from the root on, or a"
            " URL: each process would take another folder for it"
        )
    _check_web(settings.web)


def refused_bind(web: Web, host: str) -> str | None:
    """Why nobody but this machine may listen at `host`, in words; None when it may be."""
    if host in LOOPBACK or web.access != "local":
        return None
    return (
        f"expected a loopback address ({', '.join(LOOPBACK)}) unless web.access is users or proxy"
    )


def _check_web(web: Web) -> None:
    if refused := refused_bind(web, web.host):
        raise SettingsInvalid(f"setting 'web.host' is {web.host!r}: {refused}")
    needs = {
        "users": ("users", "secret"),
        "proxy": ("trusted_proxies", "proxy_secret"),
        "local": (),
    }[web.access]
    for key in needs:
        if not getattr(web, key):
            raise SettingsInvalid(
                f"setting 'web.{key}' is not set: expected one, because web.access is {web.access}"
            )
    for proxy in web.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise SettingsInvalid(
                f"setting 'web.trusted_proxies' names {proxy!r}: expected an address or a network"
                " like 10.0.0.0/8"
            ) from None
    for host in web.hosts:
        if not re.fullmatch(r"[A-Za-z0-9.-]+", host):
            raise SettingsInvalid(
                f"setting 'web.hosts' names {host!r}: expected host names without scheme and port"
            )
    for origin in web.origins:
        if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
            raise SettingsInvalid(
                f"setting 'web.origins' names {origin!r}: expected scheme://host[:port]"
            )
    if web.probe is not None and not is_bootstrap(web.probe):
        raise SettingsInvalid(f"setting 'web.probe' is {web.probe!r}: expected host:port")
    for key in ("database_url", "acts_url"):
        if (url := getattr(web, key)) is not None and not is_database(url):
            raise SettingsInvalid(
                f"setting 'web.{key}' is {redact(url)!r}: expected postgresql://user@host:port/database"
            )


def _check_login(broker: Broker) -> None:
    protocol = broker.security_protocol
    if protocol.startswith("SASL") != (broker.sasl_mechanism is not None):
        raise SettingsInvalid(
            f"setting 'broker.sasl_mechanism' is {broker.sasl_mechanism!r}: "
            f"expected one exactly when broker.security_protocol ({protocol}) is SASL_*"
        )
    for key, value in (
        ("sasl_username", broker.sasl_username),
        ("sasl_password", broker.sasl_password),
    ):
        if (broker.sasl_mechanism is not None) != bool(value):
            raise SettingsInvalid(
                f"setting 'broker.{key}' is {'***' if value else value!r}: "
                f"expected one exactly when broker.security_protocol ({protocol}) is SASL_*"
            )
    if broker.ssl_cafile and not protocol.endswith("SSL"):
        raise SettingsInvalid(
            f"setting 'broker.ssl_cafile' is {broker.ssl_cafile!r}: "
            f"expected none unless broker.security_protocol ({protocol}) is SSL or SASL_SSL"
        )
    if broker.ssl_cafile:
        import ssl  # only for those who name a file: it takes its time to load

        try:
            ssl.create_default_context(cafile=broker.ssl_cafile)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsInvalid(
                f"setting 'broker.ssl_cafile' is {broker.ssl_cafile!r}:"
                " expected a file of certificates (PEM): "
                f"{error.strerror or type(error).__name__}"
            ) from None


def _check_formats(settings: Settings) -> None:
    if settings.topic.format != "outbox":
        raise SettingsInvalid(
            "setting 'topic.format' is 'envelope': expected 'outbox', an envelope topic is named"
            " under 'topics'"
        )
    for key, topic in {
        "topic": settings.topic,
        **{f"topics.{name}": each for name, each in settings.topics.items()},
    }.items():
        if topic.format == "outbox" and topic.source is not None:
            raise SettingsInvalid(
                f"setting '{key}.source' is {topic.source!r}: expected none unless {key}.format is"
                " envelope"
            )


def _check_relay(relay: Relay) -> None:
    for key, value, usual in (("shards", relay.shards, 1), ("notify", relay.notify, False)):
        if value != usual and relay.mode != "poll":
            raise SettingsInvalid(
                f"setting 'relay.{key}' is {value}: expected {usual} unless relay.mode"
                f" ({relay.mode}) is poll"
            )


def _check_connect(connect: Connect) -> None:
    if connect.url is not None and not re.fullmatch(r"https?://[^/\s?#]+/?", connect.url):
        raise SettingsInvalid(
            f"setting 'connect.url' is {redact(connect.url)!r}: expected http://host:port"
        )
    if connect.register and connect.url is None:
        raise SettingsInvalid(
            "setting 'connect.register' is True: expected false unless connect.url is set"
        )
