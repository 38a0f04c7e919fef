"""Every option of the installed vLLM is refused in `engineArgs` or known to be harmless, so that a newer one is looked at."""

import json
import subprocess
import sys

import pytest

from spinrun_api.spec.engine_args import FREE_BEGINNINGS, REFUSED_IN_ROLLOUTS, REFUSED_IN_SCORERS, refusal

pytestmark = pytest.mark.engine

# Neither ours, nor a way to code, files or the network, nor a change of what the trainer believes to be sampled.
_HARMLESS = """
aggregate-engine-logging all2all-backend anthropic-disabled-thinking-effort async-scheduling attention-backend attention-config
aux-output-config block-size chat-template-content-format cohere-format cohere-is-reasoning-model collect-detailed-traces
config-format cp-kv-cache-interleave-size cpu-distributed-timeout-seconds cpu-offload-gb cpu-offload-params
cudagraph-capture-sizes cudagraph-metrics custom-histogram-buckets dbo-decode-token-threshold dbo-prefill-token-threshold
dcp-comm-backend dcp-kv-cache-interleave-size dcp-q-replicate decode-context-parallel-size default-chat-template-kwargs
device-memory-utilization diffusion-config disable-access-log-for-endpoints disable-cascade-attn disable-chunked-mm-input
disable-custom-all-reduce disable-fastapi-docs disable-hybrid-kv-cache-manager disable-nccl-for-dp-synchronization
disable-sliding-window disable-uvicorn-access-log distributed-timeout-seconds dp-sync-interval enable-auto-tool-choice
enable-batch-sharded-sampling enable-chunked-prefill enable-cumem-allocator enable-dbo enable-ep-weight-filter enable-eplb
enable-expert-parallel enable-flash-late-interaction enable-flashinfer-autotune enable-force-include-usage enable-hc-sp
enable-layerwise-nvtx-tracing enable-logging-iteration-details enable-mamba-cache-stochastic-rounding
enable-mamba-shared-prefix-checkpoint enable-mfu-metrics enable-mixed-moe-lora-format enable-moe-shared-loras
enable-nccl-comm-suspend enable-offline-docs enable-per-request-metrics enable-prefix-caching enable-prompt-tokens-details
enable-request-id-headers enable-return-routed-experts enable-server-load-tracking enable-shm-tensor-arena
enable-tokenizer-info-endpoint enable-tower-connector-lora enforce-eager engram-config eplb-config
exclude-tools-when-tool-choice-none expert-placement-strategy fail-on-environ-validation fingerprint-mode fingerprint-value
fully-sharded-loras gdn-prefill-backend gpu-memory-utilization h11-max-header-count h11-max-incomplete-event-size
interleave-mm-strings ir-op-priority jit-monitor-mode jit-monitor-verbose kda-decode-backend kda-prefill-backend kernel-config
kv-cache-dtype kv-cache-dtype-skip-layers kv-cache-memory-bytes kv-cache-metrics kv-cache-metrics-sample kv-sharing-fast-prefill
language-model-only limit-mm-per-prompt linear-backend log-error-stack log-level long-prefill-token-threshold
long-prefill-token-threshold-adaptive lora-dtype mamba-backend mamba-block-size mamba-cache-dtype mamba-cache-mode
mamba-cache-philox-rounds mamba-ssm-cache-dtype mamba-ssu-algorithm max-cpu-loras max-cudagraph-capture-size max-log-len
max-logprobs max-lora-cls-labels max-model-len max-num-active-seqs max-num-batched-tokens max-num-queued-reqs
max-num-queued-tokens max-num-scheduled-tokens max-num-seqs max-parallel-loading-workers media-io-kwargs mm-device-do-normalize
mm-encoder-attn-backend mm-encoder-attn-dtype mm-encoder-fp8-scale-save-margin mm-encoder-only mm-encoder-tp-mode
mm-hasher-algorithm mm-ipc-gpu-memory-gb mm-processor-cache-gb mm-processor-cache-type mm-processor-device mm-processor-kwargs
mm-shm-cache-max-object-size-mb mm-tensor-ipc model-impl moe-backend num-gpu-blocks-override numa-bind numa-bind-cpus
numa-bind-nodes offload-backend offload-group-size offload-num-in-group offload-params offload-prefetch-step optimization-level
per-request-spec-decode-metrics performance-mode pipeline-parallel-size prefill-context-parallel-size prefill-schedule-interval
prefix-cache-retention-interval prefix-caching-hash-algo prefix-match-unit ray-workers-use-nsight reasoning-config
reasoning-parser renderer-num-workers replayssm-buffer-len response-role return-sampling-mask return-tokens-as-token-ids
safetensors-load-strategy safetensors-prefetch-block-size safetensors-prefetch-num-threads scheduler-reserve-full-isl
scheduling-policy seed show-hidden-metrics-for-version shutdown-timeout skip-mm-profiling sparse-indexer-topk-backend
specialize-active-lora sse-keep-alive-interval stream-interval swa-bounded-replay tokenizer-mode tool-call-parser
tool-strict-level ubatch-size use-fp64-gumbel use-replayssm use-tqdm-on-load uvicorn-log-level video-pruning-method
video-pruning-rate watermark
"""
HARMLESS = _HARMLESS.split()

OPTIONS = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
print(json.dumps([text for action in parser._actions for text in action.option_strings]))
"""


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The long names of the options of vLLM's server."""
    done = subprocess.run([sys.executable, "-c", OPTIONS], capture_output=True, text=True, check=True)
    names = {text.removeprefix("--") for text in json.loads(done.stdout.splitlines()[-1]) if text.startswith("--")}
    return {name for name in names if name.removeprefix("no-") == name or name.removeprefix("no-") not in names}


def test_every_option_has_been_looked_at(options: set[str]) -> None:
    assert options - REFUSED_IN_ROLLOUTS.keys() - REFUSED_IN_SCORERS.keys() == set(HARMLESS)


def test_every_refused_argument_is_an_option(options: set[str]) -> None:
    assert (REFUSED_IN_ROLLOUTS.keys() | REFUSED_IN_SCORERS.keys()) - options == set()


def test_no_harmless_option_is_taken_for_the_beginning_of_a_refused_one(options: set[str]) -> None:
    assert set(FREE_BEGINNINGS) <= options
    refused = [name for name in HARMLESS for lists in (REFUSED_IN_ROLLOUTS, REFUSED_IN_SCORERS) if refusal(name, lists)]
    assert refused == []
