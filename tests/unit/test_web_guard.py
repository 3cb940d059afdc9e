"""Which requests the pages let in at all: Host, origin, parameters."""

from __future__ import annotations

import pytest

from streams.web.guard import check_host, check_origin, check_parameters, guarded, is_forwarded
from streams.web.messages import Refusal, Request, Response


def request(*headers: tuple[str, str], method: str = "POST", scheme: str = "http") -> Request:
    return Request(method, "/", headers=headers, scheme=scheme)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:6066",
        "[::1]:6066",
        "10.1.2.3",
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "outbox.example:443",
    ],
)
def test_a_host_that_cannot_be_rebound_or_is_named_is_let_in(host: str) -> None:
    # As somebody wrote it in the settings.
    for known in ("outbox.example", "Outbox.Example."):
        check_host(request(("host", host)), [known])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("2130706433", 421),
        ("a@127.0.0.1", 400),
        ("127.0.0.1/x", 400),
        ("127.0.0.1:x", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_every_other_host_is_refused(host: str, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        check_host(request(("host", host)), ["outbox.example"])
    assert refused.value.status == status
    assert "Host is" in refused.value.line


def test_two_hosts_are_none() -> None:
    with pytest.raises(Refusal, match="expected one host name"):
        check_host(request(("host", "localhost"), ("host", "localhost")), [])


HOST = ("host", "127.0.0.1:6066")


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:6066")],
        [("origin", "http://127.0.0.1:6066")],
        [("origin", "https://ours.example")],
        [("origin", "https://ours.example"), ("sec-fetch-site", "cross-site")],
    ],
)
def test_a_form_of_our_own_is_taken(headers: list[tuple[str, str]]) -> None:
    for known in ("https://ours.example", "https://Ours.Example/"):
        check_origin(request(HOST, *headers), [known], bearer=False)


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "none")],
        # A browser that says cross-site is believed, whatever Origin says.
        [("sec-fetch-site", "cross-site"), ("origin", "http://127.0.0.1:6066")],
        [("origin", "null")],
        [("origin", "http://evil.example")],
        [("origin", "http://127.0.0.1:6067")],
        [("origin", "https://127.0.0.1:6066")],
        [("origin", "http://127.0.0.1:6066"), ("origin", "http://evil.example")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [],
    ],
)
@pytest.mark.parametrize("bearer", [False, True])
def test_a_forged_form_is_refused(headers: list[tuple[str, str]], bearer: bool) -> None:
    if bearer and not headers:
        check_origin(request(HOST), [], bearer=True)  # a program with a token sends neither
        return
    with pytest.raises(Refusal) as refused:
        check_origin(request(HOST, *headers), ["https://ours.example"], bearer=bearer)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x" * 1025, "'key' has 1,025 bytes: expected at most 1,024"),
        ("é" * 513, "'key' has 1,026 bytes"),
        ("a\0b", "'key' holds a NUL character"),
        ("\ud800", "'key' is not UTF-8"),
    ],
)
def test_a_parameter_that_no_key_can_be_is_refused(value: str, line: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_parameters({"key": value})
    assert refused.value.status == 400
    assert refused.value.line.startswith(line)


def test_a_field_with_its_own_limit_may_be_longer() -> None:
    check_parameters({"payload": "x" * 5000, "key": "x" * 1024}, long={"payload"})


def test_a_request_that_a_proxy_passed_on_is_known() -> None:
    for name in ("forwarded", "x-forwarded-for", "x-forwarded-prefix", "x-real-ip"):
        assert is_forwarded(request((name, "")))
    assert not is_forwarded(request(HOST))


def test_every_response_carries_the_headers_and_keeps_its_own() -> None:
    headers = guarded(Response(404, b"", {"Cache-Control": "max-age=1"})).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "max-age=1"


def test_bytes_that_are_not_utf_8_are_refused_and_not_replaced() -> None:
    """In a query and in a form: what is replaced would be acted on."""
    form = (("content-type", "application/x-www-form-urlencoded"),)
    posted = Request("POST", "/", headers=form, body=b"payload=M%FCller")
    for given in (posted.form, Request("GET", "/", "key=%ff").parameters):
        with pytest.raises(Refusal, match="is not UTF-8"):
            check_parameters(given)
