"""The application: its pages, their addresses, and what is answered when something goes wrong."""

import functools
from collections.abc import Callable, Collection
from importlib import resources
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from common.errors import UserError
from common.io.terminal import printable
from common.report.template import render_template
from launch.app import comparison, radiograph, standardize, weights
from launch.app.forms import Form, TooLarge, read_form
from launch.app.guard import Guard
from launch.app.models import Models, Sources
from launch.app.worker import Worker, say_fault


class Tab(NamedTuple):
    """A page: where it is, what it is called, and its values before and after a form is sent."""

    path: str
    name: str
    template: str
    blank: Callable[[Models], dict[str, Any]]
    answer: Callable[[Models, Form], dict[str, Any]]


TABS = (
    Tab("/", "Standardize", "standardize.html.j2", standardize.blank, standardize.answer),
    Tab("/radiograph", "Radiograph", "radiograph.html.j2", radiograph.blank, radiograph.answer),
    Tab("/compare", "Compare", "compare.html.j2", comparison.blank, comparison.answer),
    Tab("/weights", "Token weights", "weights.html.j2", weights.blank, weights.answer),
)
FAULT = "Something went wrong in the app itself. Its place is named in the terminal; nothing was kept."


def make_app(sources: Sources, names: Collection[str] = ()) -> ASGIApp:
    """The application with the models of `sources`; `names` are further names of this machine that it answers to."""
    models, worker = Models(sources), Worker()
    routes = [Route(tab.path, functools.partial(_page, tab, models, worker), methods=["GET", "POST"]) for tab in TABS]
    routes += [Route("/style.css", _style), Route("/app.js", _script)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    return Guard(app, names)


async def _page(tab: Tab, models: Models, worker: Worker, request: Request) -> Response:
    """A page, or its answer to a form; what is wrong is said on it, above what was typed."""
    try:
        if request.method == "POST":
            return await _answer(tab, models, worker, request)
        blank = await worker.run(functools.partial(tab.blank, models))
        return HTMLResponse(render(tab.template, tab=tab, error="", **blank))
    except UserError as problem:
        return _message(str(problem), 503)
    except Exception as fault:  # whatever one request meets, the app stays up for the next; `say_fault` reports it
        say_fault(fault)
        return _message(FAULT, 500)


async def _answer(tab: Tab, models: Models, worker: Worker, request: Request) -> Response:
    typed: dict[str, str] = {}
    try:
        form = await read_form(request)
        typed = form.texts
        values = await worker.run(functools.partial(tab.answer, models, form))
        return HTMLResponse(render(tab.template, tab=tab, error="", **values))
    except UserError as problem:
        error, status = printable(problem, 1_000), 413 if isinstance(problem, TooLarge) else 400
    except Exception as fault:  # as in `_page`; what was typed stays on the page
        say_fault(fault)
        error, status = FAULT, 500
    blank = await worker.run(functools.partial(tab.blank, models))
    kept = {name: text for name, text in typed.items() if isinstance(blank.get(name), str)}
    return HTMLResponse(render(tab.template, tab=tab, error=error, **(blank | kept)), status)


def _message(error: str, status: int) -> Response:
    return HTMLResponse(render("message.html.j2", tab=None, error=error), status)


def render(name: str, **values: Any) -> str:
    """A page of the app from its template."""
    return render_template(name, package="launch.app", folder="templates", tabs=TABS, **values)


async def _style(request: Request) -> Response:
    return Response(style_sheet(), media_type="text/css")


async def _script(request: Request) -> Response:
    script = resources.files("launch.app").joinpath("templates", "app.js").read_text("utf-8")
    return Response(script, media_type="text/javascript")


@functools.cache
def style_sheet() -> str:
    """The style of all pages."""
    return render_template(
        "app.css",
        package="launch.app",
        folder="templates",
        colours=0,
        words=radiograph.MOST_WORDS,
        levels=weights.LEVELS,
    )


async def _refused(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    said = {404: "There is no such page.", 405: "That page does not take such a request."}
    return _message(said.get(code, "Refused."), code)
