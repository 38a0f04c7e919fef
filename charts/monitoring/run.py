"""The dashboard of one run: is it learning, from what, and what is it waiting for?"""

from monitoring.panels import (
    NATS,
    TOKENS,
    AnyPanel,
    Query,
    Row,
    curves,
    figure,
    page,
    rate,
    share,
    stacked,
    trainer,
    variable,
    word,
)

UID = "spinrun-run"
RUN = 'namespace="$namespace", run="$run"'
ROLLOUTS = 'namespace="$namespace", spinrun_dev_run="$run"'
ACTIVITIES = ("publish", "activate", "evaluate", "generate", "score", "reference", "train", "checkpoint")
WRITERS = {"weights": "publish", "checkpoint": "checkpoint"}
"""What is written to the ledger, and the activity that writes it."""
MODELS = (("", "policy"), ("ref_", "reference"))
PARTS = ("pairs", "ties", "identical", "unrated")
OUTCOMES = {
    "paired_prompts": "pairs",
    "all_right": "all right",
    "all_wrong": "all wrong",
    "other_ties": "other ties",
    "identical": "identical",
    "unrated": "unrated",
}
"""What became of a window's prompts, and how a curve calls it."""
TROUBLES = ("retried", "failed_calls", "refused", "duplicates", "hedged", "dropped")
REQUESTS = ("requests", "retries", "failures", "disagreements")

NO_TRAINER = "no trainer is running, or Prometheus does not scrape it"
NO_STEP = "no step yet, or the run is over"
NO_VERSION = "nothing written yet, or the run is over"
NO_WINDOW = "no window finished yet, or the run is over"
NO_EVALUATION = "no evaluation yet: spec.data.evaluation says whether and when there is one"
NO_ROLLOUT = "no rollout is running, or Prometheus does not scrape it"
NO_TROUBLE = "no problems"
NO_LOGPROBS = "nothing says the log-prob of each token: see spec.rollout.logprobs"


def run_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        UID,
        "SpinRun / Run",
        "One run: its curves, its data, its time. Vertical lines mark new windows.",
        [
            variable("namespace", "Namespace", "label_values(spinrun_trainer_step_number, namespace)"),
            variable("run", "Run", 'label_values(spinrun_trainer_step_number{namespace="$namespace"}, run)'),
        ],
        [
            Row("Now", 6, _now()),
            Row("Is it learning?", 4, _learning()),
            Row("What does it learn from?", 4, _data()),
            Row("What is it waiting for?", 3, _time()),
            Row("Optimizer and memory", 4, _machine()),
        ],
        marks='changes(spinrun_trainer_window{namespace="$namespace", run="$run"}[2m]) > 0',
    )


def _now() -> list[AnyPanel]:
    best = f"max(max_over_time(spinrun_trainer_evaluation_accuracy{{{RUN}}}[$__range]))"
    serving = f"count(spinrun_rollout_version{{{ROLLOUTS}}} >= 0)"
    activity = f"max by (activity) (spinrun_trainer_activity{{{RUN}}}) == 1"
    return [
        word("Activity", "What the trainer is doing.", Query(activity, "{{activity}}"), empty=NO_TRAINER),
        figure(
            "Progress",
            "percentunit",
            "Share of the run's steps that are done.",
            f"{trainer('step_number')} / {trainer('steps')}",
            empty=NO_STEP,
        ),
        figure(
            "Estimated end",
            "dateTimeFromNow",
            "When the run will end at the pace of its last window.",
            f"1000 * {trainer('end_timestamp_seconds')}",
            empty="known after the first window",
        ),
        figure("Window", "none", "The current window, counted from 0.", trainer("window"), empty=NO_STEP),
        figure("Step", "none", "Optimizer steps done.", trainer("step_number"), empty=NO_STEP),
        figure("Version", "none", "The version that current samples and steps belong to.", trainer("version"), empty=NO_STEP),
        figure(
            "Accuracy",
            "none",
            "Latest mean reward of the held-out answers.",
            trainer("evaluation_accuracy"),
            empty="not evaluated",
        ),
        figure("Initial accuracy", "none", "Accuracy of version 0.", trainer("initial_accuracy"), empty="not evaluated"),
        figure("Best accuracy", "none", "The best within the time range shown.", best, empty="not evaluated"),
        figure("Reward", "none", "Mean reward of the last window's samples.", trainer("window_reward_mean"), empty=NO_WINDOW),
        figure("Share of ties", "percentunit", "In the last window; see below.", _share_of_ties(), empty=NO_WINDOW),
        figure("Ready rollouts", "none", "Rollouts that are serving a version.", serving, empty="none"),
    ]


