"""The HTTP server's routes: what is asked for, what is answered, what is refused."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from modeling_ttds import TTDSForCausalLM
from modeling_ttds.records_ttds import shown
from recipes.serving.batches import Batches, BusyError
from recipes.serving.handler import MAX_ALLOWED, MAX_HISTORY, MAX_QUERY, MAX_TOP_K, answers

MAX_ITEMS = 1_000  # that join or leave in one request
MAX_SIMILAR = 64  # items to start from
MAX_BODY = 8_000_000  # bytes
TOKEN = "TTDS_TOKEN"  # the environment variable
BEARER = HTTPBearer(auto_error=False)

History = Annotated[list[str], Field(max_length=MAX_HISTORY)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
Allowed = Annotated[list[str], Field(max_length=MAX_ALLOWED)]


class Body(BaseModel):
    """A body without fields of other names, and without numbers in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Recommend(Body):
    """Whom to recommend to, and what."""

    history: History = Field(description="Item ids, newest last; may be empty.")
    top_k: TopK | None = Field(None, description="Length of the list; 10, or all if fewer.")
    allowed: Allowed | None = Field(None, description="Item ids that may appear; all if null.")
    query: Annotated[str, Field(max_length=MAX_QUERY)] | None = Field(
        None, description="What the user is looking for, in words."
    )
    user_history: History | None = Field(
        None, description="What the user tower sees in place of the history."
    )
    unknown: Literal["error", "skip"] = Field(
        "error", description="What to do with an item of the history that the model does not know."
    )


class Similar(Body):
    """Items to start from."""

    item_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_SIMILAR)]
    top_k: TopK = 10
    allowed: Allowed | None = Field(None, description="Item ids that may appear; all if null.")


class Item(Body):
    """A new item; the more text, the better its semantic ID."""

    item_id: str
    title: str = ""
    brand: str = ""
    categories: str | list[str] = ""
    description: str = ""
    price: str | float = ""


class NewItems(Body):
    """Items that join, and histories that hold them, if there are any yet."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    histories: Annotated[list[History], Field(max_length=MAX_ITEMS)] = []


class OldItems(Body):
    """Items that leave."""

    item_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS)]


class Reload(Body):
    """What to serve from now on."""

    model: str | None = Field(None, description="Folder or Hub id; the present one again if null.")


class Entry(BaseModel):
    """One entry of a list."""

    item_id: str
    title: str
    score: float = Field(description="Log-probability among the candidates.")


class Health(BaseModel):
    """What is served."""

    status: Literal["ok"]
    model: str
    items: int


class Added(Health):
    """What is served after items have joined."""

    arbitrary: list[str] = Field(
        description="Those new items that nothing tells the place of: neither a word that the "
        "model knows nor a history with known items. Their semantic ID is arbitrary."
    )


class Refusal(BaseModel):
    """Why a request was refused, in a sentence that names the field."""

    detail: str


class Service:
    """The model that is served; another may take its place at any time.

    Args:
        name: Folder or Hub id.
        load: Loads one by name.
    """

    def __init__(self, name: str, load: Callable[[str], TTDSForCausalLM]):
        self._load, self.changing = load, asyncio.Lock()
        self.reload(name)

    def reload(self, name: str) -> None:
        """Load a model, let it answer once, and only then put it in the place of the other.

        Args:
            name: Folder or Hub id.
        """
        model = self._load(name)
        model.recommend([[]], top_k=1)  # makes what it keeps between requests
        self.name, self.model = name, model

    def recommend(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """Answer a batch by the model of this moment.

        Args:
            requests: As of `answers`.
        """
        return answers(self.model, requests)

    def similar(self, asked: Similar) -> list[list[dict[str, Any]]]:
        """Return what people who chose each item also choose.

        Args:
            asked: The items.
        """
        lists = self.model.similar_items(asked.item_ids, asked.top_k, asked.allowed)
        return [[asdict(entry) for entry in entries] for entries in lists]

    def add(self, records: Sequence[dict[str, Any]], histories: list[list[str]]) -> list[str]:
        """Let items join; return the ids of those whose semantic ID is arbitrary.

        Args:
            records: The items.
            histories: Histories that hold them.
        """
        model, new = self.model, {record["item_id"] for record in records}
        model.add_items(records, histories=histories)
        told = {item for history in histories if not new.issuperset(history) for item in history}
        return [
            item for item in sorted(new - told) if not model.item_text[model.row_of[item]].any()
        ]

    def health(self) -> dict[str, Any]:
        """Return what is served."""
        return {"status": "ok", "model": self.name, "items": len(self.model.catalogue)}


class BodyLimit:
    """Refuses bodies that are too long, while they are read.

    Args:
        app: What reads them.
    """

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, and count what of its body arrives."""
        length = 0

        async def counted() -> dict[str, Any]:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > MAX_BODY:
                raise HTTPException(
                    413, f"The body is longer than {MAX_BODY:,} bytes; send it in parts."
                )
            return message

        await self.app(scope, counted, send)


