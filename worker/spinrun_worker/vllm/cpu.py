"""vLLM's server for CPUs: `python3 -m spinrun_worker.vllm.cpu` takes the server's own arguments, and forks its engine.

On CPUs vLLM spawns its engine: a second Python that imports torch and vLLM again, which takes seconds, and hundreds of
megabytes that a forked one shares with the server. VLLM_WORKER_MULTIPROC_METHOD cannot be set from outside, because vLLM's
platform for CPUs overwrites it while checking the configuration.
"""

import os
import runpy

import vllm.platforms
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform


class ForkingCpuPlatform(CpuPlatform):
    """vLLM's platform for CPUs, except for how the engine is started."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Check as vLLM does, and have the engine forked."""
        super().check_and_update_config(vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def main() -> None:
    """Serve until told to stop."""
    # Before any other part of vLLM asks for the platform.
    vllm.platforms.current_platform = ForkingCpuPlatform()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
