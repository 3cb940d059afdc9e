"""Settings: every kind of bad input is one line with key, value and expectation.

Secrets never print.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from streams.errors import SettingsInvalid
from streams.settings import Settings, load, public, redact
from streams.testing.deployment import Deployment

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: no faust.yml, no dev services."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str = "", **environ: str) -> Settings:
    Path("faust.yml").write_text(text, encoding="utf-8")
    return load(environ=environ)


def refused(text: str = "", **environ: str) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        settings = read(text, **environ)
        # The addresses are looked at by whoever needs them.
        if settings.database.url:
            _ = settings.database_url
        if settings.broker.url:
            _ = settings.broker_url
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_without_file_and_environment_there_are_defaults() -> None:
    assert load(environ={}) == Settings()


def test_an_empty_file_and_empty_sections_mean_defaults() -> None:
    assert read("") == read("agents:\nrelay:\ntopics:\n") == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "foo: 1",
            (
                "unknown setting 'foo': expected one of database, broker, agents, outbox, topic,"
                " topics, relay, "
            ),
        ),
        ("relay: {mod: cdc}", "unknown setting 'relay.mod': expected one of name, mode, "),
        (
            "topics: {a.b: {foo: 1}}",
            "unknown setting 'topics.a.b.foo': expected one of partitions, ",
        ),
        (
            "relay: {mode: cdcc}",
            "setting 'relay.mode' is 'cdcc': expected one of auto, cdc, debezium, poll",
        ),
        ("relay: {mode: }", "setting 'relay.mode' is None: expected text, got nothing"),
        (
            "broker: {sasl_mechanism: MD5}",
            "setting 'broker.sasl_mechanism' is 'MD5': expected one of PLAIN, SCRAM-",
        ),
        ("relay: 5", "setting 'relay' is 5: expected a section of keys, got a whole number"),
        ("relay: [cdc]", "setting 'relay' is ['cdc']: expected a section of keys, got a list"),
        ("agents: mine", "setting 'agents' is 'mine': expected a list, got text"),
        ("agents: [mine, 1]", "setting 'agents[1]' is 1: expected text, got a whole number"),
        ("topics: 5", "setting 'topics' is 5: expected a section of keys, got a whole number"),
        (
            "topics: {a: {}, b: x}",
            "setting 'topics.b' is 'x': expected a section of keys, got text",
        ),
        (
            "topics: {a: {}, b.c: {partitions: 0}}",
            "setting 'topics.b.c.partitions' is 0: expected a whole number >= 1",
        ),
        ("web: {port: 70000}", "setting 'web.port' is 70000: expected a whole number <= 65535"),
        (
            "outbox: {max_bytes: '1'}",
            "setting 'outbox.max_bytes' is '1': expected a whole number, got text",
        ),
        (
            "outbox: {enabled: 1}",
            "setting 'outbox.enabled' is 1: expected true or false, got a whole number",
        ),
        (
            "relay: {floor_interval: 0}",
            "setting 'relay.floor_interval' is 0: expected a number > 0.0",
        ),
        (
            "relay: {floor_interval: .nan}",
            "setting 'relay.floor_interval' is nan: expected a number > 0.0",
        ),
        (
            "relay: {floor_interval: .inf}",
            "setting 'relay.floor_interval' is inf: expected a number <= 31536000.0",
        ),
        (
            "relay: {name: A b}",
            "setting 'relay.name' is 'A b': expected 1 to 60 lower case letters, digits and under",
        ),
        (
            'relay: {name: "a\\n"}',
            r"setting 'relay.name' is 'a\n': expected 1 to 60 lower case letters",
        ),
        (
            "worker: {group: ''}",
            "setting 'worker.group' is '': expected 1 to 150 letters, digits, dots, underscores",
        ),
        (
            "broker: {topic_prefix: a b}",
            "setting 'broker.topic_prefix' is 'a b': expected at most 100 letters, digits",
        ),
        ("1: 2", "setting '1' is a key of type int: expected text"),
        ("relay: {1: 2}", "setting 'relay.1' is a key of type int: expected text"),
        (
            "web: {access: users}",
            "setting 'web.users' is not set: expected one, because web.access is users",
        ),
        (
            "web: {access: users, users: {a: {password: x}}}",
            "setting 'web.users.a.password' is ***: expected a line that",
        ),
        (
            "web: {users: {a.b: {passwort: x}}}",
            "unknown setting 'web.users.a.b.passwort': expected one of password, role",
        ),
        (
            "web: {tokens: {a: hunter2}}",
            "setting 'web.tokens.a' is ***: expected a section of keys, got text",
        ),
        (
            "web: {access: proxy}",
            "setting 'web.trusted_proxies' is not set: expected one, because web.access is proxy",
        ),
        (
            "web: {trusted_proxies: [x]}",
            "setting 'web.trusted_proxies' names 'x': expected an address or a network like",
        ),
        ("web: {secret: short}", "setting 'web.secret' is ***: expected "),
        (
            "web: {hosts: ['a:1']}",
            "setting 'web.hosts' names 'a:1': expected host names without scheme and port",
        ),
        (
            "web: {origins: [ops.example]}",
            "setting 'web.origins' names 'ops.example': expected scheme://host[:port]",
        ),
        ("web: {probe: '6080'}", "setting 'web.probe' is '6080': expected host:port"),
        (
            "web: {acts_url: 'mysql://a:hunter2@h'}",
            "setting 'web.acts_url' is 'mysql://a:***@h': expected postgresql://",
        ),
        ("web: {host: 0.0.0.0}", "setting 'web.host' is '0.0.0.0': expected a loopback address"),
        (
            "worker: {lock_timeout: 40}",
            "setting 'worker.lock_timeout' is 40.0: expected less than worker.handler_ti",
        ),
        (
            "outbox: {archive: parts}",
            "setting 'outbox.archive' is 'parts': expected a folder from the root on, or a URL",
        ),
        (
            "relay: {wal_limit: 5}",
            "setting 'relay.wal_limit' is 5: expected at least relay.wal_warn (1000000000)",
        ),
        (
            "relay: {shards: 2}",
            "setting 'relay.shards' is 2: expected 1 unless relay.mode (auto) is poll",
        ),
        ("relay: {mode: poll, shards: 65}", "setting 'relay.shards' is 65: expected"),
        (
            "relay: {mode: cdc, notify: true}",
            "setting 'relay.notify' is True: expected False unless relay.mode (cdc)",
        ),
        ("broker: {url: kafka}", "setting 'broker.url' is 'kafka': expected host:port[,host:port]"),
        (
            "broker: {url: 'a:1,b:x'}",
            "setting 'broker.url' is 'a:1,b:x': expected host:port[,host:port]",
        ),
        ("broker: {url: 'a:0'}", "setting 'broker.url' is 'a:0': expected host:port[,host:port]"),
        (
            "database: {url: 'mysql://h/d'}",
            "setting 'database.url' is 'mysql://h/d': expected postgresql://user@host",
        ),
        (
            "database: {url: 'postgresql://h:x/d'}",
            "setting 'database.url' is 'postgresql://h:x/d': expected postgres",
        ),
        (
            "database: {url: 'postgresql://[::1/d'}",
            "setting 'database.url' is 'postgresql://[::1/d': expected postgr",
        ),
        (
            "broker: {security_protocol: SASL_SSL}",
            (
                "setting 'broker.sasl_mechanism' is None: expected one exactly when"
                " broker.security_protocol (SASL_SSL)"
            ),
        ),
        (
            "broker: {security_protocol: SASL_SSL, sasl_mechanism: PLAIN, sasl_username: me}",
            "setting 'broker.sasl_password' is None: expected one exactly when",
        ),
        (
            "broker: {sasl_username: me}",
            (
                "setting 'broker.sasl_username' is '***': expected one exactly when"
                " broker.security_protocol (PLAINTEXT)"
            ),
        ),
        (
            "broker: {ssl_cafile: ca.pem}",
            "setting 'broker.ssl_cafile' is 'ca.pem': expected none unless",
        ),
        (
            "broker: {security_protocol: SSL, ssl_cafile: ca.pem}",
            (
                "setting 'broker.ssl_cafile' is 'ca.pem': expected a file of certificates (PEM):"
                " No such file"
            ),
        ),
        (
            "broker: {security_protocol: SSL, ssl_cafile: faust.yml}",
            (
                "setting 'broker.ssl_cafile' is 'faust.yml': expected a file of certificates (PEM):"
                " [X509"
            ),
        ),
        (
            "database: {url: 'postgresql://h:1,i:x/d'}",
            "setting 'database.url' is 'postgresql://h:1,i:x/d': expected",
        ),
        (
            "database: {url: 'postgresql://h:0/d'}",
            "setting 'database.url' is 'postgresql://h:0/d': expected",
        ),
        (
            "database: {url: 'postgresql://h:65536/d'}",
            "setting 'database.url' is 'postgresql://h:65536/d': expected",
        ),
    ],
)
def test_a_refusal_names_key_value_and_expectation(text: str, message: str) -> None:
    assert refused(text).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///d",
        "postgresql://h:/d",
        "postgresql://u:p@[::1]:5432/d",
        "postgresql://one,two/d",
        "postgresql://u@one:5433,two:5434,[::1]:1/d?target_session_attrs=any",
        "postgres://%2Ftmp/d",
    ],
)
def test_addresses_that_libpq_knows_are_taken(url: str, folder: Path) -> None:
    (folder / "faust.yml").write_text(f"database: {{url: '{url}'}}")
    assert load(environ={}).database_url == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- relay", "faust.yml is a list: expected sections (database:, broker:, ...)"),
        ("relay: [", "faust.yml line 1 is not YAML: "),
        ("a: 1\nb: @x", "faust.yml line 2 is not YAML: found character '@'"),
        ("a: 2026-13-45", "faust.yml is not YAML: month must be in 1..12"),
        ("a: \x00", "faust.yml is not YAML: "),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_a_file_that_is_not_utf_8_is_refused(folder: Path) -> None:
    (folder / "faust.yml").write_bytes(b"relay: {name: \xff}")
    with pytest.raises(SettingsInvalid, match=r"faust\.yml cannot be read: .*utf-8"):
        load(environ={})


def test_a_file_that_was_named_must_exist(folder: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"settings file /nowhere/f\.yml does not exist"):
        load(environ={"STREAMS_CONFIG": "/nowhere/f.yml"})
    with pytest.raises(SettingsInvalid, match="does not exist"):
        load(folder / "other.yml", {})


def test_the_file_that_was_named_counts(folder: Path) -> None:
    (folder / "other.yml").write_text("relay: {name: other}", encoding="utf-8")
    (folder / "faust.yml").write_text("relay: {name: here}", encoding="utf-8")
    assert load(environ={"STREAMS_CONFIG": "other.yml"}).relay.name == "other"
    assert load(environ={"STREAMS_CONFIG": ""}).relay.name == "here"


def test_the_environment_wins_over_the_file() -> None:
    settings = read(
        "relay: {mode: cdc, name: kept}\nagents: [a]",
        STREAMS_RELAY__MODE="poll",
        STREAMS_OUTBOX__ENABLED="off",
        STREAMS_OUTBOX__MAX_BYTES="10",
        STREAMS_AGENTS="[b, c]",
        STREAMS_TOPICS="{chat-history: {partitions: 3}}",
        OTHER_THING="ignored",
    )
    assert (settings.relay.mode, settings.relay.name) == ("poll", "kept")
    assert (settings.outbox.enabled, settings.outbox.max_bytes) == (False, 10)
    assert settings.agents == ("b", "c")
    assert settings.topics["chat-history"].partitions == 3


def test_our_own_variables_win_over_the_generic_ones_and_those_over_the_file() -> None:
    text = "database: {url: 'postgresql://file/d'}\nbroker: {url: 'file:1'}"
    generic = {"DATABASE_URL": "postgresql://url/d", "BROKER_URL": "kafka://url:1"}
    settings = read(text, **generic)
    assert (settings.database_url, settings.broker_url) == ("postgresql://url/d", "url:1")
    settings = read(
        text, **generic, STREAMS_DATABASE__URL="postgresql://key/d", STREAMS_BROKER__URL="key:1"
    )
    assert (settings.database_url, settings.broker_url) == ("postgresql://key/d", "key:1")
    assert read(text, STREAMS_BROKER__URL="key:1", BROKER_URL="").broker_url == "key:1"


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("postgresql+psycopg://u:p@h:1/d", "postgresql://u:p@h:1/d"),
        ("postgresql+psycopg2://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
        (
            "postgresql+asyncpg://u@h/d?ssl=true&prepared_statement_cache_size=0&connect_timeout=3",
            "postgresql://u@h/d?sslmode=require&connect_timeout=3",
        ),
        ("postgresql+asyncpg://u@h/d?prepared_statement_cache_size=0", "postgresql://u@h/d"),
        ("postgis://u@h/d", "postgresql://u@h/d"),
        ("pgsql://h/d", "postgresql://h/d"),
    ],
)
def test_the_url_of_another_tool_for_postgresql_is_understood(url: str, plain: str) -> None:
    assert read(DATABASE_URL=url).database_url == plain
    assert read(f"database: {{url: '{url}'}}").database_url == plain


@pytest.mark.parametrize(
    ("broker", "scheme"),
    [
        ("redis://:hunter2@cache:6379/0", "redis"),
        ("amqp://guest:hunter2@rabbit//", "amqp"),
        ("redis+socket:///run/redis.sock", "redis"),
        ("sentinel://a:1;sentinel://b:1", "sentinel"),
    ],
)
def test_an_address_of_another_system_is_not_ours_and_is_named_where_one_is_missing(
    broker: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's Celery has a BROKER_URL too, and its other database a DATABASE_URL."""
    foreign = {"BROKER_URL": broker, "DATABASE_URL": "mysql://u:hunter2@h/d"}
    settings = read(
        "broker: {url: 'file:1'}", **foreign, STREAMS_DATABASE__URL="postgresql://ours/d"
    )
    assert (settings.broker_url, settings.database_url) == ("file:1", "postgresql://ours/d")
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    Path("faust.yml").unlink()
    settings = load()
    with pytest.raises(SettingsInvalid) as caught:
        _ = settings.broker_url
    assert (
        f"(BROKER_URL is {scheme}://..., which is not Kafka's: STREAMS_BROKER__URL is ours alone)"
        in str(caught.value)
    )
    assert SECRET not in str(caught.value)
    with pytest.raises(
        SettingsInvalid, match=r"\(DATABASE_URL is mysql://\.\.\., which is not PostgreSQL's"
    ):
        _ = settings.database_url


