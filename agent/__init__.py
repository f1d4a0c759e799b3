"""Who decides: the loop, the planners that propose, the referee that disposes."""

import os

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"  # read once, when langgraph is imported; keeps classes out of the state
