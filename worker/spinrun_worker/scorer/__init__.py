"""The agent beside a scorer's vLLM: lets the run's trainer in, and nobody else.

vLLM's own API key guards only what is below /v1: /classify and /score would answer anybody.
"""