def test_variables_of_kubernetes_for_services_called_like_us_are_left_alone() -> None:
    links = {
        "STREAMS_SERVICE_HOST": "10.0.0.1",
        "STREAMS_SERVICE_PORT": "80",
        "STREAMS_SERVICE_PORT_HTTP": "80",
        "STREAMS_PORT": "tcp://10.0.0.1:80",
        "STREAMS_PORT_80_TCP": "tcp://10.0.0.1:80",
        "STREAMS_PORT_80_TCP_PROTO": "tcp",
        "STREAMS_PORT_80_TCP_PORT": "80",
        "STREAMS_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    for service in ("STREAMS", "STREAMS_RELAY", "STREAMS_WORKER_CHAT", "STREAMS_WEB", "STREAMS_2"):
        assert (
            read(**{name.replace("STREAMS", service, 1): value for name, value in links.items()})
            == Settings()
        )
    assert refused(STREAMS_PORTS="1").startswith("STREAMS_PORTS: unknown setting")
    assert read(STREAMS_WEB__PORT="7000").web.port == 7000
    # A number alone is nobody's link: somebody meant the setting, with one underscore too few.
    assert "expected two underscores: STREAMS_WEB__PORT" in refused(STREAMS_WEB_PORT="7000")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_is_as_if_it_was_not_there(empty: str) -> None:
    """As compose files and charts pass what nobody has set."""
    names = (
        "STREAMS_WORKER__TRANSACTIONS", "STREAMS_AGENTS", "STREAMS_RELAY__MODE",
        "STREAMS_OUTBOX__ENABLED",
        "STREAMS_BROKER__SASL_USERNAME", "STREAMS_BROKER__TOPIC_PREFIX", "STREAMS_TOPICS",
        "STREAMS_RELAY", "STREAMS_CONFIG",
        "STREAMS_RELAY__WAL_LIMIT", "DATABASE_URL", "BROKER_URL",
    )  # fmt: skip
    text = (
        "relay: {mode: poll}\nagents: [mine]\nbroker: {topic_prefix: t., url: 'k:1'}\nworker:"
        " {transactions: 2}"
    )
    assert read(text, **dict.fromkeys(names, empty)) == read(text)


@pytest.mark.parametrize("text", ["12345", "{abc", "@abc", "a: b #c", "off", " x "])
def test_text_from_the_environment_is_taken_as_it_is(text: str) -> None:
    settings = read(
        "broker: {security_protocol: SASL_SSL, sasl_mechanism: PLAIN, sasl_username: me}",
        STREAMS_BROKER__SASL_PASSWORD=text,
    )
    assert settings.broker.sasl_password == text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "STREAMS_RELAY__MODE",
            "off",
            "setting 'relay.mode' is 'off': expected one of auto, cdc, debezium, poll",
        ),
        ("STREAMS_RELAY__MOD", "cdc", "unknown setting 'relay.mod': expected one of name, mode"),
        (
            "STREAMS_FOO__BAR",
            "1",
            "STREAMS_FOO__BAR: unknown setting 'foo': expected one of database",
        ),
        (
            "STREAMS_LOG_LEVEL",
            "debug",
            "STREAMS_LOG_LEVEL: expected two underscores: STREAMS_LOG__LEVEL",
        ),
        (
            "STREAMS_OUTBOX_MAX_BYTES",
            "5",
            "STREAMS_OUTBOX_MAX_BYTES: expected two underscores: STREAMS_OUTBOX__MAX_BYTES",
        ),
        (
            "STREAMS_RELAY",
            "5",
            "setting 'relay' is 5: expected a section of keys, got a whole number",
        ),
        ("STREAMS_AGENTS", "a, b", "setting 'agents' is 'a, b': expected a list, got text"),
        (
            "STREAMS_OUTBOX__MAX_BYTES",
            "ten",
            "setting 'outbox.max_bytes' is 'ten': expected a whole number, got text",
        ),
        (
            "STREAMS_OUTBOX__MAX_BYTES",
            "{",
            "STREAMS_OUTBOX__MAX_BYTES is '{': expected a YAML value",
        ),
        (
            "STREAMS_AGENTS__X",
            "1",
            "STREAMS_AGENTS__X: 'agents' is a list: expected a section of keys",
        ),
    ],
)
def test_a_refused_variable_names_key_value_and_expectation(
    name: str, value: str, message: str
) -> None:
    assert refused("agents: [a]" if name.endswith("__X") else "", **{name: value}).startswith(
        message
    )


