"""A web service that shares its GPUs with everybody else: `uvicorn app:app`."""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from gpulockd import Lease
from gpulockd.contrib.asgi import gpu, lifespan, status_app

app = FastAPI(lifespan=lifespan)
app.mount("/gpu", status_app())

# Waits two seconds for 4 GiB of a card; then 503, and Retry-After says when to come again.
SmallModel = Annotated[Lease, Depends(gpu(memory="4GiB", wait="2s"))]
WholeCard = Annotated[Lease, Depends(gpu(wait="30s", priority=5))]


@app.post("/embed")
async def embed(text: Annotated[list[str], "one vector for each"], lease: SmallModel) -> dict[str, object]:
    """The GPU is held until the answer is sent, and given back at once if the client hangs up."""
    await anyio.sleep(0.05)  # the model
    return {"device": lease.gpu.device, "vectors": [[float(len(words))] for words in text]}


@app.post("/chat")
async def chat(prompt: dict[str, str], lease: WholeCard) -> StreamingResponse:
    """A streamed answer holds the GPU to its end."""

    async def words() -> AsyncIterator[str]:
        for number, word in enumerate(prompt["text"].split(), 1):
            await lease.progress(message=f"word {number}")
            await anyio.sleep(0.01)  # the model
            yield word + "\n"

    return StreamingResponse(words(), media_type="text/plain")
