"""The ledger from the trainer's point of view: versions, checkpoints, lineage."""
