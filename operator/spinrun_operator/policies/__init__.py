"""When a run fails, pauses, is tried again and goes away: pure functions, one policy a file."""
