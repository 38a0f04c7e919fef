"""What the operator makes for a run: pure functions from a run to the document of one child."""
