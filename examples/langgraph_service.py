"""A chat service that several workers serve, with one writer for each conversation.

    MILEPOST_TARGET=127.0.0.1:7450 uvicorn --workers 4 examples.langgraph_service:app

Whichever worker a request reaches, it goes on from the conversation's last checkpoint. A second request for a
conversation that is being answered gets 409 at once; add `wait_s` to let it wait instead.
"""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from fastapi import FastAPI, HTTPException
from langgraph.graph import START, StateGraph

from milepost import LeaseHeldError
from milepost.adapters.langgraph import MilepostSaver


class Conversation(TypedDict, total=False):
    """What is known of a conversation."""

    said: Annotated[list[str], operator.add]


async def answer(state: Conversation) -> Conversation:
    """Stand for a language model that takes its time."""
    await asyncio.sleep(float(os.environ.get("ANSWER_S", "0.5")))
    return {"said": [f"answer {len(state['said'])} from process {os.getpid()}"]}


builder = StateGraph(Conversation)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the saver in each worker, on its event loop."""
    async with MilepostSaver() as saver:
        app.state.saver = saver
        app.state.graph = builder.compile(checkpointer=saver)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/conversations/{thread_id}")
async def say(thread_id: str, text: str) -> dict[str, Any]:
    """Answer, unless another request is being answered in this conversation."""
    config: Any = {"configurable": {"thread_id": thread_id}}
    try:
        async with app.state.saver.exclusive(thread_id):
            result: dict[str, Any] = await app.state.graph.ainvoke({"said": [text]}, config)
    except LeaseHeldError as held:
        raise HTTPException(409, f"{thread_id} is being answered by {held.holder}") from held
    return result
