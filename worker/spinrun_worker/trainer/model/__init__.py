"""The policy and how it learns: loading, attention without padding, log-probs, losses' gradients, optimizer."""
