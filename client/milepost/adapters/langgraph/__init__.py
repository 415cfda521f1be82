"""milepost as LangGraph's checkpointer: `pip install "milepost[langgraph]"`.

    from milepost.adapters.langgraph import MilepostSaver

    with MilepostSaver("127.0.0.1:7450") as saver:
        graph = builder.compile(checkpointer=saver)
        graph.invoke(inputs, {"configurable": {"thread_id": "1"}})

`saver` is what LangGraph calls, `exchanges` and `listing` what is asked of the server and how its answers read, `put`
the Save of one checkpoint, `encoding` how channels become entries, `known` what the server is known to hold,
`connections` who sends.
"""

from milepost.adapters.langgraph.saver import MilepostSaver

__all__ = ["MilepostSaver"]
