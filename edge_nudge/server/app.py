"""The routes of the local API.

Owns which path does what. Never reads a socket, never runs a model: bodies are in wire.py, answers in shapes.py and
stream.py, the pair behind the worker.

1. Errors of every kind are OpenAI's error object; see faults.py.
2. Nothing here waits for a model in the event loop.
3. The schema is served at /openapi.json; pages.py has what a browser gets.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from edge_nudge.errors import EdgeNudgeError
from edge_nudge.server.faults import Fault, JsonResponse, RequestError, fault_of, fault_of_validation
from edge_nudge.server.guard import Guard
from edge_nudge.server.jobs import chat_work, completion_work
from edge_nudge.server.metrics import CONTENT_TYPE, Meter, make_meter
from edge_nudge.server.pages import add_pages
from edge_nudge.server.served import Limits, Served
from edge_nudge.server.shapes import ChatShape, TextShape
from edge_nudge.server.stream import Reply
from edge_nudge.server.tokens import DetokenizeBody, TokenizeBody, detokenize, tokenize, tokenizer_info
from edge_nudge.server.wire import ChatBody, CompletionBody, Settings, chat_request, completion_settings
from edge_nudge.version import __version__
from edge_nudge.worker import Worker, WorkerState

__all__ = ["Limits", "Served", "make_app"]

_DOWN = (WorkerState.LOADING, WorkerState.FAILED, WorkerState.STOPPING, WorkerState.STOPPED)
_FAULT = {
    "description": "OpenAI's error object",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}
_ANSWERS: dict[int | str, dict[str, Any]] = {"4XX": _FAULT, "5XX": _FAULT}


def make_app(worker: Worker, *, served: Served, limits: Limits | None = None) -> ASGIApp:
    """Return the ASGI application of one served pair; starting and stopping the worker is the caller's.

    Raises InputError where metrics are asked for and their package is not installed.
    """
    limits = limits or Limits()
    meter = make_meter(worker, is_on=served.has_metrics)
    app = FastAPI(
        title="edge-nudge", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )  # fmt: skip
    _add_faults(app)
    _add_completions(app, worker, served, limits, meter)
    _add_tokens(app, worker)
    _add_state(app, worker, served, meter)
    add_pages(app)
    return Guard(app, served, limits)


def _add_faults(app: FastAPI) -> None:
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return fault_of_validation(error.errors()).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400:
            return Fault(400, "the body is no JSON in UTF-8 that can be read", code="invalid_json").response()
        message = f"{request.method} {request.url.path}: {error.detail}"
        return Fault(error.status_code, message, headers=dict(error.headers or {})).response()

    async def known(request: Request, error: Exception) -> Response:
        return fault_of(error).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(EdgeNudgeError, known)
    app.add_exception_handler(Exception, known)


def _add_completions(app: FastAPI, worker: Worker, served: Served, limits: Limits, meter: Meter) -> None:
    def reply(body: Settings, work: Any, shape: ChatShape | TextShape) -> Reply:
        return Reply(worker, work, shape, is_stream=body.is_stream, limits=limits, observe=meter.observe)

    @app.post("/v1/chat/completions", responses=_ANSWERS, summary="Answer a conversation", response_model=None)
    async def chat(body: ChatBody) -> Response:
        _check_model(body, served)
        request = chat_request(body)
        shape = ChatShape(served.id, n_top=request.logprobs, has_usage=body.has_usage_chunk)
        return reply(body, chat_work(request), shape)

    @app.post("/v1/completions", responses=_ANSWERS, summary="Go on with a text", response_model=None)
    async def complete(body: CompletionBody) -> Response:
        _check_model(body, served)
        settings = completion_settings(body)
        shape = TextShape(
            served.id,
            n_prompts=len(body.prompt),
            has_scores=body.logprobs is not None,
            has_usage=body.has_usage_chunk,
        )
        return reply(body, completion_work(body.prompt, settings, is_echo=bool(body.echo)), shape)


def _check_model(body: Settings, served: Served) -> None:
    if body.model is not None and body.model not in served.names:
        raise _no_model(body.model, served)


def _no_model(name: str, served: Served) -> RequestError:
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    return RequestError(
        f"model {shown!a} is not served here: {', '.join(served.names)}", "model", status=404, code="model_not_found"
    )


def _add_tokens(app: FastAPI, worker: Worker) -> None:
    @app.post("/tokenize", responses=_ANSWERS, summary="Text to token ids", response_model=None)
    def to_ids(body: TokenizeBody) -> Response:
        with worker.borrow() as pair:
            return JsonResponse(tokenize(pair, body))

    @app.post("/detokenize", responses=_ANSWERS, summary="Token ids to text", response_model=None)
    def to_text(body: DetokenizeBody) -> Response:
        with worker.borrow() as pair:
            return JsonResponse(detokenize(pair, body))

    @app.get("/tokenizer_info", responses=_ANSWERS, summary="What the tokenizer is", response_model=None)
    def info() -> Response:
        with worker.borrow() as pair:
            return JsonResponse(tokenizer_info(pair))


def _add_state(app: FastAPI, worker: Worker, served: Served, meter: Meter) -> None:
    @app.get("/health", responses=_ANSWERS, summary="Whether requests are taken", response_model=None)
    async def health() -> Response:
        view = worker.describe()
        if view.state in _DOWN and not (view.state is WorkerState.LOADING and view.counts["loads"]):
            why = f": {view.error}" if view.error else ""
            return Fault(503, f"the service is {view.state.value}{why}", code=view.state.value).response()
        return JsonResponse({"status": "ok", "state": view.state.value})

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "edge-nudge",
            "aliases": list(served.aliases),
            "meta": dict(served.about),
        }

    @app.get("/v1/models", responses=_ANSWERS, summary="What is served", response_model=None)
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [model(served.id)]})

    @app.get("/v1/models/{name:path}", responses=_ANSWERS, summary="One model", response_model=None)
    async def one_model(name: str) -> Response:
        if name not in served.names:
            raise _no_model(name, served)
        return JsonResponse(model(name))

    @app.get("/slots", responses=_ANSWERS, summary="What the worker is doing", response_model=None)
    async def slots() -> Response:
        return JsonResponse([_slot(worker, served)])

    if served.has_metrics:

        @app.get("/metrics", summary="Figures for Prometheus", response_model=None)
        async def metrics() -> Response:
            return Response(meter.text(), media_type=CONTENT_TYPE)


def _slot(worker: Worker, served: Served) -> dict[str, Any]:
    view = worker.describe()
    job = view.job
    return {
        "id": 0,
        "model": served.id,
        "is_processing": job is not None,
        "state": view.state.value,
        "error": view.error,
        "job": None
        if job is None
        else {
            "id": job.id,
            "running_s": job.running_s,
            "n_tokens": job.n_tokens,
            "is_cancelled": job.is_cancelled,
        },
        "n_queued": view.n_queued,
        "max_queue": view.max_queue,
        "idle_s": view.idle_s,
        "keep_alive_s": view.keep_alive_s,
        "counts": view.counts,
    }
