"""One download from a Maven repository: files arrive whole, checked and in parallel."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import truststore
from jgo.maven import Artifact, Dependency, MavenContext, PythonResolver
from requests import Session
from requests.adapters import HTTPAdapter

from streams.dev.downloads import Progress, Report
from streams.errors import ServiceUnreachable

MIRROR = "OUTBOX_STREAMS_MAVEN"
ATTEMPTS = 3
AT_ONCE = 6
TIMEOUT = 20


def download(coordinates: str, repository: Path, report: Report) -> list[Path]:
    """The jars, in the order of the class path.

    ServiceUnreachable when the repository does not give them.
    """
    mirror = os.environ.get(MIRROR)
    remotes = {"mirror": mirror} if mirror else None
    # Many small files: connections that stay open, where jgo makes a new one for each.
    with Session() as session, ThreadPoolExecutor(AT_ONCE) as pool:
        session.mount("https://", _SystemTrust())
        fetcher = _Fetcher(coordinates, session, report)
        context = MavenContext(
            resolver=fetcher, repo_cache=repository, remote_repos=remotes, timeout=TIMEOUT
        )
        inputs, needed = fetcher.resolve(
            [_dependency(context, text) for text in coordinates.split("+")]
        )
        artifacts = [dependency.artifact for dependency in (*inputs, *needed)]
        fetcher.start_counting(len(artifacts))
        return list(pool.map(lambda artifact: Path(artifact.resolve()), artifacts))


def _dependency(context: MavenContext, text: str) -> Dependency:
    group, artifact, version = text.split(":")
    # Raw, as for Maven itself: the versions that one library manages for its own build do not bind
    # the others.
    return Dependency(context.project(group, artifact).at_version(version).artifact(), raw=True)


class _SystemTrust(HTTPAdapter):
    """Trusts whom the system trusts, as pip does.

    A company's proxy is in the system's store, and not in that of requests.
    """

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(
            *args, ssl_context=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **options
        )


class _Fetcher(PythonResolver):
    """jgo's resolver with checked downloads that are renamed into place.

    Its own downloads keep what an interruption left.
    """

    def __init__(self, what: str, session: Session, report: Report) -> None:
        super().__init__()
        self._what = what
        self._session = session
        self._report = report
        self._lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._of: int | None = None

    def start_counting(self, total: int) -> None:
        """From now on files of a known list arrive."""
        self._files, self._of = 0, total

    def download(self, artifact: Artifact) -> Path:
        path = artifact.cached_path
        if path is None:
            raise ServiceUnreachable(f"{artifact} has no place in the cache")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.new")
        for url in artifact.context.remote_repos.values():
            self._fetch(
                f"{url}/{artifact.component.path_prefix.as_posix()}/{artifact.filename}", draft
            )
            draft.replace(path)
            break
        self._tell(files=1)
        return path

    def _fetch(self, url: str, draft: Path) -> None:
        """Write what is behind the URL into the draft; a broken connection is tried again."""
        for attempt in range(1, ATTEMPTS + 1):
            response = self._get(url, last=attempt == ATTEMPTS)
            if response is not None and self._copy(response, draft) == self._checksum(url):
                return
            time.sleep(attempt)
        raise ServiceUnreachable(f"{url} arrived damaged {ATTEMPTS} times")

    def _get(self, url: str, *, last: bool) -> Any:
        # Exceptions of requests are OSErrors.
        try:
            response = self._session.get(url, stream=True, timeout=TIMEOUT)
        except OSError as error:
            if last:
                raise _unreachable(url, type(error).__name__) from None
            return None
        if response.status_code == 200:
            return response
        response.close()
        if last or response.status_code in (401, 403, 404):
            raise _unreachable(url, f"HTTP status {response.status_code}")
        return None

    def _copy(self, response: Any, draft: Path) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        with response, draft.open("wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                digest.update(chunk)
                self._tell(size=len(chunk))
        return digest.hexdigest()

    def _checksum(self, url: str) -> str:
        response = self._get(f"{url}.sha1", last=True)
        return str(response.text.split()[0])

    def _tell(self, *, files: int = 0, size: int = 0) -> None:
        with self._lock:
            self._files += files
            self._bytes += size
            self._report(Progress(self._what, self._files, self._of, self._bytes))


def _chunks(response: Any) -> Any:
    """The body in pieces.

    When the connection breaks it ends early, and then fails its checksum.
    """
    pieces = iter(response.iter_content(chunk_size=65536))
    while True:
        try:
            yield next(pieces)
        except (StopIteration, OSError):
            return


def _unreachable(url: str, why: str) -> ServiceUnreachable:
    return ServiceUnreachable(
        f"the Maven repository does not give {url} ({why}); it is needed once, for the first start "
        f"(${MIRROR} names a mirror)"
    )