def _learning() -> list[AnyPanel]:
    return [
        curves(
            "Accuracy",
            "none",
            "Mean reward of the held-out answers, sampled greedily. The curve that matters: it should rise.",
            Query(trainer("evaluation_accuracy"), "accuracy"),
            Query(trainer("initial_accuracy"), "initial"),
            empty=NO_EVALUATION,
        ),
        curves(
            "Reward",
            "none",
            "Mean reward of a window's samples. It should rise with the accuracy; if it rises alone, the reward is being gamed.",
            Query(trainer("window_reward_mean"), "mean reward"),
            empty=NO_WINDOW,
        ),
        curves(
            "Loss",
            NATS,
            "Loss of the step, per pair. It falls within a window, and starts each window at the same value.",
            Query(trainer("loss"), "loss"),
            empty=NO_STEP,
        ),
        curves(
            "Margin",
            NATS,
            "beta times the log-ratio to the reference, chosen minus rejected. It rises within a window.",
            Query(trainer("rewards_margins"), "margin"),
            empty=NO_STEP,
        ),
        curves(
            "Chosen and rejected",
            NATS,
            "beta times the log-ratio to the reference. If both fall far, the policy is leaving the chosen answers, too.",
            Query(trainer("rewards_chosen"), "chosen"),
            Query(trainer("rewards_rejected"), "rejected"),
            empty=NO_STEP,
        ),
        share(
            "Pairs with a positive margin",
            "Share of pairs whose margin is above zero. About one half at the start of a window.",
            Query(trainer("rewards_accuracies"), "share"),
            empty=NO_STEP,
        ),
        curves(
            "Log-probs of the answers",
            NATS,
            "Of chosen and rejected answers, under the policy and under the reference, summed over tokens.",
            *[Query(trainer(f"{of}logps_{kind}"), f"{who} {kind}") for of, who in MODELS for kind in ("chosen", "rejected")],
            empty=NO_STEP,
        ),
        share(
            "Clipped tokens",
            "With the method grpo: share of a step's tokens that no longer move the model, because they have become much less or "
            "much more likely since the window began. None in its first step; above a few per cent, take fewer steps a window.",
            Query(trainer("clip_ratio_low_mean"), "below"),
            Query(trainer("clip_ratio_high_mean"), "above"),
            empty="only with the method grpo",
        ),
        curves(
            "Entropy",
            NATS,
            "Mean of -log p over a window's sampled tokens. It falls as the model becomes certain; near 0 all answers are alike.",
            Query(trainer("window_entropy"), "entropy"),
            empty=NO_LOGPROBS,
        ),
        curves(
            "Rollouts against trainer",
            NATS,
            "How far the two are apart on the same tokens, at a window's first step. It should stay small and not grow.",
            Query(trainer("logps_mismatch"), "mean"),
            Query(trainer("logps_mismatch_p95"), "95th percentile"),
            Query(trainer("logps_mismatch_max"), "largest"),
            empty=NO_LOGPROBS,
        ),
    ]


def _share_of_ties() -> str:
    whole = " + ".join(trainer(f"window_{part}") for part in PARTS)
    return f"{trainer('window_ties')} / ({whole})"


def _data() -> list[AnyPanel]:
    return [
        stacked(
            "What became of the prompts",
            "none",
            "Prompts of a window that gave pairs, and those that gave nothing to learn from: answers all right or all wrong, "
            "other equal rewards (other ties), the same text (identical), no reward (unrated).",
            *[Query(trainer(f"window_{outcome}"), legend) for outcome, legend in OUTCOMES.items()],
            empty=NO_WINDOW,
        ),
        share(
            "Share of ties",
            "Ties among pairs and prompts without one. Near 100 %, the prompts are too easy or too hard, or the rule recognizes "
            "no difference.",
            Query(_share_of_ties(), "ties"),
            empty=NO_WINDOW,
        ),
        curves(
            "Samples",
            "none",
            "Samples in a window, and how many of them got no reward.",
            Query(trainer("window_samples"), "samples"),
            Query(trainer("window_dropped_samples"), "without a reward"),
            empty=NO_WINDOW,
        ),
        curves(
            "Length of answers",
            TOKENS,
            "Mean and longest in a window. If the mean doubles without a better accuracy, length is being rewarded.",
            Query(trainer("window_response_length_mean"), "mean"),
            Query(trainer("window_response_length_max"), "longest"),
            Query(trainer("evaluation_response_length_mean"), "held-out, mean"),
            empty=NO_WINDOW,
        ),
        share(
            "Truncated answers",
            "Share of answers that reached spec.rollout.maxTokens. They are rarely right: above a few per cent, raise it.",
            Query(trainer("window_response_length_truncated"), "samples"),
            Query(trainer("evaluation_response_length_truncated"), "held-out"),
            empty=NO_WINDOW,
        ),
        curves(
            "Problems with rollouts",
            "none",
            "Since the attempt began: prompts retried, calls that failed, answers refused or duplicated, prompts also sent to a "
            "second rollout, prompts that no model can answer.",
            *[Query(trainer(f"window_rollouts_{trouble}_total"), trouble.replace("_", " ")) for trouble in TROUBLES],
            empty=NO_TROUBLE,
        ),
        curves(
            "Preference model",
            "none",
            "Since the attempt began: requests, those retried, those given up, and comparisons whose outcome changed with the "
            "order. With many disagreements, the model prefers a position rather than an answer.",
            *[Query(trainer(f"window_preference_{count}_total"), count) for count in REQUESTS],
            empty="no model is used: a rule gives the rewards",
        ),
    ]


