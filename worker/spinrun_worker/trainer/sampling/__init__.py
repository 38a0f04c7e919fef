"""When a window's prompts are answered, and how: whom the trainer asks, and how answers come back.

`in_turn` and `ahead` are the two orders in which rollouts and trainer work. `requests` asks as the spec says, `client` runs the
collector in a thread of its own, `dispatch` gives prompts to agents, `agents` is one of them, `endpoints` is where they are.
"""
