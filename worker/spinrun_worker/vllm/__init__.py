"""vLLM from the outside: a client of a running server, and what makes one run well on CPUs."""
