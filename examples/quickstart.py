"""Save two checkpoints of a workflow, load the last one, list both. Needs a server: `make run`."""

from milepost import Client

with Client("127.0.0.1:7450") as client:
    reserved = client.save("order-7", state={"items": 3}, current_step="reserve", after="start", checkpoint_id="c1")
    client.save("order-7", state={"items": 3, "paid": True}, current_step="charge", after=reserved, checkpoint_id="c2")
    order = client.load("order-7")
    print(order.sequence, order.current_step, order.state)
    print([checkpoint.current_step for checkpoint in client.list("order-7")])
