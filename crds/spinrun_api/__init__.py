"""The contracts of SpinRun: the custom resource, the ledger's files, the wire messages and the processes.

Imports nothing of the other packages and nothing heavier than pydantic.
"""
