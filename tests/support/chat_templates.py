"""How well-known families write a conversation, in the least form that matters here: what stands around a message."""

from dataclasses import dataclass

from transformers import AddedToken, PreTrainedTokenizerFast

from support.models import tiny_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A chat template, the tokens it writes, and where the model's own answers end."""

    template: str
    eos: str
    """The tokenizer's."""
    ends: tuple[str, ...]
    """Tokens that generation_config.json names, beside the tokenizer's eos."""
    want: str
    """What an assistant's message ends with."""
    tokens: tuple[str, ...] = ()
    """Special tokens, beside those."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tiny tokenizer of the family."""
        tokenizer = tiny_tokenizer()
        names = dict.fromkeys((self.eos, *self.ends, self.want, *self.tokens))
        tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
        tokenizer.eos_token = self.eos
        tokenizer.chat_template = self.template
        return tokenizer


FAMILIES: dict[str, Family] = {
    "ChatML": Family(CHATML, "<|im_end|>", (), "<|im_end|>"),
    "SmolLM2": Family(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful<|im_end|>\n{% endif %}" + CHATML,
        "<|im_end|>",
        (),
        "<|im_end|>",
    ),
    "Qwen2.5": Family(CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), "<|im_end|>"),
    "Qwen2.5 base": Family(CHATML, "<|endoftext|>", ("<|im_end|>",), "<|im_end|>"),
    "Qwen3": Family(
        CHATML.replace("{{ message.content }}", "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}"),
        "<|im_end|>",
        ("<|endoftext|>",),
        "<|im_end|>",
    ),
    "Gemma": Family(
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
        "{{ message.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<eos>",
        ("<eos>", "<end_of_turn>"),
        "<end_of_turn>",
        ("<start_of_turn>",),
    ),
    "Phi-3": Family(
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|endoftext|>",
        ("<|endoftext|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        ("<|user|>",),
    ),
    "Llama 3": Family(
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|end_of_text|>",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Llama 2": Family(
        "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
        "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        (),
        "</s>",
    ),
    "Mistral": Family(
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }}[/INST]"
        "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ("</s>",),
        "</s>",
        ("[INST]", "[/INST]"),
    ),
    "Zephyr": Family(
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "</s>",
        (),
        "</s>",
    ),
    # Nothing ends an assistant's message but the beginning of the next one, which the model writes itself.
    "GLM-4": Family(
        "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|endoftext|>",
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        "<|user|>",
        ("[gMASK]", "<sop>", "<|assistant|>"),
    ),
}
