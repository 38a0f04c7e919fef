"""The engine of a run: the trainer's ranks, the agent beside each vLLM, and what both share."""
