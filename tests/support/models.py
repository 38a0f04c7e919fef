"""A tiny random model that every library here loads (transformers, the trainer, vLLM), and pairs to train it on."""

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from spinrun_worker.records import Pair

VOCABULARY_SIZE = 512
SPECIAL_TOKENS = ("<pad>", "<bos>", "<|im_start|>", "<|im_end|>")
END_TOKENS = {"pad": "<pad>", "bos": "<bos>", "eos": "<|im_end|>"}
SMALLEST: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
FREQUENT_LETTERS = "etaoinshrdlucmfw"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(
    directory: Path, *, seed: int = 0, layers: int = 2, tie_word_embeddings: bool = True, dtype: torch.dtype = torch.float32
) -> Path:
    """A random Llama and its tokenizer, written to `directory` as a Hugging Face folder; the same bytes for the same arguments.

    Hidden size 128, 4 heads of 32 (vLLM's CPU attention takes no smaller), 2 key-value heads, 512 tokens, 512 positions.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    model: Any = random_llama(seed, num_hidden_layers=layers, tie_word_embeddings=tie_word_embeddings, **sizes)
    model.to(dtype).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def smallest_llama(directory: Path) -> Path:
    """A random Llama of some thousand parameters, which vLLM does not take; else as `tiny_llama`."""
    random_llama(**SMALLEST).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def random_llama(seed: int = 0, **sizes: Any) -> LlamaForCausalLM:
    """The same weights for the same arguments. sizes: fields of its configuration."""
    special = {f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in END_TOKENS.items()}
    settings: dict[str, Any] = {"vocab_size": VOCABULARY_SIZE, "max_position_embeddings": 512, **special, **sizes}
    config = LlamaConfig(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def tiny_classifier(directory: Path, *, seed: int = 0) -> Path:
    """A random Llama with a number in place of words, which differs by what it reads; else as `tiny_llama`."""
    tiny_llama(directory, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification.from_pretrained(directory, num_labels=1)
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.data *= 20
        model.score.weight.data *= 20
    model.save_pretrained(directory)
    return directory


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that every text encodes; a digit is one token, frequent pairs of letters are one; every id has a text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_merges = VOCABULARY_SIZE - len(SPECIAL_TOKENS) - len(characters)
    merges = list(product(FREQUENT_LETTERS, FREQUENT_LETTERS))[:num_merges]
    tokens = [*SPECIAL_TOKENS, *characters, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d| ?[^\s\d]+|\s"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def words_of(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    """The text of tokens."""
    text = tokenizer.decode(list(tokens))
    assert isinstance(text, str)
    return text


def random_pairs(
    count: int,
    *,
    seed: int = 0,
    prompt: tuple[int, int] = (4, 20),
    completion: tuple[int, int] = (1, 9),
    vocabulary_size: int = VOCABULARY_SIZE,
) -> list[Pair]:
    """Pairs of random tokens with lengths from (shortest, longest), without reference log-probs."""
    generator = random.Random(seed)

    def tokens(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(generator.randrange(vocabulary_size) for _ in range(generator.randint(shortest, longest)))

    return [
        Pair(f"prompt-{index}", tokens(*prompt), tokens(*completion), tokens(*completion), chosen_reward=1.0, rejected_reward=0.0)
        for index in range(count)
    ]
