"""The FastAPI application that test_web_servers.py has served."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

from profilis_mp import AsyncCollector, JSONLExporter
from profilis_mp.asgi import ProfilisASGIMiddleware
from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.decorators.profile import profile_function

collector = AsyncCollector(JSONLExporter(dir=os.environ["LOGS"], rotate_bytes=64 * 1024))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    collector.flush()  # uvicorn ends by the signal that stopped it: no exit hook runs


app = FastAPI(lifespan=lifespan)
app.add_middleware(ProfilisASGIMiddleware, collector=collector)


@profile_function(collector)
async def load() -> str:
    await asyncio.sleep(0)
    return str(get_trace_id())


@app.get("/pages/{number}")
async def page(number: int) -> PlainTextResponse:
    """Answers with its trace id, by which the client asks the log for this very request."""
    return PlainTextResponse(await load())


@app.get("/streams/{number}")
async def stream(number: int) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        trace_id = await load()
        for start in range(0, 32, 8):
            yield trace_id[start : start + 8]

    return StreamingResponse(chunks())


@app.get("/endless/{number}")
async def endless(number: int) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        yield str(get_trace_id())
        while True:
            await asyncio.sleep(0.01)
            yield "x" * 1000

    return StreamingResponse(chunks())


@app.get("/pid")
async def pid() -> PlainTextResponse:
    return PlainTextResponse(str(os.getpid()))


@app.websocket("/talk")
async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(f"{await socket.receive_text()} {current_span()}")
    await socket.close()
