"""The pages in a real browser, against a real deployment."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import BIZ_TYPE, KEY, PASSWORD, PICTURED, TURNED, Stack, until
from tests.fixtures.scene import BIDI, CANARY

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SERIOUS = ("serious", "critical")
PATHS = (
    "",
    "dead/",
    "conversations/",
    "messages/",
    "workers/",
    "proof/",
    "acts/",
    "search?q=1",
    "CAUSE",
    "HELD",
)
LOOKS = ("", "dead/", "workers/")


def addresses(stack: Stack) -> list[str]:
    """Every page, with a cause and a conversation that there are."""
    [(cause,)] = stack.query(
        "SELECT fingerprint FROM outbox_dead_letters WHERE key = %(key)s LIMIT 1", key=KEY
    )
    [(topic,)] = stack.query("SELECT topic FROM outbox_dead_letters LIMIT 1")
    [(dead,)] = stack.query("SELECT min(outbox_id) FROM outbox_dead_letters")
    odd = f"conversation?topic={topic}&key={quote(KEY)}"
    return [*PATHS[:8], f"dead/{cause}", odd, f"messages/{dead}", "messages/999999"]


def test_no_page_has_a_serious_violation_scrolls_sideways_or_runs_what_others_wrote(
    stack: Stack, browser: Browser
) -> None:
    axe = Axe()
    for scheme, width in (("light", 1440), ("dark", 1440), ("light", 390)):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        # Colours move nothing.
        for path in LOOKS if scheme == "dark" else addresses(stack):
            page.goto(stack.pages + path)
            # Every page in one look, three of them in each.
            if (scheme, width) == ("light", 1440) or path in LOOKS:
                wrong = [
                    f"{each['id']}: {each['nodes'][0]['html'][:120]}"
                    f" {each['nodes'][0]['failureSummary'][:200]}"
                    for each in axe.run(page).response["violations"]
                    if each["impact"] in SERIOUS
                ]
                assert wrong == [], (scheme, width, path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (
                scheme,
                width,
                path,
            )
            assert "canary" not in page.title(), path
            seen = page.content()
            assert "canary-text" not in seen and BIDI not in seen and BIZ_TYPE not in seen, path
        context.close()


@contextmanager
def another_origin(form: str) -> Iterator[str]:
    """A page of somebody else's that sends us a form as soon as it is opened."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(form.encode())

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_forged_form_of_another_origin_is_refused(stack: Stack, browser: Browser) -> None:
    [(dead,)] = stack.query("SELECT max(outbox_id) FROM outbox_dead_letters")
    acts = stack.query("SELECT count(*) FROM outbox_actions")
    form = (
        f'<form method="post" action="{stack.pages}messages/{dead}/replay"><input name="why"'
        ' value="x"></form>'
        '<iframe name="f"></iframe>'
    )
    with another_origin(form) as elsewhere:
        for host in ("127.0.0.1", "localhost"):
            page = browser.new_page()
            page.goto(elsewhere.replace("127.0.0.1", host))
            with page.expect_navigation():
                page.evaluate("document.forms[0].submit()")
            expect(page.get_by_role("alert")).to_contain_text("another origin: nothing was done")
            # Nor can the pages be put into a frame, or be read from there.
            page.goto(elsewhere.replace("127.0.0.1", host))
            said = page.evaluate(
                f"fetch('{stack.pages}api/overview').then(() => 'read', () => 'refused')"
            )
            assert said == "refused"
            page.close()
    assert stack.query("SELECT count(*) FROM outbox_actions") == acts


def test_a_dead_message_appears_by_itself_and_what_somebody_holds_stays(
    stack: Stack, page: Page
) -> None:
    page.goto(f"{stack.pages}dead/")
    renewed: list[str] = []  # when what the page was given was looked at
    page.on("response", lambda answer: renewed.append(answer.headers.get("x-figures-at", "")))
    rows = page.locator("#p-causes tbody tr")
    before = rows.count()
    # Somebody has focused a link, and opened the keys.
    first = rows.first.get_by_role("link")
    first.focus()
    focused = first.get_attribute("href")
    topic = stack.query("SELECT topic FROM outbox_dead_letters LIMIT 1")[0][0]
    stack.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " VALUES ('chat_history_persist', %(topic)s, 'new', '[]')",
        topic=topic,
    )
    expect(rows).to_have_count(before + 1, timeout=30_000)
    # It asks every two seconds, and shows at once what it is given. However busy relay, worker and
    # browser are: that is the third answer since then at the latest, as the first may be from
    # before the death was committed.
    [(died,)] = stack.query("SELECT max(died_at) FROM outbox_dead_letters")
    assert 1 <= sum(bool(at) and datetime.fromisoformat(at) > died for at in renewed) <= 3
    assert page.evaluate("document.activeElement.getAttribute('href')") == focused
    # By keyboard: to the next row, and into it.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    expect(page.locator("tr.here")).to_have_count(1)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/dead/[0-9a-f]{8}$"))
    page.keyboard.press("g")
    page.keyboard.press("w")
    page.wait_for_url(re.compile("/workers/$"))
    page.keyboard.press("/")
    page.keyboard.type("chat-3")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/(search|conversation)"))


