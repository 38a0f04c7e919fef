"""The processes of an attempt as one: how they start, what they agree on, how they stop, and what they report at the end."""
