"""How long rank 0 waits for the rollouts, and how much it asks of them at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingLimits:
    """Times, tries and sizes of the requests to agents."""

    activation_seconds: float = 1800.0
    """Longest wait for enough agents to serve a version: a pod may have to pull its image first."""
    wait_seconds: float = 1800.0
    """Longest time of a generation in which no agent answers."""
    stall_seconds: float = 300.0
    """Time without a line from an agent after which idle agents get its prompts too."""
    silence_seconds: float = 1800.0
    """Time without a line from an agent after which its stream counts as cut."""
    lost_seconds: float = 60.0
    """Time in which an agent does not say what state it is in, after which its streams count as cut."""
    request_seconds: float = 10.0
    """Timeout of a small call."""
    poll_seconds: float = 1.0
    """Time between two requests for the state of an agent that does not serve the wanted version, shorter at first; five times as
    long for one that does."""
    resolve_seconds: float = 5.0
    """Time between two looks at who the agents are."""
    tick_seconds: float = 0.25
    """Time between two looks at the clock and at `stop`."""
    first_backoff_seconds: float = 0.5
    """Longest first pause of an agent that failed; it doubles with each failure in a row."""
    longest_backoff_seconds: float = 30.0
    """Longest pause of an agent that failed."""
    tries: int = 5
    """Failures of one prompt after which the run cannot continue."""
    outage_seconds: float = 60.0
    """Time for which a prompt's failures count as one while no other prompt is answered: a vLLM that has died fails them all
    until its death is noticed and it is restarted."""
    sequences_in_flight: int = 512
    """Samples in flight at an agent, so that vLLM's batch stays full."""
    sequences_per_call: int = 256
    """Samples of one call: few, so that agents share the work to the end, but so many that calls_in_flight of them, half answered
    on average, are more than sequences_in_flight."""
    tokens_per_call: int = 2_000_000
    """Prompt tokens of one call; the last prompt may exceed it. Agents refuse bodies of more than some 64 MiB."""
    calls_in_flight: int = 8
    """Calls in flight at an agent."""