@pytest.mark.parametrize(
    "script", [pytest.param(True, marks=pytest.mark.long), False], ids=["script", "no script"]
)
def test_try_one_fails_again_and_a_bulk_replay_stops_by_itself(
    stack: Stack, browser: Browser, script: bool
) -> None:
    context = browser.new_context(
        java_script_enabled=script, viewport={"width": 1440, "height": 900}
    )
    page = context.new_page()
    key = TURNED if script else KEY
    [(cause, held)] = stack.query(
        "SELECT fingerprint, count(*) FROM outbox_dead_letters WHERE fingerprint ="
        " (SELECT fingerprint FROM outbox_dead_letters WHERE key = %(key)s LIMIT 1) GROUP BY 1",
        key=key,
    )

    def stopped() -> None:
        """Every message of a step has failed again; without script nothing renews itself."""
        until(lambda: script or (page.reload() and "failed again" in page.content()), 30)
        said = re.compile(r"(\d+) of \1 messages of this step failed again")
        expect(page.locator("#p-operation")).to_contain_text(said, timeout=30_000)

    page.goto(f"{stack.pages}dead/{cause}")
    page.get_by_label("why").fill("mended?")
    if script:
        # By keyboard alone: out of the field, and r.
        page.keyboard.press("Escape")
        page.keyboard.press("r")
    else:
        page.get_by_role("button", name="Try one").click()
    page.wait_for_url(re.compile(r"/operations/\d+$"))
    stopped()
    page.goto(f"{stack.pages}dead/{cause}")
    page.get_by_label("why").fill("mended!")
    page.get_by_role("button", name="Replay all").click()
    expect(page.locator("#p-operation")).to_contain_text(
        f"exactly these {held} messages will be sent again"
    )
    with page.expect_navigation():  # or the first reload meets a page that is on its way
        page.get_by_role("button", name=f"Replay {held} messages").click()
    stopped()
    expect(page.locator("#p-items tbody tr")).to_have_count(held)
    assert (
        stack.query("SELECT count(*) FROM outbox_operation_items WHERE outcome = 'failed'")[0][0]
        >= 2
    )
    context.close()


def test_mended_and_replayed_a_cause_is_consumed_in_order(stack: Stack, page: Page) -> None:
    stack.query(
        "ALTER TABLE chat_histories ADD CONSTRAINT no_robots CHECK (role <> 'system') NOT VALID"
    )
    stack.query(
        "SELECT outbox_enqueue('chat_history_persist', 'robots-' || n %% 3, json_build_object("
        "'user_id', 7, 'conversation_id', 'robots-' || n %% 3, 'role', 'system', 'message', 'hi'))"
        " FROM generate_series(1, %(count)s) AS n",
        count=12,
    )
    page.goto(f"{stack.pages}dead/?error_code=23514")
    rows = page.locator("#p-rows tbody tr")
    expect(rows).to_have_count(12, timeout=30_000)
    stack.query("ALTER TABLE chat_histories DROP CONSTRAINT no_robots")
    [(cause,)] = stack.query(
        "SELECT DISTINCT fingerprint FROM outbox_dead_letters WHERE error_code = '23514'"
    )
    page.goto(f"{stack.pages}dead/{cause}")
    page.get_by_label("why").fill("robots are let in")
    page.get_by_role("button", name="Replay all").click()
    page.get_by_role("button", name="Replay 12 messages").click()
    expect(page.locator("#p-operation")).to_contain_text("12 of 12 sent again", timeout=30_000)
    expect(page.locator("#p-items .state").filter(has_text="done")).to_have_count(
        12, timeout=30_000
    )
    orders = stack.query(
        "SELECT array_agg(o.id ORDER BY s.applied) = array_agg(o.id ORDER BY o.id), count(*)"
        " FROM outbox_state AS s JOIN outbox AS o ON o.id = s.outbox_id"
        " WHERE o.key LIKE 'robots-%' AND s.status = 'consumed' GROUP BY o.key"
    )
    assert orders == [(True, 4)] * 3


