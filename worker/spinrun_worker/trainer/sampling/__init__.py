"""When a window's prompts are answered, and how: whom the trainer asks, and how answers come back.

`in_turn` and `ahead` are the two orders in which rollouts and trainer work. Both go through `exchange`, which all ranks call
together, and there rank 0 makes `requests` as the spec says. `client` runs the collector in a thread of its own, `fleet` follows
the agents that there are at the `endpoints`, and `agents` is one of them. `dispatch` runs one generation: it gives prompts of a
`backlog` to agents, in `calls`.
"""
