"""What the processes of a run say to each other: wire messages, the ledger's records, logs, exit codes, command lines.

Imports nothing of the other packages but spinrun_api, and nothing heavier than pydantic.
"""
