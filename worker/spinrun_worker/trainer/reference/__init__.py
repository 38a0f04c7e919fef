"""The log-probs that the pairs of a window are compared with."""
