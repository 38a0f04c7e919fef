"""What people see of a run: progress, metrics, figures on the ledger, trackers, traces."""
