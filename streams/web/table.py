"""Every route that there is: pages with their calls of the API, logins, files, acts."""

from __future__ import annotations

from streams.web import acts, auditing, files, login, metrics, openapi, operating, search
from streams.web.pages import PAGES
from streams.web.pages.acts import EXPORT
from streams.web.routes import Route

ROUTES: tuple[Route, ...] = (
    *login.ROUTES,
    *files.ROUTES,
    *metrics.ROUTES,
    *(route for page in PAGES for route in page.routes),
    EXPORT,
    *acts.ROUTES,
    *operating.ROUTES,
    *auditing.ROUTES,
    *search.ROUTES,
    openapi.ROUTE,
)
"""Which right each needs: a test walks all of it, with every method and role."""

openapi.DESCRIBED.extend(ROUTES)
