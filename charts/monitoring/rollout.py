"""The dashboard of a run's rollouts and scorers: how fast do they answer, and how long does a new version take?"""

from monitoring.panels import TOKENS, AnyPanel, Query, Row, curves, figure, page, quantiles, rate, share, stacked, variable

SCORERS = 'namespace="$namespace", spinrun_dev_run="$run"'
# Scorers have a vLLM and an agent too.
RUN = f'{SCORERS}, app_kubernetes_io_component!="scorer"'
EMPTY = "no rollout is running, or Prometheus does not scrape it"
NO_SWITCH = "no switch of version in this period"
NO_VLLM = "no vLLM answers its agent"
NO_SCORER = "the run has no scorers, or has not used them yet"


def rollout_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-rollout",
        "SpinRun / Rollout",
        "The rollouts of one run: sampling, version changes, and vLLM itself; and its scorers, if it has any.",
        [
            variable("namespace", "Namespace", "label_values(spinrun_rollout_version, namespace)"),
            variable("run", "Run", 'label_values(spinrun_rollout_version{namespace="$namespace"}, spinrun_dev_run)'),
        ],
        [
            Row("Now", 4, _now()),
            Row("Sampling", 3, _sampling()),
            Row("Version changes", 3, _versions()),
            Row("vLLM", 3, _vllm()),
            Row("Agents", 2, _agents()),
            Row("Scorers", 2, _scorers()),
        ],
    )


def _rate(metric: str, by: str) -> str:
    return rate(metric, RUN, by)


def _now() -> list[AnyPanel]:
    return [
        figure("Rollouts", "none", "Rollouts that Prometheus scrapes.", f"count(spinrun_rollout_version{{{RUN}}})", empty="none"),
        figure(
            "Oldest version",
            "none",
            "Oldest version being served. -1: a rollout serves none.",
            f"min(spinrun_rollout_version{{{RUN}}})",
            empty="none",
        ),
        figure("Newest version", "none", "Newest version being served.", f"max(spinrun_rollout_version{{{RUN}}})", empty="none"),
        figure(
            "Prompts being answered",
            "none",
            "By all rollouts together.",
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
            "length: cut off at spec.rollout.maxTokens. If there are many, it is too short.",
            Query(_rate("spinrun_rollout_samples_total", "finish_reason"), "{{finish_reason}}"),
            empty=EMPTY,
        ),
        curves(
            "Prompts being answered",
            "none",
            "By each rollout. If they stay uneven, one rollout is slower than the others.",
            Query(f"max by (pod) (spinrun_rollout_requests_in_flight{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Failed prompts",
            "suffix: prompts/s",
            "By reason. They are sent to another rollout.",
            Query(_rate("spinrun_rollout_prompt_failures_total", "reason"), "{{reason}}"),
            empty="no prompt failed",
        ),
        curves(
            "Refused calls",
            "reqps",
            "By reason. A brief StaleVersion is normal while the version changes; Unauthorized never is.",
            Query(_rate("spinrun_rollout_refused_total", "reason"), "{{reason}}"),
            empty="no call was refused",
        ),
    ]


def _versions() -> list[AnyPanel]:
    return [
        curves(
            "Version being served",
            "none",
            "By each rollout; -1 for none. All lines should rise together, step by step.",
            Query(f"max by (pod) (spinrun_rollout_version{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "Staging",
            "s",
            "Time to copy a version to the pod and verify it, while vLLM still serves the previous one.",
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
            "Time during which no sample could be requested because the version was changing.",
            *quantiles("spinrun_rollout_switch_seconds", RUN),
            empty=NO_SWITCH,
        ),
        curves(
            "Pause of vLLM",
            "s",
            "Part of the switch during which vLLM was paused to load weights.",
            *quantiles("spinrun_rollout_pause_seconds", RUN),
            empty=NO_SWITCH,
        ),
        curves(
            "Failures",
            "none",
            "Within the last hour: failed attempts to stage a version, and failed switches. Both are retried.",
            Query(f"sum(increase(spinrun_rollout_staging_failures_total{{{RUN}}}[1h]))", "staging"),
            Query(f"sum(increase(spinrun_rollout_switch_failures_total{{{RUN}}}[1h]))", "switch"),
            empty=EMPTY,
        ),
    ]


def _vllm() -> list[AnyPanel]:
    return [
        curves(
            "Tokens in vLLM",
            TOKENS + "/s",
            "Prompt tokens processed and completion tokens generated, by all rollouts together.",
            Query(f"sum(rate(vllm:prompt_tokens_total{{{RUN}}}[$__rate_interval]))", "prompts"),
            Query(f"sum(rate(vllm:generation_tokens_total{{{RUN}}}[$__rate_interval]))", "completions"),
            empty=NO_VLLM,
        ),
        share(
            "KV cache in use",
            "Of each rollout. At 100 % vLLM preempts requests: allow fewer at a time, or give it more memory.",
            Query(f"max by (pod) (vllm:kv_cache_usage_perc{{{RUN}}})", "{{pod}}"),
            empty=NO_VLLM,
        ),
        curves(
            "Requests in vLLM",
            "none",
            "Running, and waiting for room.",
            Query(f"sum(vllm:num_requests_running{{{RUN}}})", "running"),
            Query(f"sum(vllm:num_requests_waiting{{{RUN}}})", "waiting"),
            empty=NO_VLLM,
        ),
        curves(
            "Preemptions",
            "suffix: requests/s",
            "Requests that lost their place in the KV cache and had to start again.",
            Query(_rate("vllm:num_preemptions_total", "pod"), "{{pod}}"),
            empty=NO_VLLM,
        ),
        share(
            "Prefix cache hits",
            "Share of prompt tokens that vLLM found in its cache. High, because each prompt is sampled several times.",
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
            "From arrival at vLLM to the last token.",
            *quantiles("vllm:e2e_request_latency_seconds", RUN),
            empty=NO_VLLM,
        ),
    ]


def _agents() -> list[AnyPanel]:
    return [
        curves(
            "Memory",
            "bytes",
            "Resident memory of the agents.",
            Query(f"max by (pod) (process_resident_memory_bytes{{{RUN}}})", "{{pod}}"),
            empty=EMPTY,
        ),
        curves(
            "CPU usage",
            "suffix: cores",
            "Cores used by the agents.",
            Query(_rate("process_cpu_seconds_total", "pod"), "{{pod}}"),
            empty=EMPTY,
        ),
    ]


def _scorers() -> list[AnyPanel]:
    return [
        stacked(
            "Scoring requests",
            "suffix: requests/s",
            "By HTTP status. 503: vLLM is starting or restarting. 401: a client without the run's token.",
            Query(rate("spinrun_scorer_request_seconds_count", SCORERS, "status"), "{{status}}"),
            empty=NO_SCORER,
        ),
        curves(
            "Duration of a scoring request",
            "s",
            "Each is for one answer, or for up to 32 texts.",
            *quantiles("spinrun_scorer_request_seconds", SCORERS),
            empty=NO_SCORER,
        ),
    ]
