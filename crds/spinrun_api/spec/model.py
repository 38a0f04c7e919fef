"""The block `model`."""

from typing import Literal

from spinrun_api.base import ApiModel
from spinrun_api.spec.types import LongText, Text


class Model(ApiModel):
    """The language model that the run starts from, version 0."""

    source: Text
    """A Hub id such as Qwen/Qwen2.5-3B-Instruct, or an absolute path of a Hugging Face folder on the
    ledger volume or in the image. Its weights are safetensors: a pickle (pytorch_model.bin) runs code and is never loaded."""

    revision: Text | None = None
    """Branch, tag or commit of a Hub model. Absent: the Hub's default branch. Name a commit to make the run repeatable."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the published weights and of vLLM's arithmetic. auto: weights as the source stores them; arithmetic in bfloat16 on
    GPUs and, on CPUs, in whichever dtype a short measurement finds faster."""

    trust_remote_code: bool = False
    """Allow the source to bring Python code of its own, which then runs in the pods. Off by default: it comes from elsewhere."""

    tokenizer: Text | None = None
    """Hub id or path of the tokenizer. Absent: the model's own."""

    chat_template: LongText | None = None
    """A Jinja chat template. Absent: the tokenizer's own."""