def test_no_database_and_no_broker_say_what_to_set() -> None:
    with pytest.raises(
        SettingsInvalid, match=r"no database: set DATABASE_URL or database.url in faust.yml, or run"
    ):
        _ = Settings().database_url
    with pytest.raises(
        SettingsInvalid, match=r"no broker: set BROKER_URL or broker.url in faust.yml, or run"
    ):
        _ = Settings().broker_url


def note(folder: Path, **values: object) -> None:
    (folder / ".dev").mkdir(exist_ok=True)
    (folder / ".dev" / "services.json").write_bytes(orjson.dumps(values))


def test_dev_services_that_run_here_are_used(folder: Path) -> None:
    note(folder, pid=os.getpid(), database_url="postgresql://dev/d", broker_url="dev:1")
    settings = load(environ={})
    assert (settings.database_url, settings.broker_url) == ("postgresql://dev/d", "dev:1")
    assert load(environ={"BROKER_URL": "mine:1"}).broker_url == "mine:1"
    assert read("database: {url: 'postgresql://mine/d'}").database_url == "postgresql://mine/d"


def test_dev_services_of_a_dead_supervisor_are_not_used(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    note(folder, pid=dead.pid, database_url="postgresql://dev/d", broker_url="dev:1")
    assert load(environ={}) == Settings()


@pytest.mark.parametrize(
    "values", [{}, {"pid": "x"}, {"pid": 10**18}, {"pid": 0}, {"pid": -1}, {"pid": None}]
)
def test_a_broken_note_is_no_note(folder: Path, values: dict[str, object]) -> None:
    note(folder, database_url="postgresql://dev/d", **values)
    assert load(environ={}) == Settings()
    (folder / ".dev" / "services.json").write_bytes(b"[1")
    assert load(environ={}) == Settings()


def test_a_note_without_urls_names_none(folder: Path) -> None:
    note(folder, pid=os.getpid())
    assert load(environ={}) == Settings()


def test_secrets_are_in_no_text_of_the_settings() -> None:
    settings = read(
        "broker: {security_protocol: SASL_SSL, sasl_mechanism: PLAIN, sasl_username: me, url:"
        " 'kafka:1'}",
        DATABASE_URL=f"postgresql://me:{SECRET}@db:5432/app?password={SECRET}",
        STREAMS_BROKER__SASL_PASSWORD=SECRET,
    )
    for text in (
        str(settings),
        repr(settings),
        repr(settings.broker),
        repr(settings.database),
        f"{settings}",
        str(public(settings)),
    ):
        assert SECRET not in text
        assert "kafka:1" in text or "postgresql://me:***@db:5432/app?***" in text
    assert public(settings)["broker"]["sasl_password"] == "***"
    assert settings.broker.sasl_password == SECRET


@pytest.mark.parametrize(
    "environ",
    [
        {"STREAMS_DATABASE__URL": f"mysql://me:{SECRET}@db/app"},
        {"DATABASE_URL": f"postgresql://me:x/{SECRET}@db/app"},
        {"DATABASE_URL": f"postgresql://me:x?{SECRET}#@db:x/app"},
        {"DATABASE_URL": f"host=db password={SECRET}"},
        {"BROKER_URL": f"me:{SECRET}@kafka:9092,x"},
        {"BROKER_URL": f"kafka://me:{SECRET}@kafka:9092"},
        {"STREAMS_DATABASE": f"postgresql://me:{SECRET}@db/app"},
        {"STREAMS_DATABASE": f"[{SECRET}"},
        {"STREAMS_BROKER": f"['{SECRET}']"},
        {"STREAMS_BROKER__SASL_PASSWORD": SECRET},
        {"STREAMS_BROKER": f"{{sasl_password: [{SECRET}]}}"},
        {"STREAMS_BROKER": f"{{sasl_pasword: {SECRET}}}"},
    ],
)
def test_secrets_are_in_no_refusal(environ: dict[str, str]) -> None:
    assert SECRET not in refused(**environ)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:p@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:p@q:r/s@h/d?x=y", "postgresql://u:***@h/d?***"),
        ("postgresql:///d", "postgresql:///d"),
        ("a:1,[::1]:2", "a:1,[::1]:2"),
        ("host=h password=p", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_a_topic_has_its_own_settings_under_its_name_without_prefix() -> None:
    settings = read(
        "broker: {topic_prefix: test.}\ntopic: {partitions: 2}\ntopics: {chat-history: {partitions:"
        " 5}}"
    )
    assert settings.topic_settings("test.chat-history").partitions == 5
    assert settings.topic_settings("test.other").partitions == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "topic: {format: envelope}",
            "setting 'topic.format' is 'envelope': expected 'outbox', an envelope topic is named",
        ),
        (
            "topic: {source: s}",
            "setting 'topic.source' is 's': expected none unless topic.format is envelope",
        ),
        (
            "topics: {a: {source: s}}",
            "setting 'topics.a.source' is 's': expected none unless topics.a.format is envelope",
        ),
        (
            "topics: {a: {format: envelope, source: 'a:b'}}",
            "setting 'topics.a.source' is 'a:b': expected 1 to 249 letters",
        ),
    ],
)
def test_a_format_that_cannot_be_is_refused(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_secrets_of_the_pages_never_print() -> None:
    line = f"scrypt:15:8:3:{'1' * 32}:{'2' * 64}"
    text = f"""
web:
  access: users
  secret: {SECRET * 5}
  proxy_secret: {SECRET * 5}
  users: {{amy: {{password: "{line}"}}}}
  tokens: {{grafana: {{sha256: "{"3" * 64}"}}}}
  database_url: postgresql://u:{SECRET}@h/d
"""
    settings = read(text)
    for shown in (repr(settings), str(public(settings))):
        for secret in (SECRET, "1" * 32, "2" * 64, "3" * 64):
            assert secret not in shown
        assert "postgresql://u:***@h/d" in shown
    said = refused(text, STREAMS_WEB__USERS="{amy: [" + SECRET)
    assert SECRET not in said


def test_a_deployment_reads_its_settings_once_and_again_when_something_has_changed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "faust.yml"
    file.write_text("relay: {name: one}\n")
    deployment = Deployment({"STREAMS_CONFIG": str(file)}, tmp_path)
    assert deployment.settings is deployment.settings
    assert deployment.settings.relay.name == "one"
    file.write_text("relay: {name: two}\n")
    assert deployment.settings.relay.name == "two"
    deployment.environ["STREAMS_RELAY__NAME"] = "three"
    assert deployment.settings.relay.name == "three"
