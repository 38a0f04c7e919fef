"""Experiment trackers: where else the figures of a run go, for people who watch many runs in one place.

    Recorder -> Follower -> queue -> thread -> Tracker     a follower and its thread for each tracker of spec.telemetry

A tracker never blocks, slows or fails a run: whatever it does happens in its own thread. What it could not accept is counted,
logged once, and on the ledger in any case.
"""

from spinrun_worker.trainer.reporting.trackers.follower import Follower, TrackerCollector, is_left_behind
from spinrun_worker.trainer.reporting.trackers.open import following

__all__ = ["Follower", "TrackerCollector", "following", "is_left_behind"]