def test_an_audit_is_started_from_its_page_and_what_it_found_appears(
    stack: Stack, page: Page
) -> None:
    page.goto(f"{stack.pages}proof/")
    page.get_by_label("why").fill("before the release")
    page.get_by_role("button", name="Audit now").click()
    expect(page.locator("#p-asked")).to_contain_text("asked for an audit of what is new")
    expect(page.locator("#p-asked .state")).to_have_text("done", timeout=60_000)
    expect(page.locator("#p-audits tbody tr")).not_to_have_count(0)
    assert stack.query("SELECT why FROM outbox_actions WHERE act = 'audit'") == [
        ("before the release",)
    ]


@pytest.mark.long
def test_a_worker_that_falls_silent_is_shown_so_and_then_gone(stack: Stack, page: Page) -> None:
    page.goto(f"{stack.pages}workers/")
    worker = stack.deployment.worker()
    pid = worker.pid
    row = page.locator("#p-processes tbody tr").filter(has_text=f":{pid}")
    # Alive, and with partitions of its own.
    expect(row.locator(".state").first).to_have_text("alive", timeout=30_000)
    expect(row.locator("td b")).not_to_have_count(0, timeout=60_000)
    worker.kill()
    killed = time.monotonic()
    expect(row.locator(".state").first).to_have_text("silent", timeout=15_000)
    # Ten seconds without a heartbeat, a page that asks every two; the rest is for busy machines.
    assert time.monotonic() - killed < 15
    # A minute later, which is not waited for: gone, and in what happened in the last hour.
    stack.query(
        "UPDATE outbox_processes SET heartbeat = heartbeat - interval '1 min' WHERE pid = %(pid)s",
        pid=pid,
    )
    expect(row).to_have_count(0, timeout=10_000)
    past = page.locator("#p-past li").filter(has_text=f":{pid}")
    expect(past).to_contain_text("gone without saying goodbye")
    # What it had is somebody else's once the group has noticed.
    partitions = page.locator("#p-partitions")
    expect(partitions.get_by_text("nobody")).to_have_count(0, timeout=60_000)
    expect(partitions).not_to_contain_text(f":{pid}")


@pytest.mark.parametrize("host", ["aiohttp", "fastapi"])
def test_an_application_that_mounts_the_pages_shows_them(
    mounted: dict[str, str], page: Page, host: str
) -> None:
    # What is shown renews itself, at addresses below whatever prefix there is.
    with page.expect_response(lambda answer: "part=live" in answer.url) as renewed:
        page.goto(mounted[host])
    assert renewed.value.url.startswith(mounted[host])
    assert page.evaluate("getComputedStyle(document.body).margin") == "0px"
    page.get_by_role("link", name=re.compile("Dead letters")).first.click()
    page.wait_for_url(f"{mounted[host]}dead/")
    expect(page.locator("#p-causes tbody tr")).not_to_have_count(0)


