"""vLLM as its neighbours see it: the client of one that runs, and what makes one run well on CPUs."""
