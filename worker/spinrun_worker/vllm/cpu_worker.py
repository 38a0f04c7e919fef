"""A fix for vLLM on CPUs, loaded by vLLM itself: `--worker-cls spinrun_worker.vllm.cpu_worker.CpuWorker`.

vLLM's CPU backend multiplies by packed copies of the weights. `reload_weights` repacks a layer once its weights have been
loaded, but an output layer tied to the input embeddings is not in the checkpoint, so nothing is loaded for it: its weights
change with the embeddings while its packed copy stays. The model would answer with new layers and the output layer of the
weights that it started with. GPUs have no such copy.
"""

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.v1.worker.cpu_worker import CPUWorker


class CpuWorker(CPUWorker):
    """vLLM's CPU worker, whose reload reaches tied output layers."""

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Reload as vLLM does, and bring the output layer's packed copy up to date."""
        super().reload_weights(*args, **kwargs)
        layers = [layer for layer in self.get_model().modules() if isinstance(layer, VocabParallelEmbedding)]
        packed = {id(layer.weight): layer for layer in layers if not isinstance(layer, ParallelLMHead)}
        for head in layers:
            if not isinstance(head, ParallelLMHead):
                continue
            if (embeddings := packed.get(id(head.weight))) is not None:
                # vLLM has packed the embeddings too, as if they were an output layer: the same weights, in the same layout.
                head.cpu_linear = embeddings.cpu_linear
            else:
                head.quant_method.process_weights_after_loading(head)
