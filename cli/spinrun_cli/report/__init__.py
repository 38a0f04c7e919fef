"""The report of a run: one HTML page and one picture, made from the ledger alone."""
