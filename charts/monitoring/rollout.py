"""The dashboard of a run's rollouts and scorers: how fast do they answer, and how long does a new version take?"""

from monitoring.panels import TOKENS, AnyPanel, Query, Row, curves, figure, page, quantiles, rate, share, stacked, variable

SCORERS = 'namespace="$namespace", spinrun_dev_run="$run"'
# Scorers have a vLLM and an agent too.
RUN = f'{SCORERS}, app_kubernetes_io_component!="scorer"'
EMPTY = "no rollout runs, or Prometheus does not collect from it"
NO_SWITCH = "no version was switched to in this time"
NO_VLLM = "no vLLM answers its agent"
NO_SCORER = "the run serves no model of its preference, or has not asked it yet"


def rollout_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-rollout",
        "SpinRun / Rollout",
        "The rollouts of one run: sampling, changes of version, and vLLM within; and its scorers, where it has any.",
        [
            variable("namespace", "Namespace", "label_values(spinrun_rollout_version, namespace)"),
            variable("run", "Run", 'label_values(spinrun_rollout_version{namespace="$namespace"}, spinrun_dev_run)'),
        ],
        [
            Row("Now", 4, _now()),
            Row("Sampling", 3, _sampling()),
            Row("Changes of version", 3, _versions()),
            Row("vLLM", 3, _vllm()),
            Row("Agents", 2, _agents()),
            Row("Scorers", 2, _scorers()),
        ],
    )


def _rate(metric: str, by: str) -> str:
    return rate(metric, RUN, by)


def _now() -> list[AnyPanel]:
    return [
        figure("Rollouts", "none", "That answer Prometheus.", f"count(spinrun_rollout_version{{{RUN}}})", empty="none"),
        figure("Oldest version", "none", "-1: a rollout serves none.", f"min(spinrun_rollout_version{{{RUN}}})", empty="none"),
        figure("Newest version", "none", "That a rollout serves.", f"max(spinrun_rollout_version{{{RUN}}})", empty="none"),
        figure(
            "Prompts being answered",
            "none",
            "By all rollouts.",
            f"sum(spinrun_rollout_requests_in_flight{{{RUN}}})",
            empty="none",
        ),
    ]


