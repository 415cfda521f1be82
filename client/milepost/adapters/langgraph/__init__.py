"""milepost as LangGraph's checkpointer: `pip install "milepost[langgraph]"`.

    from milepost.adapters.langgraph import MilepostSaver

    with MilepostSaver("127.0.0.1:7450") as saver:
        graph = builder.compile(checkpointer=saver)
        graph.invoke(inputs, {"configurable": {"thread_id": "1"}})

`saver` is what LangGraph calls, `exchanges` and `listing` what is asked of the server and how its answers read, `put`
the Save of one checkpoint, `encoding` how channels become entries, `known` what the server is known to hold,
`sizing` what an event loop does not wait for, `connections` who sends, `gathering` which Saves share a call.
"""

try:
    from milepost.adapters.langgraph.saver import MilepostSaver
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("milepost"):
        raise
    raise ModuleNotFoundError(
        f'{error.name} is not installed, which this adapter needs: pip install "milepost[langgraph]"', name=error.name
    ) from error

__all__ = ["MilepostSaver"]
