"""Rank 0's side of the rollouts: who they are, which version they serve, and prompts on their way to being answered."""
