"""The log-probs that the pairs of a window are compared with.

Of an older version (`older`, read back from the ledger) or a `mixture`, of the policy itself (`own`), or as the rollouts say them
(`rollouts`).
"""
