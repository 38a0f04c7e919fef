"""The trainer: one process a rank, windows until the last.

`build` puts the parts of a rank together, `training` runs the windows, `coordinator` is what rank 0 alone does. Below: `model`
computes, `sampling` faces the rollouts, `reference` is what pairs are compared with, `storage` is the ledger as the trainer sees
it, `ranks` is how the processes act as one, `reporting` tells people.
"""