@pytest.mark.parametrize(
    "script", [True, pytest.param(False, marks=pytest.mark.long)], ids=["script", "no script"]
)
def test_log_in_look_and_act(stack: Stack, browser: Browser, script: bool) -> None:
    context = browser.new_context(
        java_script_enabled=script, viewport={"width": 1440, "height": 900}
    )
    page = context.new_page()
    dead = stack.query(
        "SELECT outbox_id FROM outbox_dead_letters WHERE key = 'chat-3' ORDER BY outbox_id"
    )[0][0]
    page.goto(f"{stack.login}messages/{dead}")
    page.get_by_label("Name").fill("amy")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("the name or the password is wrong")
    page.get_by_label("Name").fill("amy")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    # Back where she wanted to go.
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Message {dead} dead")
    expect(page.locator(".env")).to_have_text("staging")
    cookie = context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/outbox")
    # An operator may replay, but neither discard nor see the text.
    expect(page.get_by_role("button", name="Discard it for good")).to_have_count(0)
    expect(page.get_by_role("button", name="Show what it says")).to_have_count(0)
    page.get_by_label("why").fill(CANARY)
    page.get_by_role("button", name="Replay it").click()
    # Where she is led is where she was: that the act is done is seen where it is written down.
    done = "SELECT who, why FROM outbox_actions ORDER BY id DESC LIMIT 1"
    until(lambda: stack.query(done) == [("amy", CANARY)], 30)
    page.wait_for_url(f"{stack.login}messages/{dead}")
    # It fails again, and the page says so.
    until(
        lambda: (
            stack.query("SELECT status FROM outbox_state WHERE outbox_id = %(id)s", id=dead)
            == [("dead",)]
        ),
        30,
    )
    until(lambda: page.reload() and "dead" in page.locator("h1").inner_text(), 10)
    expect(page.locator("#p-steps")).to_contain_text(re.compile(r"dead.*replays\d", re.DOTALL))
    with page.expect_navigation():
        page.get_by_role("button", name="Log out").click()
    page.goto(stack.login)
    expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
    context.close()


# Every shift with what moved, from where to where. A fault that appears while somebody looks may
# move what is below it, by as much as it takes.
SHIFTS = """
window.shifts = [];
let faults = 0;
const bottom = () => document.getElementById("p-faults")?.getBoundingClientRect().bottom ?? 0;
addEventListener("DOMContentLoaded", () => { faults = bottom(); });
const place = (box) => [box.x, box.y, box.width, box.height].map(Math.round).join(" ");
new PerformanceObserver((list) => {
    const before = faults, taken = bottom() - before;
    faults = bottom();
    // What is out of the window has no place.
    const moved = (was, is) => is.height === 0 || Math.abs(is.y - was.y - taken) < 1;
    const pushed = ({sources}) => taken > 0 && sources.every(
        ({previousRect: was, currentRect: is}) => was.y >= before && moved(was, is));
    for (const each of list.getEntries()) window.shifts.push({
        value: pushed(each) ? 0 : each.value,
        moved: each.sources.map(({node, previousRect, currentRect}) =>
            `${node?.nodeName} ${node?.id} ${node?.className}: ${place(previousRect)} to`
            + ` ${place(currentRect)}`),
    });
}).observe({type: "layout-shift", buffered: true});
"""


def test_nothing_jumps_under_load_and_the_pictures_are_taken(
    stack: Stack, browser: Browser, tmp_path: Path
) -> None:
    folder = PICTURES if PICTURED else tmp_path
    folder.mkdir(exist_ok=True)
    rounds = 120 if PICTURED else 30
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.add_init_script(SHIFTS)
    page.goto(stack.pages)
    tile = page.locator("#p-tiles .tile").nth(1).locator("b")
    for number in range(rounds):
        stack.query(
            "SELECT outbox_enqueue('chat_history_persist', key, json_build_object("
            "'user_id', 7, 'conversation_id', key, 'role', 'user', 'message', 'canary-text'))"
            " FROM generate_series(1, 40) AS n, LATERAL (SELECT 'load-' || n %% 8 + %(round)s AS"
            " key) AS k",
            round=number,
        )
        page.wait_for_timeout(200)
    # Figures are sent every few seconds, and shown by themselves.
    expect(tile).to_have_text(re.compile(r"\d"), timeout=30_000)
    shifts = page.evaluate("window.shifts")
    assert sum(each["value"] for each in shifts) < 0.02, shifts
    page.screenshot(path=folder / "overview.png")
    dead, odd = addresses(stack)[8], addresses(stack)[9]
    for name, path in (
        ("dead-letters", "dead/"),
        ("cause", dead),
        ("conversation", odd),
        ("workers", "workers/"),
    ):
        page.goto(stack.pages + path)
        page.screenshot(path=folder / f"{name}.png")
    page.goto(stack.pages + dead)
    page.get_by_label("why").fill("the producer was mended")
    page.get_by_role("button", name="Replay all").click()
    expect(page.get_by_role("button", name=re.compile(r"Replay \d+ message"))).to_be_visible()
    page.screenshot(path=folder / "preview.png")
    context.close()
    for name, width, scheme in (("dark", 1280, "dark"), ("phone", 390, "light")):
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(stack.pages)
        page.screenshot(path=folder / f"{name}.png")
        context.close()
    assert len(list(folder.glob("*.png"))) == 8
