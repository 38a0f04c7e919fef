"""Prompts: read from their source, turned into token ids, and drawn in an order that a restart repeats."""

from spinrun_worker.data.encoding import Encoder
from spinrun_worker.data.prompts import PromptSet, check_disjoint, encode_answer, load_prompts
from spinrun_worker.data.stream import Part, PromptStream, row_and_epoch

__all__ = [
    "Encoder",
    "Part",
    "PromptSet",
    "PromptStream",
    "check_disjoint",
    "encode_answer",
    "load_prompts",
    "row_and_epoch",
]
