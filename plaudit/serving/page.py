"""The pages `/` and `/docs`: static files, a model's report and card, each behind its policy."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

STATIC = Path(__file__).parent / "static"

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Read once: what a package holds does not change while it runs.
_FILES = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in _KINDS}

PAGE_PATHS = frozenset({"/", "/docs", "/page.json", *(f"/static/{name}" for name in _FILES)})
"""What a browser loads before it can ask for a token. None of it says anything of a model."""

PAPERS = {"report": ("report.html", "text/html"), "card": ("README.md", "text/plain")}
"""What may lie beside a model: its file, and as what it is sent."""

_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_ITS_OWN = "script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
PAGE_POLICY = f"{_NOTHING_ELSE}; {_ITS_OWN}"
PAPER_POLICY = (
    f"{_NOTHING_ELSE}; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "sandbox allow-scripts allow-popups"
)
"""A report has its styles, pictures and one script inside it; its own policy allows that script by
its hash. Whatever runs there has no origin, so it reaches neither the server nor the page's token.
"""


def add_page(app: FastAPI, source_of: Callable[[str], str], *, token: bool) -> None:
    """Add the page's routes.

    ``source_of`` gives the folder or Hub id of a served model and raises for other names; ``token``
    says whether requests need one, so that the page asks for it before it is refused.
    """

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(_FILES["index.html"])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _file(_FILES["docs.html"])

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, "There is no such file.")
        return _file(_FILES[name])

    @app.get("/page.json", include_in_schema=False)
    async def settings() -> Response:
        return JSONResponse({"token": token}, headers=_headers(PAGE_POLICY))

    @app.get("/models/{name}/{paper}", include_in_schema=False)
    async def paper(name: str, paper: str) -> Response:
        """What lies beside a model: ``report`` is its HTML report, ``card`` its model card."""
        folder = Path(source_of(name))
        if paper not in PAPERS:
            raise HTTPException(404, f"Expected one of {', '.join(PAPERS)}.")
        file, kind = PAPERS[paper]
        if not (folder / file).is_file():
            raise HTTPException(404, f"No {file} lies beside this model.")
        return FileResponse(folder / file, media_type=kind, headers=_headers(PAPER_POLICY))


def _file(path: Path) -> Response:
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=_headers(PAGE_POLICY))


def _headers(policy: str) -> dict[str, Any]:
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        # Asked for again each time, answered 304 while it has not changed.
        "cache-control": "no-cache",
    }
