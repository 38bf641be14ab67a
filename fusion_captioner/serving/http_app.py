"""The HTTP server: OpenAI's vision API, captions of several files, searches, and its own state."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from fusion_captioner import __version__
from fusion_captioner.given_values import check_text
from fusion_captioner.printing import error_text, printable
from fusion_captioner.serving.batching import Batcher, Job, QueueFullError
from fusion_captioner.serving.chat import ChatAnswer, ChatRequest, error_event
from fusion_captioner.serving.door import ClientGoneError, Door
from fusion_captioner.serving.errors import RequestError, queue_full
from fusion_captioner.serving.metrics import Metrics
from fusion_captioner.serving.request_images import RequestImages
from fusion_captioner.serving.served_captioner import ServedCaptioner

if TYPE_CHECKING:
    from fusion_captioner.serving.photo_search import PhotoSearch  # needs torch, and few servers have an index

CHAT, CAPTION, SEARCH = "/v1/chat/completions", "/caption", "/search"
FREE = ("/healthz", "/metrics", "/v1/models")
MAX_RESULTS = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """
    Args:
        batch_size, batch_wait, queue_size: see [`Batcher`]; the queue also bounds the requests in progress.
        max_body: bytes of a request.
        max_pixels: of an image.
        allow_urls: fetch images by http(s) URL, from public servers only.
    """

    batch_size: int = 8
    batch_wait: float = 0.01
    queue_size: int = 64
    max_body: int = 20 * 2**20
    max_pixels: int = 50_000_000
    allow_urls: bool = False


class CaptionService:
    """What the endpoints share: the captioner, its queue, the images, the index and the counters."""

    def __init__(self, captioner: ServedCaptioner, limits: Limits, search: "PhotoSearch | None") -> None:
        self.captioner = captioner
        self.limits = limits
        self.search = search
        self.metrics = Metrics(frozenset((CHAT, CAPTION, SEARCH, *FREE)), lambda: self.batcher.waiting)
        self.batcher = Batcher(
            captioner.caption,
            limits.batch_size,
            limits.batch_wait,
            limits.queue_size,
            self.metrics.batches.observe,
        )
        self.images = RequestImages(captioner.image_settings, limits.max_pixels, limits.allow_urls)
        self.query_images = RequestImages(search.image_settings, limits.max_pixels, False) if search else None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        async with self.batcher:
            yield
        self.images.close()
        if self.query_images:
            self.query_images.close()

    def submit(self, jobs: Sequence[Job]) -> "list[asyncio.Future[list[str]]]":
        """
        Raises:
            RequestError: 429 where the queue is full.
        """
        try:
            return self.batcher.submit(jobs)
        except QueueFullError as error:
            raise queue_full(str(error)) from error


def create_app(
    captioner: ServedCaptioner, limits: Limits | None = None, search: "PhotoSearch | None" = None
) -> FastAPI:
    """
    The application.

    Args:
        captioner: that is served.
        limits: by default those of [`Limits`].
        search: the index that `/search` looks in, if there is one.
    """
    limits = limits or Limits()
    service = CaptionService(captioner, limits, search)
    app = FastAPI(
        title="fusion-captioner", version=__version__, docs_url=None, redoc_url=None, lifespan=service.running
    )
    app.state.service = service
    app.add_middleware(
        Door,
        metrics=service.metrics,
        max_active=limits.queue_size + limits.batch_size,
        max_body=limits.max_body,
        free=FREE,
    )
    _add_error_handlers(app)

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": captioner.name, "waiting_images": service.batcher.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": captioner.name, "object": "model", "created": 0, "owned_by": "fusion-captioner"}
        return {"object": "list", "data": [model | {"takes_prompts": captioner.takes_prompts}]}

    @app.post(CHAT)
    async def complete_chat(request: Request, chat: ChatRequest) -> Response:
        return await _complete_chat(service, request, chat)

    @app.post(CAPTION)
    async def caption(request: Request) -> Response:
        return await _caption(service, request)

    @app.get(SEARCH)
    async def search_text(q: str, top: int = 10, rerank: int = 0) -> Response:
        found = _searchable(service, top)
        if not q.strip():
            raise RequestError(400, "`q` is empty; say what to find.", "q")
        if not 0 <= rerank <= MAX_RESULTS:
            raise RequestError(400, f"`rerank` ({rerank}) must be 0 to {MAX_RESULTS}.", "rerank")
        return await _results(lambda: found.find_text(q, top, rerank))

    @app.post(SEARCH)
    async def search_image(request: Request, top: int = 10) -> Response:
        found = _searchable(service, top)
        ((name, content),), _ = await _read_form(request, 1)
        assert service.query_images is not None
        picture = await service.query_images.from_bytes(content, name)
        return await _results(lambda: found.find_like(picture, top))

    return app


async def _complete_chat(service: CaptionService, request: Request, chat: ChatRequest) -> Response:
    captioner = service.captioner
    if chat.model != captioner.name:
        raise RequestError(
            404, f"there is no model {chat.model!r} here; it is {captioner.name!r}.", "model", "model_not_found"
        )
    if len(chat.image_urls) != 1:
        raise RequestError(
            400,
            f"a request must hold one image, as a part of type 'image_url', and this one holds "
            f"{len(chat.image_urls)}; send a request per image.",
            "messages",
        )
    picture = await service.images.from_url(chat.image_urls[0], "messages")
    number = chat.n or 1
    settings = captioner.settings(number, chat.max_new_tokens, chat.temperature, chat.top_p)
    prompt = captioner.chat_prompt(chat.texts)
    answer = ChatAnswer(captioner.name, captioner.count_tokens(prompt))
    futures = service.submit([Job(picture, prompt, settings, chat.seed)])
    limit = settings["max_new_tokens"]

    async def events() -> AsyncIterator[str]:
        yield answer.first_event(number)
        try:
            texts = await futures[0]
        except Exception as error:
            yield error_event(_caption_error(error).body)
            return
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        for event in answer.events(texts, [captioner.count_tokens(text) for text in texts], limit, include_usage):
            yield event

    if chat.stream:
        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    (texts,) = await _unless_gone(request, futures)
    if isinstance(texts, Exception):
        raise _caption_error(texts)
    return JSONResponse(answer.whole(texts, [captioner.count_tokens(text) for text in texts], limit))


async def _caption(service: CaptionService, request: Request) -> Response:
    """One entry per file; a file that cannot be captioned does not stop the others."""
    files, prompt = await _read_form(request, service.limits.queue_size)
    pictures = await asyncio.gather(
        *(service.images.from_bytes(content, name) for name, content in files), return_exceptions=True
    )
    jobs = [
        Job(each, prompt, service.captioner.settings()) for each in pictures if not isinstance(each, BaseException)
    ]
    results = iter(await _unless_gone(request, service.submit(jobs)))
    entries, errors = [], []
    for (name, _), picture in zip(files, pictures, strict=True):
        result = picture if isinstance(picture, BaseException) else next(results)
        if isinstance(result, BaseException):
            error = result if isinstance(result, RequestError) else _caption_error(result)
            errors.append(error)
            entries.append({"image": name} | error.body)
        else:
            entries.append({"image": name, "caption": result[0]})
    if len(errors) == len(entries):
        return JSONResponse({"captions": entries} | errors[0].body, errors[0].status)
    return JSONResponse({"captions": entries})


async def _read_form(request: Request, limit: int) -> tuple[list[tuple[str, bytes]], str]:
    """
    Names and contents of the files in a form, and the field `prompt`.

    Raises:
        RequestError: 400 for a body that is no such form, or breaks off, holds no file, or has a prompt that is no
            text; 413 for too many files.
    """
    # what breaks off would lose its last file or the prompt
    boundary = parse_options_header(request.headers.get("content-type"))[1].get(b"boundary")
    if boundary and b"--" + boundary + b"--" not in (await request.body())[-1024:]:
        raise RequestError(400, "the form is not complete: its end is missing; send it again.")
    async with request.form(max_files=10_000) as form:
        prompt = form.get("prompt", "")
        if not isinstance(prompt, str):
            raise RequestError(400, "`prompt` is a file; send a text, such as -F prompt='a photo of'.", "prompt")
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise RequestError(400, "there is no file; send a form (multipart/form-data) with a file per image.")
        if len(files) > limit:
            raise RequestError(413, f"{len(files)} files are more than {limit}; send fewer at a time.")
        contents = [(file.filename or f"file {number}", await file.read()) for number, file in enumerate(files, 1)]
    for text in (prompt, *(name for name, _ in contents)):
        try:
            check_text(text, "a text of the form")
        except ValueError as error:
            raise RequestError(400, str(error)) from error
    return contents, prompt


async def _unless_gone(request: Request, futures: "Sequence[asyncio.Future[list[str]]]") -> list[Any]:
    """
    Texts, or exceptions, of all futures. If the client goes away, they are cancelled: jobs that wait are not run.

    Raises:
        ClientGoneError: the client has gone.
    """
    texts = asyncio.gather(*futures, return_exceptions=True)
    # of a client that has gone nobody asks for the outcome, which asyncio would complain of
    texts.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    gone = asyncio.ensure_future(request.receive())  # the body was read: what comes next is the end
    try:
        await asyncio.wait((texts, gone), return_when=asyncio.FIRST_COMPLETED)
        if not texts.done():
            raise ClientGoneError
        return texts.result()
    finally:
        gone.cancel()
        texts.cancel()


def _caption_error(error: BaseException) -> RequestError:
    if isinstance(error, ValueError):  # such as a prompt that is longer than the captioner takes
        return RequestError(400, str(error))
    logger.error("an image could not be captioned", exc_info=error)
    return RequestError(500, f"the image could not be captioned ({type(error).__name__}).")


def _searchable(service: CaptionService, top: int) -> "PhotoSearch":
    if service.search is None:
        raise RequestError(404, "this server has no index; start it with --index INDEX.")
    if not 1 <= top <= MAX_RESULTS:
        raise RequestError(400, f"`top` ({top}) must be 1 to {MAX_RESULTS}.", "top")
    return service.search


async def _results(find: Callable[[], list[dict[str, Any]]]) -> Response:
    try:
        return JSONResponse({"results": await asyncio.to_thread(find)})
    except ValueError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:  # the data of the index was moved, which is the server's fault
        logger.error("the index could not be searched", exc_info=error)
        reason = printable(" ".join(error_text(error).split()))
        raise RequestError(503, f"the index cannot be searched ({reason}); search without `rerank`.") from error


def _add_error_handlers(app: FastAPI) -> None:
    """All errors in the form of OpenAI's."""

    def handle(kind: type[Exception], respond: Callable[[Any], RequestError]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            return respond(error).response

        app.add_exception_handler(kind, handler)

    handle(RequestError, lambda error: error)
    handle(RequestValidationError, _invalid_request)
    handle(HTTPException, lambda error: RequestError(error.status_code, str(error.detail)))


def _invalid_request(error: RequestValidationError) -> RequestError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query")]
    if first["type"] == "json_invalid":
        return RequestError(400, f"the request is not valid JSON ({first['ctx']['error']}).")
    message = first["msg"].removeprefix("Value error, ")
    return RequestError(400, f"{'.'.join(place)}: {message}" if place else message, ".".join(place) or None)
