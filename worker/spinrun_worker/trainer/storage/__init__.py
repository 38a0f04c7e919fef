"""The ledger as the trainer sees it: versions, checkpoints, lineage."""
