"""The application: OpenAI's endpoints, and those for tokens, health and metrics, over models with their engines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from axon_core import AxonError, UsageError
from axon_llamachat.answering import ask, respond
from axon_llamachat.api_error import ApiError, as_api_error
from axon_llamachat.door import Door
from axon_llamachat.guard import Guard, error_response
from axon_llamachat.limits import ServerLimits
from axon_llamachat.metrics import Metrics
from axon_llamachat.pages import Page
from axon_llamachat.reading import read_object
from axon_llamachat.served import ServedModel, ServedModels
from axon_llamachat.wire.body import parse_body
from axon_llamachat.wire.chat_body import ChatBody
from axon_llamachat.wire.chat_reply import ChatReply
from axon_llamachat.wire.completion_body import CompletionBody
from axon_llamachat.wire.completion_reply import CompletionReply
from axon_llamachat.wire.token_bodies import DetokenizeBody, TokenizeBody

if TYPE_CHECKING:
    from axon_llamachat.page.gate import Gate

__all__ = ["make_app"]


def make_app(
    models: Sequence[ServedModel],
    *,
    key: str | None = None,
    limits: ServerLimits | None = None,
    cors: Sequence[str] = (),
    pages: Mapping[str, Page] | None = None,
) -> Starlette:
    """Return the application that serves `models`.

    Args:
        models: the models, under different names.
        key: what clients must send as `Authorization: Bearer KEY`; without one, only requests to localhost are
            answered.
        limits: how much a client may ask.
        cors: the origins whose pages may call the server from a browser.
        pages: the pages of other models, by name. If it is given, and be it empty, the language models have pages too,
            at `/page/NAME/`; that needs the extra `page`. They run in the application's lifespan.

    Raises:
        UsageError: two models have one name.
    """
    limits = limits or ServerLimits()
    served, door = ServedModels(models), Door()
    metrics = Metrics(served)
    routes: list[Route | Mount] = [
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/v1/completions", _completions, methods=["POST"]),
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/embeddings", _embeddings, methods=["POST"]),
        Route("/tokenize", _tokenize, methods=["POST"]),
        Route("/detokenize", _detokenize, methods=["POST"]),
        Route("/tokenizer_info", _tokenizer_info),
        Route("/health", _health),
        Route("/metrics", _metrics),
    ]
    gate = None if pages is None else _gate(served, pages, limits, door, metrics)
    if gate is not None:
        routes += [Route("/", gate.index), Mount("/page", gate)]
    paths = [route.path for route in routes]
    layers = [Middleware(Guard, key=key, door=door, metrics=metrics, limits=limits, paths=paths)]
    if cors:
        layers.insert(
            0, Middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"])
        )
    handlers: Any = {ApiError: _told, AxonError: _told, HTTPException: _told_by_starlette}
    lifespan = None if gate is None else lambda app: gate.running()
    app = Starlette(routes=routes, middleware=layers, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.models, app.state.limits, app.state.door, app.state.metrics = served, limits, door, metrics
    return app


def _gate(served: ServedModels, pages: Mapping[str, Page], limits: ServerLimits, door: Door, metrics: Metrics) -> Gate:
    """Return the gate to all pages. Raises `UsageError` if a page and a model have one name."""
    from axon_llamachat.page.gate import Gate  # gradio takes seconds to import
    from axon_llamachat.page.language_model import LanguageModelPage
    from axon_llamachat.page.writer import Writer

    if both := sorted(served.keys() & pages.keys()):
        raise UsageError(f"the models must have different names, got {both[0]} twice; rename a folder")
    writers = {name: Writer(one, limits, partial(metrics.timer, name)) for name, one in served.items()}
    own = {name: LanguageModelPage(writer) for name, writer in writers.items()}
    return Gate({**own, **pages}, limits, door)


async def _completions(request: HttpRequest) -> Response:
    body = parse_body(CompletionBody, await read_object(request, request.app.state.limits))
    model: ServedModel = request.app.state.models.find(body.model)
    limits: ServerLimits = request.app.state.limits
    if len(body.prompts) * body.n > limits.choices:
        message = f"a request may ask for at most {limits.choices} texts (prompts times n)"
        raise ApiError(400, message, param="prompt")
    questions = await asyncio.to_thread(model.completion_questions, body)
    reply = CompletionReply(model, body, questions)
    answers = ask(model.engine, questions)
    return await respond(request, reply, answers, stream=body.stream, seconds=limits.answer_seconds)


async def _chat(request: HttpRequest) -> Response:
    body = parse_body(ChatBody, await read_object(request, request.app.state.limits))
    model: ServedModel = request.app.state.models.find(body.model)
    question = await asyncio.to_thread(model.chat_question, body)
    answers = ask(model.engine, [question])
    seconds = request.app.state.limits.answer_seconds
    return await respond(request, ChatReply(model, body), answers, stream=body.stream, seconds=seconds)


async def _embeddings(request: HttpRequest) -> Response:
    message = "this server has no embeddings: its models are trained to continue texts; use /v1/completions"
    raise ApiError(404, message, code="unsupported_endpoint")


async def _models(request: HttpRequest) -> Response:
    data = [_described(model) for model in request.app.state.models.values()]
    return JSONResponse({"object": "list", "data": data})


async def _model(request: HttpRequest) -> Response:
    return JSONResponse(_described(request.app.state.models.find(request.path_params["name"])))


def _described(model: ServedModel) -> dict[str, Any]:
    facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": "axon"}
    return {**facts, "max_model_len": model.context}


async def _tokenize(request: HttpRequest) -> Response:
    body = parse_body(TokenizeBody, await read_object(request, request.app.state.limits))
    model: ServedModel = request.app.state.models.find(body.model)
    tokenizer = model.tokenizer
    encode = tokenizer.encode_prompt if body.add_special_tokens else tokenizer.encode
    tokens = await asyncio.to_thread(encode, body.prompt)
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.context})


async def _detokenize(request: HttpRequest) -> Response:
    body = parse_body(DetokenizeBody, await read_object(request, request.app.state.limits))
    model: ServedModel = request.app.state.models.find(body.model)
    return JSONResponse({"prompt": model.tokenizer.decode(body.tokens)})


async def _tokenizer_info(request: HttpRequest) -> Response:
    model: ServedModel = request.app.state.models.find(request.query_params.get("model"))
    tokenizer = model.tokenizer
    markers = {"bos_token": None, "eos_token": None, "pad_token": None}  # no text encodes to one
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    kind = {"tokenizer_class": tokenizer.type, "vocab_size": tokenizer.vocab_size, "add_bos_token": tokenizer.add_bos}
    return JSONResponse({**markers, **ids, **kind})


async def _health(request: HttpRequest) -> Response:
    is_open = request.app.state.door.is_open
    return JSONResponse({"status": "ok" if is_open else "stopping"}, 200 if is_open else 503)


async def _metrics(request: HttpRequest) -> Response:
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _told(request: HttpRequest, error: Exception) -> Response:
    return error_response(as_api_error(error))


async def _told_by_starlette(request: HttpRequest, error: HTTPException) -> Response:
    known = {404: f"there is no {request.url.path[:200]}", 405: f"{request.method} is not a method of this endpoint"}
    message = known.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))