def _sampling() -> list[AnyPanel]:
    return [
        stacked(
            "Tokens sampled",
            TOKENS + "/s",
            "Completion tokens of each rollout.",
            Query(_rate("spinrun_rollout_tokens_total", "pod"), "{{pod}}"),
            empty=EMPTY,
        ),
        stacked(
            "Samples by finish reason",
            "suffix: samples/s",
            "length: cut at spec.rollout.maxTokens. Many of them: it is short.",
            Query(_rate("spinrun_rollout_samples_total", "finish_reason"), "{{finish_reason}}"),
            empty=EMPTY,
        ),
        curves(
            "Prompts being answered",
            "none",
            "Uneven for long: one rollout is slower than the others.",
            Query(f"max by (pod) (spinrun_rollout_requests_in_flight{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Prompts that failed",
            "suffix: prompts/s",
            "By reason; another rollout is asked.",
            Query(_rate("spinrun_rollout_prompt_failures_total", "reason"), "{{reason}}"),
            empty="no prompt failed",
        ),
        curves(
            "Calls refused",
            "reqps",
            "By reason. StaleVersion for a moment is usual while the version changes; Unauthorized never is.",
            Query(_rate("spinrun_rollout_refused_total", "reason"), "{{reason}}"),
            empty="no call was refused",
        ),
    ]


def _versions() -> list[AnyPanel]:
    return [
        curves(
            "Version served",
            "none",
            "Of each rollout; -1 while none is. All lines should be steps that rise together.",
            Query(f"max by (pod) (spinrun_rollout_version{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Staging",
            "s",
            "Time to copy a version to the pod and check it, while vLLM still serves the one before.",
            *quantiles("spinrun_rollout_staging_seconds", RUN),
            empty=NO_SWITCH,
        ),
        curves(
            "Bytes staged",
            "Bps",
            "Read from the ledger by each rollout.",
            Query(_rate("spinrun_rollout_staged_bytes_total", "pod"), "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Switch",
            "s",
            "Time in which no sample could be asked for because the version changed.",
            *quantiles("spinrun_rollout_switch_seconds", RUN),
            empty=NO_SWITCH,
        ),
        curves(
            "Pause of vLLM",
            "s",
            "Part of the switch in which vLLM stood still to load weights.",
            *quantiles("spinrun_rollout_pause_seconds", RUN),
            empty=NO_SWITCH,
        ),
        curves(
            "Failures",
            "none",
            "Within an hour: versions that could not be staged, and switches that failed. Both are tried again.",
            Query(f"sum(increase(spinrun_rollout_staging_failures_total{{{RUN}}}[1h]))", "staging"),
            Query(f"sum(increase(spinrun_rollout_switch_failures_total{{{RUN}}}[1h]))", "switch"),
            empty=EMPTY,
        ),
    ]


def _vllm() -> list[AnyPanel]:
    return [
        curves(
            "Tokens of vLLM",
            TOKENS + "/s",
            "Prompt tokens read and completion tokens made, by all rollouts.",
            Query(f"sum(rate(vllm:prompt_tokens_total{{{RUN}}}[$__rate_interval]))", "prompts"),
            Query(f"sum(rate(vllm:generation_tokens_total{{{RUN}}}[$__rate_interval]))", "completions"),
            empty=NO_VLLM,
        ),
        share(
            "KV cache in use",
            "Of each rollout. At 100 % vLLM preempts requests: fewer at a time, or more memory.",
            Query(f"max by (pod) (vllm:kv_cache_usage_perc{{{RUN}}})", "{{pod}}"),
            empty=NO_VLLM,
        ),
        curves(
            "Requests in vLLM",
            "none",
            "Being answered, and waiting for room.",
            Query(f"sum(vllm:num_requests_running{{{RUN}}})", "running"),
            Query(f"sum(vllm:num_requests_waiting{{{RUN}}})", "waiting"),
            empty=NO_VLLM,
        ),
        curves(
            "Preemptions",
            "suffix: requests/s",
            "Requests that had to give up their place in the KV cache and start again.",
            Query(_rate("vllm:num_preemptions_total", "pod"), "{{pod}}"),
            empty=NO_VLLM,
        ),
        share(
            "Prompts found in the cache",
            "Share of prompt tokens that vLLM had already read. High, as a prompt is sampled several times.",
            Query(
                f"sum(rate(vllm:prefix_cache_hits_total{{{RUN}}}[$__rate_interval]))"
                f" / sum(rate(vllm:prefix_cache_queries_total{{{RUN}}}[$__rate_interval]))",
                "hits",
            ),
            empty=NO_VLLM,
        ),
        curves(
            "Duration of a request",
            "s",
            "From its arrival at vLLM to its last token.",
            *quantiles("vllm:e2e_request_latency_seconds", RUN),
            empty=NO_VLLM,
        ),
    ]


def _agents() -> list[AnyPanel]:
    return [
        curves(
            "Memory",
            "bytes",
            "Resident memory of the agents' processes.",
            Query(f"max by (pod) (process_resident_memory_bytes{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Processor time",
            "suffix: cores",
            "Cores that the agents' processes use.",
            Query(_rate("process_cpu_seconds_total", "pod"), "{{pod}}"),
            empty=EMPTY,
        ),
    ]


def _scorers() -> list[AnyPanel]:
    return [
        stacked(
            "Requests for numbers",
            "suffix: requests/s",
            "By HTTP status. 503: vLLM starts, or starts again; 401: somebody without the run's token.",
            Query(rate("spinrun_scorer_request_seconds_count", SCORERS, "status"), "{{status}}"),
            empty=NO_SCORER,
        ),
        curves(
            "Duration of a request for numbers",
            "s",
            "Of one answer, or of up to 32 texts.",
            *quantiles("spinrun_scorer_request_seconds", SCORERS),
            empty=NO_SCORER,
        ),
    ]
