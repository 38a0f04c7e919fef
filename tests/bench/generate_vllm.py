"""A contender: vLLM's own `LLM.generate`, in one process and with the arguments that SpinRun starts it with."""

import argparse
import os
from functools import partial

from bench import workload
from spinrun_api.documents import parse_run
from spinrun_protocol import commands


def main() -> None:
    """Prints seconds of each generation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    run = parse_run(workload.online_run(options.model, windows=1))
    process = commands.vllm(run, accelerator="cpu", dtype="float32")
    os.environ |= process.environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        options.model,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=True,
        max_model_len=run.spec.max_prompt_tokens + workload.NEW_TOKENS,
        block_size=32,
        max_num_seqs=workload.GENERATION_SEQUENCES,
        kv_cache_memory_bytes=workload.KV_CACHE_BYTES,
        distributed_executor_backend=commands.ONE_PROCESS_EXECUTOR,
        worker_cls=commands.CPU_WORKER,
        generation_config="vllm",
        disable_log_stats=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    sampling = SamplingParams(n=workload.GENERATION_ANSWERS, temperature=workload.TEMPERATURE, max_tokens=workload.NEW_TOKENS)
    repeats: list[float] = []
    for repeat in range(options.repeats + 1):
        prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in workload.chat_prompts(tokenizer, repeat)]
        repeats.append(workload.seconds(partial(llm.generate, prompts, sampling, use_tqdm=False)))
    workload.tell(seconds=repeats[1:], samples=workload.GENERATION_PROMPTS * workload.GENERATION_ANSWERS)


if __name__ == "__main__":
    main()
