"""A contender: the same prompts through SpinRun's collector, agent and vLLM server."""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer

from bench import workload
from spinrun_api.documents import parse_run
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Sampling, VersionWanted
from spinrun_worker.ledger import LedgerWriter, hash_file
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.client import RolloutClient
from support.engines import AgentProcess, VllmServer
from support.rollouts import TOKEN, UID


def publish_source(model: Path, ledger: Path) -> Manifest:
    """The source model as version 0."""
    writer = LedgerWriter(ledger, UID, attempt=1)
    writer.claim()
    directory = writer.begin("weights", 0)
    for file in model.iterdir():
        os.link(file, directory / file.name)
    return writer.commit("weights", 0, [hash_file(path) for path in sorted(directory.iterdir())], step=0, version=0)


def main() -> None:
    """Prints seconds of each generation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    document = workload.online_run(options.model, windows=1)
    document["metadata"]["uid"] = UID
    run = parse_run(document)
    # On the model's own file system, so that its files can be linked.
    with tempfile.TemporaryDirectory(dir=Path(options.model).parent) as folder:
        weights = publish_source(Path(options.model), Path(folder) / "ledger")
        vllm = VllmServer(run, Path(folder) / "vllm.log")
        agent = AgentProcess(run, ledger=Path(folder) / "ledger", vllm=vllm.url, folder=Path(folder) / "agent")
        try:
            vllm.start()
            agent.start()
            vllm.wait_until_up()
            agent.wait_until_up()
            workload.tell(**generations(agent.url, weights, options))
        finally:
            agent.stop()
            vllm.stop()


def generations(url: str, weights: Manifest, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of each generation, the first one left out."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    sampling = Sampling(n=workload.GENERATION_ANSWERS, temperature=workload.TEMPERATURE, max_tokens=workload.NEW_TOKENS)
    repeats: list[float] = []
    with RolloutClient(url, TOKEN) as client:
        client.activate(VersionWanted(version=0, manifest=weights))
        for repeat in range(options.repeats + 1):
            prompts = [
                PromptRecord(f"{repeat}-{index}", tuple(tokens), "", None, {})
                for index, tokens in enumerate(workload.chat_prompts(tokenizer, repeat))
            ]
            start = partial(client.start, prompts, version=0, digest=weights.digest, sampling=sampling)
            repeats.append(workload.seconds(lambda start=start: start().result()))
    return {"seconds": repeats[1:], "samples": workload.GENERATION_PROMPTS * workload.GENERATION_ANSWERS}


if __name__ == "__main__":
    main()