def _time() -> list[AnyPanel]:
    return [
        stacked(
            "Time of a window by activity",
            "s",
            "Where the time of the last window went. The widest band is the bottleneck.",
            *[Query(trainer(f"window_timing_{activity}_seconds"), activity) for activity in ACTIVITIES],
            empty=NO_WINDOW,
        ),
        stacked(
            "Time by activity",
            "percentunit",
            "Where the time is going now. starting: until the first version, and whatever is between the others.",
            Query(rate("spinrun_trainer_activity_seconds_total", RUN, "activity"), "{{activity}}"),
            empty=NO_TRAINER,
        ).max(1),
        curves(
            "Generation throughput",
            TOKENS + "/s",
            "Completion tokens per second: of the last window, as the trainer measured it, and now, as the rollouts count them.",
            Query(trainer("window_throughput_tokens_per_second"), "window"),
            Query(f"sum(rate(spinrun_rollout_tokens_total{{{ROLLOUTS}}}[$__rate_interval]))", "rollouts now"),
            empty=NO_WINDOW,
        ),
        curves(
            "Training throughput",
            TOKENS + "/s",
            "Tokens of a step's pairs divided by its duration.",
            Query(f"{trainer('tokens')} / {trainer('timing_train_seconds')}", "training"),
            empty=NO_STEP,
        ),
        share(
            "Model FLOPs utilization",
            "A step's arithmetic as a share of this hardware's fastest matrix products in the same time. It falls with short "
            "answers, small steps and other work on the machine.",
            Query(trainer("mfu"), "training"),
            empty=NO_STEP,
        ),
        stacked(
            "Rollouts by version",
            "none",
            "How many rollouts serve which version. If there are two versions for long, a rollout does not keep up.",
            Query(f"count by (version) (spinrun_rollout_version_info{{{ROLLOUTS}}} == 1)", "version {{version}}"),
            empty=NO_ROLLOUT,
        ),
        curves(
            "Prompts being answered",
            "none",
            "By all rollouts together. Zero while the trainer trains, without overlap.",
            Query(f"sum(spinrun_rollout_requests_in_flight{{{ROLLOUTS}}})", "in flight"),
            empty=NO_ROLLOUT,
        ),
        curves(
            "Duration of a step",
            "s",
            "Forward, backward and optimizer of one step.",
            Query(trainer("timing_train_seconds"), "step"),
            empty=NO_STEP,
        ),
        curves(
            "Written to the ledger",
            "bytes",
            "Weights and checkpoints of this attempt, including those deleted since.",
            *[Query(_written(kind), "{{kind}}") for kind in WRITERS],
            empty=NO_VERSION,
        ),
        curves(
            "Write throughput",
            "Bps",
            "Bytes divided by the time of publish and checkpoint, over this attempt so far.",
            *[Query(f"{_written(kind)} / on () {_seconds(activity)}", "{{kind}}") for kind, activity in WRITERS.items()],
            empty=NO_VERSION,
        ),
    ]


def _written(kind: str) -> str:
    return f'max by (kind) (spinrun_trainer_written_bytes_total{{{RUN}, kind="{kind}"}})'


def _seconds(activity: str) -> str:
    return f'max(spinrun_trainer_activity_seconds_total{{{RUN}, activity="{activity}"}})'


def _machine() -> list[AnyPanel]:
    return [
        curves(
            "Gradient norm",
            "none",
            "Before clipping. If it jumps, lower the learning rate.",
            Query(trainer("grad_norm"), "norm"),
            empty=NO_STEP,
        ),
        curves("Learning rate", "sci", "According to the schedule.", Query(trainer("lr"), "learning rate"), empty=NO_STEP),
        curves(
            "Tokens and pairs per step",
            "short",
            "How much data each step learns from.",
            Query(trainer("tokens"), "tokens"),
            Query(trainer("pairs"), "pairs"),
            empty=NO_STEP,
        ),
        curves(
            "Memory",
            "bytes",
            "Resident memory of the agents, without vLLM, and the peak of the trainer's rank 0.",
            Query(f"max by (pod) (process_resident_memory_bytes{{{ROLLOUTS}}})", "{{pod}}"),
            Query(trainer("memory_peak_bytes"), "trainer, peak"),
            Query(trainer("cuda_memory_peak_bytes"), "trainer's GPU, peak"),
            empty=NO_ROLLOUT,
        ),
    ]
