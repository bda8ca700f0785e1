"""The server of ``tagmask view``: pages, pictures and decisions of one run, or of two side by side."""

import hashlib
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from tagmask.data.review import Decision
from tagmask.errors import DataError, Stopped, TagmaskError
from tagmask.view.index import Index
from tagmask.view.pictures import Pictures, describe, encode, jpeg
from tagmask.view.spread import spread
from tagmask.workflow.opened import Run

STATIC = Path(__file__).parent / "static"
COOKIE = "tagmask"
LARGEST_BODY = 32 * 2**20
"""Bytes of a request: a mask of the largest size as PNG is smaller."""
PAGE = 500
"""Photos in one answer, at most."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Label = Annotated[int, Field(ge=0, le=255)]


class Review(BaseModel):
    """A decision about a photo."""

    action: Literal["accept", "reject", "tags", "undo"]
    tags: list[Label] | None = None


class Click(BaseModel):
    """Seeds (x, y, label) and the label map that they change, as a data address of a PNG."""

    seeds: list[tuple[int, int, Label]] = Field(max_length=500)
    mask: str


Spread = Callable[[np.ndarray, np.ndarray, Sequence[tuple[int, int, int]]], np.ndarray]
"""Photo, label map and clicks → label map, as ``spread``."""


def make_app(
    runs: Sequence[Run], token: str, hosts: Sequence[str] = ("localhost",), clicks: Spread = spread
) -> FastAPI:
    """The application. runs: the one that is reviewed, and at most another to compare with it.

    token: what the first request has to bring (?token=...); a cookie stands for it afterwards. hosts: names under which
    the server may be asked, besides addresses in numbers. clicks: what a click does. Raises DataError for runs of other
    photos.
    """
    indices = [Index(run) for run in runs]
    for run, other in zip(runs[1:], indices[1:]):
        if set(other.place) != set(indices[0].place) or other.classes != indices[0].classes:
            raise DataError(f"{run.folder.path}: its photos or classes are not those of {runs[0].folder.path}.")
    pictures = [Pictures(index) for index in indices]
    index = indices[0]
    app = FastAPI(title="tagmask view", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refused(request, token, hosts)
        response = refused if refused is not None else await go_on(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(TagmaskError)
    async def say(request: Request, error: TagmaskError) -> Response:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    def photo_number(n: int) -> int:
        if not 0 <= n < len(index.items):
            raise HTTPException(404, f"There is no photo {n}.")
        index.refresh()
        return n

    def of_run(n: int, run: int = 0) -> tuple[Pictures, int]:
        """The pictures of a run, and the place of photo n of the first one there."""
        if not 0 <= run < len(runs):
            raise HTTPException(404, f"There is no run {run}.")
        return pictures[run], indices[run].place[index.items[photo_number(n)].id]

    Photo = Annotated[int, Depends(photo_number)]  # noqa: N806
    Shown = Annotated[tuple[Pictures, int], Depends(of_run)]  # noqa: N806

    @app.get("/api/run")
    def about() -> dict[str, Any]:
        return describe(pictures, editable=True)

    @app.get("/api/photos")
    def photos(request: Request, offset: int = 0, limit: int = 100) -> dict[str, Any]:
        index.refresh()
        found = index.find(request.query_params)
        chosen = found[max(0, offset) : max(0, offset) + min(max(limit, 0), PAGE)]
        return {"total": len(found), "rows": [index.row(int(n)) for n in chosen]}

    @app.get("/api/photo/{n}")
    def photo(shown: Shown, n: Photo) -> dict[str, Any]:
        own, place = shown
        height, width = own.photo(place).shape[:2]
        return {
            **pictures[0].row(n),
            "width": width,
            "height": height,
            "kinds": own.kinds(place),
            "journal": index.entries(n),
        }

    @app.get("/api/state")
    def state() -> dict[str, int]:
        return {"version": index.refresh()}

    @app.get("/thumb/{n}")
    def thumb(shown: Shown) -> Response:
        return _file(shown[0].thumb(shown[1]), "jpeg")

    @app.get("/photo/{n}")
    def large(shown: Shown) -> Response:
        return _file(jpeg(shown[0].photo(shown[1])), "jpeg")

    @app.get("/layer/{n}/{kind}")
    def layer(shown: Shown, kind: Literal["mask", "prediction", "refined", "truth"]) -> Response:
        return _file(encode(shown[0].layer(shown[1], kind)), "png")

    @app.get("/sure/{n}")
    def sure(shown: Shown) -> Response:
        return _file(encode(shown[0].sure(shown[1])), "png")

    @app.get("/cam/{n}/{label}")
    def cam(shown: Shown, label: Label) -> Response:
        return _file(encode(shown[0].cam(shown[1], label)), "png")

    def decided(n: int) -> dict[str, Any]:
        index.refresh()
        return {"row": pictures[0].row(n), "journal": index.entries(n)}

    @app.post("/api/review/{n}")
    def review(n: Photo, wanted: Review) -> dict[str, Any]:
        names = None
        if wanted.action == "tags":
            labels = sorted(set(wanted.tags or ()))
            if labels and not 1 <= labels[0] <= labels[-1] <= len(index.classes):
                raise DataError(f"Tags are labels from 1 to {len(index.classes)}, got {labels}.")
            names = [index.classes[label - 1] for label in labels]
        photo = index.items[n].id
        if wanted.action != index.journal.decisions().get(photo, Decision()).verdict:  # twice would take two undos
            index.journal.add(photo, wanted.action, names)
        return decided(n)

    @app.post("/api/mask/{n}")
    def mask(n: Photo, data: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, Any]:
        index.journal.add(index.items[n].id, "mask", labels=pictures[0].corrected(n, data))
        return decided(n)

    @app.post("/api/click/{n}")
    def click(n: Photo, wanted: Click) -> Response:
        seen = pictures[0].photo(n)
        labels = pictures[0].sent(wanted.mask, seen.shape[:2])
        if any(len(index.classes) < label for *_, label in wanted.seeds):
            raise DataError(f"A seed's label is at most {len(index.classes)}.")
        return _file(encode(clicks(seen, labels, wanted.seeds)), "png")

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


def _file(data: bytes, kind: str) -> Response:
    # The address has the photo's version, but the photo itself may be another one tomorrow.
    return Response(data, media_type=f"image/{kind}", headers={"Cache-Control": "private, max-age=300"})


def _refused(request: Request, token: str, hosts: Sequence[str]) -> Response | None:
    """Why a request is not answered; None where it is. A page of somebody else's cannot ask for the user."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name, asking = urlsplit(f"//{host}").hostname or "", None if origin is None else urlsplit(origin).netloc
    except ValueError:
        return JSONResponse({"detail": "The request names no host."}, 400)
    if not (_is_address(name) or name in hosts):
        return JSONResponse({"detail": "Asked under another name than those that it serves (--host)."}, 400)
    if asking is not None and asking != host:
        return JSONResponse({"detail": "Asked by the page of another site."}, 403)
    if int(request.headers.get("content-length", 0) or 0) > LARGEST_BODY:
        return JSONResponse({"detail": "The request is too large."}, 413)
    cookie = _cookie(token)
    if secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
        return None
    if request.url.path == "/" and secrets.compare_digest(
        request.query_params.get("token", "").encode(), token.encode()
    ):
        response = RedirectResponse(".", 303)
        response.set_cookie(cookie, token, httponly=True, samesite="lax")
        return response
    return JSONResponse({"detail": "Open the address that 'tagmask view' printed: it has the token."}, 403)


def _is_address(host: str) -> bool:
    """Whether a host is numbers, which no other site's name can stand for."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cookie(token: str) -> str:
    """The cookie's name: browsers send cookies to all ports of a host, where other runs may be viewed."""
    return f"{COOKIE}_{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def serve(
    runs: Sequence[Run],
    host: str = "127.0.0.1",
    port: int = 0,
    say: Callable[[str], None] = print,
    clicks: Spread = spread,
) -> None:
    """Serve until Ctrl-C. port: 0 for a free one. say: is given the address to open. clicks: as in ``make_app``."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    everywhere = host in ("0.0.0.0", "::")
    names = {host, "localhost"} | ({socket.gethostname(), socket.getfqdn()} if everywhere else set())
    app = make_app(runs, token, sorted(names), clicks)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)  # whoever asks before the server is up waits
        except OSError as error:
            raise DataError(f"{host}:{port}: {error.strerror}. Choose another --port or --host.") from error
        port = listening.getsockname()[1]
        shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{port}/?token={token}")
        with suppress(Stopped):
            uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listening])