def build_app(service: Service, token: str | None) -> FastAPI:
    """Return the application.

    Args:
        service: The model.
        token: What a request that changes something must bring; without one none may.
    """
    batches = Batches(service.recommend)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()  # every request has its answer by now
        batches.thread.shutdown()

    def allowed(
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> None:
        if not token:  # an empty one is what a variable holds that nobody has set
            raise HTTPException(
                403, f"This server takes no changes; start it with {TOKEN} in its environment."
            )
        given = "" if bearer is None else bearer.credentials
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(
                401, "Send `Authorization: Bearer TOKEN`.", {"WWW-Authenticate": "Bearer"}
            )

    def in_the_body(request: Request) -> None:
        for name in request.query_params if request.method == "POST" else ():
            raise ValueError(f"{shown(name)} stands in the address; send it in the body.")

    app = FastAPI(
        title="TTDS",
        lifespan=running,
        dependencies=[Depends(in_the_body)],
        responses={422: {"model": Refusal, "description": "A field is wrong; which, and why."}},
    )
    app.add_middleware(BodyLimit)
    changes = {"dependencies": [Depends(allowed)]}

    @app.exception_handler(OSError)  # a model or a text encoder that cannot be loaded
    @app.exception_handler(ValueError)
    async def refused(_: Request, error: OSError | ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": sentence(error)}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def unreadable(request: Request, error: StarletteHTTPException) -> Response:
        # What the framework says where a body is no UTF-8, or nests or counts too deep.
        if error.status_code == 400:
            return JSONResponse({"detail": "The body is no JSON that can be read."}, 422)
        return await http_exception_handler(request, error)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})

    @app.get("/health")
    async def health() -> Health:
        """Say what is served."""
        return service.health()

    @app.post("/recommend")
    async def recommend(asked: Recommend) -> list[Entry]:
        """Return the items a user is most likely to choose next, best first."""
        return await batches.ask(asked.model_dump(exclude_none=True))

    @app.post("/similar")
    async def similar(asked: Similar) -> list[list[Entry]]:
        """Return what people who chose an item also choose, one list per item."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(batches.thread, service.similar, asked)

    @app.post("/items", **changes)
    async def add(new: NewItems) -> Added:
        """Give new items semantic IDs; they can be recommended when this is answered."""
        async with service.changing:
            records = [item.model_dump() for item in new.items]
            arbitrary = await asyncio.to_thread(service.add, records, new.histories)
            return service.health() | {"arbitrary": arbitrary}

    @app.post("/items/remove", **changes)
    async def remove(old: OldItems) -> Health:
        """Take items out."""
        async with service.changing:
            await asyncio.to_thread(service.model.remove_items, old.item_ids)
            return service.health()

    @app.post("/reload", **changes)
    async def reload(what: Reload) -> Health:
        """Serve a newer state of the model, or another model; requests go on meanwhile."""
        async with service.changing:
            await asyncio.to_thread(service.reload, what.model or service.name)
            return service.health()

    return app


def sentence(error: RequestValidationError) -> str:
    """Return what is wrong with a body, and where, in one sentence.

    Args:
        error: What the framework found.
    """
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"The body is no JSON: {first['ctx']['error']}."
    if first["loc"] == ("body",):
        return "The body is no JSON object; send one with `Content-Type: application/json`."
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return f"`{place}`: {first['msg'].rstrip('.')}."
