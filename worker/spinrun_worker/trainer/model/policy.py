"""The policy: a causal language model that turns pairs into log-probs of their completions.

Any causal language model of attention layers will do, the one inside a model for images too. Where its attention is
transformers' AttentionInterface, pairs are packed into one row; where a family brings its own, as Falcon, or does not hand the
row's layout down to it, as StableLM, every completion is a sequence of its own in a padded batch. A model that would be trained
wrongly either way is refused when it is loaded, by comparison with its own plain forward pass.
"""

# S = completions (2P), T = packed tokens, L = tokens of the longest sequence, C = completion tokens, D = hidden size,
# V = vocabulary

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from spinrun_api.spec import Lora, Model
from spinrun_worker.model_files import GENERATION_CONFIG, check_names, find_file, hub_names
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.attention import IMPLEMENTATION, NotPackableError, PairsLayout, UnsupportedModelError
from spinrun_worker.trainer.model.conversion import call_converted, convert_linears
from spinrun_worker.trainer.model.files import ModelError, check_files, loading, place_of
from spinrun_worker.trainer.model.logprobs import at_least_fp32, logit_transform, sum_by_completion, token_logprobs
from spinrun_worker.trainer.model.lora import add_adapters, file_name, merge
from spinrun_worker.trainer.model.packing import MicroBatch, pack, unpack

logger = logging.getLogger(__name__)

# Causal masks and rotary angles, which older files hold and newer code computes: nothing that could be trained or lost.
_CONSTANTS = re.compile(
    r"(^|\.)((attn|attention|self_attn)(\.attention)?\.(bias|masked_bias|causal_mask)|rotary_emb\.(inv_freq|cos_cached|sin_cached))$"
)


class Policy(nn.Module):
    """A causal language model over packed pairs."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.packs = True
        """Whether pairs are packed; False pads their sequences."""
        self._file_names = _file_names(model)
        self._transform = logit_transform(self.config)
        self._longest_sequence = _longest_sequence(self.config)
        self.temperature = 1.0
        """What logits are divided by before log-probs are taken."""
        self.compute_dtype: torch.dtype | None = None
        """Dtype of the arithmetic; None means that of the weights."""
        self.adapters: LoraConfig | None = None
        """The adapters that are trained in place of the model's own weights; None where those are trained."""
        self.generation_config: bytes | None = None
        """The source's generation_config.json, as it is; None where it has none."""
        # Dropout stays off: the policy is also the reference that it is compared with.
        self.eval()

    def forward(self, micro: MicroBatch) -> Tensor:
        """Summed log-probs of the completions at `temperature`.

        Args:
            micro: Packed pairs. If they have weights, the sums are weighted.

        Returns:
            [2P] in nats, fp32: of pair 0's chosen and rejected, of pair 1's … With noise, [2P, 2]: log-probs, and the summed
            `logprobs.contrasts`. By token, [C] or [C, 2] of all completion tokens instead.

        Raises:
            UnsupportedModelError: A pair is longer than the model's positions allow for packing.
        """
        if not isinstance(self, FSDPModule) and self.arithmetic_dtype != next(self.parameters()).dtype:
            return call_converted(self, self.arithmetic_dtype, micro)
        self._check_length(micro.layout)
        head = cast(nn.Module, self.model.get_output_embeddings())
        values_C = token_logprobs(
            self._packed_states(micro) if self.packs else self._padded_states(micro),
            micro.target_C,
            head,
            vocabulary_size=self.config.vocab_size,
            transform=self._transform,
            temperature=self.temperature,
            noise_CK=micro.noise_CK,
        )
        return values_C if micro.by_token else sum_by_completion(values_C, micro.lengths_S, micro.weight_C)

    def _packed_states(self, micro: MicroBatch) -> Tensor:
        """[C, D] hidden states that predict the completion tokens, of all pairs in one row."""
        output = self.model.get_decoder()(
            input_ids=micro.token_ids_T[None],
            position_ids=micro.position_ids_T[None],
            use_cache=False,
            pairs=micro.layout,
        )
        return cast(Tensor, output.last_hidden_state)[0].index_select(0, micro.source_C)

    def _padded_states(self, micro: MicroBatch) -> Tensor:
        """[C, D] the same, of every completion after its prompt as a sequence of its own.

        Padding follows the sequence: no token of a causal model sees it. All sequences are one batch, because ranks that share
        layers must all call them the same number of times.
        """
        tokens_SL, places_C = unpack(micro.layout)
        tokens_SL, places_C = tokens_SL.to(micro.token_ids_T.device), places_C.to(micro.token_ids_T.device)
        output = self.model.get_decoder()(input_ids=micro.token_ids_T[tokens_SL], use_cache=False)
        return cast(Tensor, output.last_hidden_state).flatten(0, 1).index_select(0, places_C)

    def num_tokens(self, pair: Pair) -> int:
        """Tokens that a pair takes in a micro-batch: if it is not packed, those of two sequences of equal length."""
        return pair.num_tokens if self.packs else 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a version consists of, by name; the same names in the same order on every rank.

        These are all parameters and persistent buffers by the names that the model's files have for them, with tied weights
        once; or, where adapters are trained, the adapters alone, by their names in peft's file. They are the tensors themselves,
        not copies: DTensors when sharded.
        """
        once = {name for name, _ in self.named_parameters()}
        tied_again = {name for name, _ in self.named_parameters(remove_duplicate=False)} - once
        # The state dict of the whole module, because FSDP then frees what a forward pass has gathered.
        tensors = cast(dict[str, Tensor], self.state_dict())
        if self.adapters is not None:
            trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
            return {file_name(name.removeprefix("model.")): tensors[name] for name in trained}
        of_model = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name not in tied_again}
        return {self._file_names.get(name, name): tensor for name, tensor in of_model.items()}

    @property
    def arithmetic_dtype(self) -> torch.dtype:
        """Dtype that the layers compute in."""
        return self.compute_dtype or next(self.parameters()).dtype

    def release(self) -> None:
        """Free the weights that a forward pass without a backward pass has gathered."""
        if isinstance(self, FSDPModule):
            self.reshard()

    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers, each of which is sharded and recomputed as a unit.

        Raises:
            UnsupportedModelError: The model does not keep its layers in one list.
        """
        for child in self.model.get_decoder().children():
            if isinstance(child, nn.ModuleList) and len(child) == self.config.num_hidden_layers:
                return list(child)
        raise UnsupportedModelError(f"{type(self.model).__name__} does not keep its layers in one list: use another model")

    def _check_length(self, layout: PairsLayout) -> None:
        longest = max(pair.prompt + max(pair.chosen, pair.rejected) for pair in layout.pairs)
        if self._longest_sequence is not None and longest > self._longest_sequence:
            raise UnsupportedModelError(
                f"a sequence of {longest} tokens is longer than {self._longest_sequence}, beyond which this model's rotary "
                "positions depend on the length (config.rope_parameters): lower data.maxPromptTokens or rollout.maxTokens"
            )


def load_policy(model: Model, *, master_dtype: torch.dtype = torch.float32, lora: Lora | None = None, seed: int = 0) -> Policy:
    """Load a whole model into main memory, with new adapters where these are to be trained, and check it.

    Args:
        model: The spec's block.
        master_dtype: Dtype of the weights that the optimizer updates.
        lora: The adapters to train; None trains the model's own weights.
        seed: Seed of the adapters.

    Raises:
        ModelError: The model cannot be loaded completely.
        UnsupportedModelError: It would be trained wrongly.
        ConfigurationError: It cannot have these adapters.
        RunError: It cannot be reached now.
    """
    with loading(model):
        policy = Policy(_load(model, master_dtype))
        generation_config = find_file(model.source, model.revision, GENERATION_CONFIG)
        policy.generation_config = generation_config.read_bytes() if generation_config else None
        _freeze_what_is_not_language(policy)
        _check_layer_types(policy.config)
        if lora is not None:
            policy.adapters = add_adapters(policy.model, policy.decoder_layers(), lora, source=model, seed=seed)
            policy.eval()
        _choose_form(policy)
        return policy


def load_merged(model: Model, adapter: Path) -> Policy:
    """A model loaded as by `load_policy`, in fp32, with a published adapter merged into its weights.

    Args:
        model: The spec's block.
        adapter: Folder of the version.

    Raises:
        ModelError: The model cannot be loaded completely.
        UnsupportedModelError: It would be trained wrongly.
        RunError: It cannot be reached now.
    """
    with loading(model):
        base = _load(model, torch.float32)
    policy = Policy(merge(base, adapter))
    _choose_form(policy)
    return policy


def _load(model: Model, dtype: torch.dtype) -> PreTrainedModel:
    where = place_of(model)
    check_files(model)
    try:
        config = AutoConfig.from_pretrained(
            model.source, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )
        loaded_with_report = _kind(config).from_pretrained(
            model.source,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them
        )
    except OSError:
        if not Path(model.source).is_absolute():
            check_names(hub_names(model.source, model.revision), model.source, f"{where} cannot be loaded")
        raise
    loaded, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded_with_report)
    report["unexpected_keys"] = {key for key in report["unexpected_keys"] if not _CONSTANTS.search(key)}
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report[kind]:
            names = ", ".join(sorted(map(str, report[kind]))[:5])
            raise ModelError(
                f"{where} does not match its config.json, {len(report[kind])} {kind.replace('_', ' ')}: {names}. A partly loaded "
                "model must not be trained: repair the folder, or name the model's own architecture in config.json"
            )
    for name, parameter in loaded.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(f"{where}: {name} holds values that are not finite (NaN or inf): the file is damaged, copy it again")
        # Weights that needed no conversion are still the mapped file: unaligned, and on a volume that others write to.
        parameter.data = parameter.data.clone()
    return loaded


def _longest_sequence(config: PretrainedConfig) -> int | None:
    """Number of tokens up to which rotary positions do not depend on a row's longest sequence; None when they never do."""
    rope = cast(Mapping[str, Any], getattr(config, "rope_parameters", None) or {})
    parts = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    if any(part.get("rope_type") in ("dynamic", "longrope") for part in parts):
        originals = [part["original_max_position_embeddings"] for part in parts if "original_max_position_embeddings" in part]
        return min(originals, default=config.max_position_embeddings)
    return None


def _kind(config: PretrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """What loads the model: models for images too, whose language model is then trained on text alone.

    Raises:
        ValueError: It is neither.
    """
    auto_map = cast(Mapping[str, str], getattr(config, "auto_map", None) or {})
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in auto_map
    if is_known:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    # Transformers' own message lists two hundred classes.
    raise ValueError(f"transformers has none for model_type {config.model_type}")


def _file_names(model: PreTrainedModel) -> dict[str, str]:
    """The names that the model's files have for its tensors, by their names in the model.

    Raises:
        UnsupportedModelError: The files hold other tensors than the model computes with.
    """
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    names = {id(tensor): name for name, tensor in tensors.items()}
    saved = cast(dict[str, Tensor], revert_weight_conversion(model, tensors))
    file_names = {names[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in names}
    if converted := sorted(tensors.keys() - file_names.keys()):
        raise UnsupportedModelError(
            f"{type(model).__name__} stores its weights in a different form than it computes with ({converted[0]}), as "
            "mixtures of experts do: use a dense model"
        )
    return file_names


def _freeze_what_is_not_language(policy: Policy) -> None:
    """Text alone is trained: what sees images gets no gradient, and is published as it came."""
    if policy.config is policy.model.config:
        return
    parts = [policy.model.get_decoder(), policy.model.get_output_embeddings(), policy.model.get_input_embeddings()]
    language = {id(parameter) for part in parts if isinstance(part, nn.Module) for parameter in part.parameters()}
    for parameter in policy.parameters():
        if id(parameter) not in language:
            parameter.requires_grad_(False)


def _check_layer_types(config: PretrainedConfig) -> None:
    unsupported = set(_layer_types(config)) - {"full_attention", "sliding_attention"}
    if unsupported:
        raise UnsupportedModelError(
            f"config.layer_types of {config.model_type} has {', '.join(sorted(unsupported))}: only layers of full or sliding "
            "attention are trained, so use another model"
        )


def _layer_types(config: PretrainedConfig) -> Sequence[str]:
    """The type of each layer; where the configuration does not say, all slide if there is a window."""
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return getattr(config, "layer_types", None) or ["sliding_attention" if slides else "full_attention"]


def _choose_form(policy: Policy) -> None:
    """Pack pairs if the model's attention can, else pad them; either way as the model's own plain forward pass.

    Raises:
        UnsupportedModelError: It gives something else either way.
    """
    changes = [parameter._version for parameter in policy.parameters()]
    pads = _attention_of(policy.model)
    try:
        policy.model.set_attn_implementation(IMPLEMENTATION)
        _check_logprobs(policy)
    except NotPackableError as error:
        policy.packs = False
        policy.model.set_attn_implementation(pads)
        try:
            _check_logprobs(policy)
        except NotPackableError as fault:
            raise UnsupportedModelError(f"{fault}. Use another model") from error
        logger.warning("Pairs are not packed, which takes about twice the time and memory for long prompts: %s", error)
    if changes != [parameter._version for parameter in policy.parameters()]:
        raise UnsupportedModelError(f"{type(policy.model).__name__} changes its weights as it computes: use another model")


@torch.no_grad()
def _check_logprobs(policy: Policy) -> None:
    """Compare pairs of random tokens with the model's own plain forward pass, one sequence at a time.

    Raises:
        NotPackableError: They differ, or the model cannot run on them.
        UnsupportedModelError: Its layers are not what its configuration says.
    """
    pairs = [_random_pair(policy.config.vocab_size, lengths, seed) for seed, lengths in enumerate([(7, 4, 3), (3, 2, 5)])]
    micro = pack(pairs, range(len(pairs)))
    name, form = type(policy.model).__name__, "packed pairs" if policy.packs else "padded sequences"
    try:
        got_S = policy(micro)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot run on {form}: {error}. Use another model") from error
    except Exception as error:
        raise NotPackableError(f"{name} cannot run on {form}: {error}") from error
    slides = "sliding_attention" in _layer_types(policy.config)
    if policy.packs and not micro.layout.windows:
        raise NotPackableError(f"{name} has an attention of its own, not transformers' AttentionInterface")
    if slides != bool(micro.layout.windows - {None}):
        raise UnsupportedModelError(
            f"{name} does not hand its attention to transformers' AttentionInterface as config.layer_types and "
            "config.sliding_window say: use another model"
        )
    want_S = torch.stack(
        [plain_logprob(policy.model, pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)]
    )
    if not torch.allclose(got_S, want_S, rtol=1e-4, atol=1e-3):
        raise NotPackableError(
            f"{name} gives different log-probs on {form} than on plain sequences ({got_S.tolist()} against "
            f"{want_S.tolist()}): a layer mixes tokens outside attention, tokens see those after them, or the model changes its "
            "logits in an unknown way"
        )


def _attention_of(model: PreTrainedModel) -> str:
    """The attention implementation that the model uses; transformers has no public name for it."""
    return cast(Any, model.config)._attn_implementation


def _random_pair(vocabulary_size: int, lengths: tuple[int, int, int], seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    prompt, chosen, rejected = (
        tuple(torch.randint(vocabulary_size, (length,), generator=generator).tolist()) for length in lengths
    )
    return Pair("self-check", prompt, chosen, rejected, chosen_reward=1.0, rejected_reward=0.0)


def plain_logprob(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Summed log-prob of a completion by the model's own forward pass, unpacked, with eager attention.

    Args:
        model: The model.
        prompt: Token ids.
        completion: Token ids.

    Returns:
        A scalar in nats.
    """
    before = _attention_of(model)
    model.set_attn_implementation("eager")
    try:
        logits_TV = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)
    return -cross_entropy(at_least_fp32(logits_TV[len(prompt) - 1 : -1]), torch.tensor(completion), reduction="sum")


def shard_policy(
    policy: Policy, *, mesh: DeviceMesh, compute_dtype: torch.dtype, activation_checkpointing: bool = False
) -> Policy:
    """Move the policy to the mesh's devices and shard each layer, and the rest, over its ranks.

    The names of `Policy.state` stay as they are.

    Args:
        policy: The policy; changed in place.
        mesh: The ranks.
        compute_dtype: Dtype of the arithmetic, and of weights that are not trained. The weights that the optimizer updates keep
            their dtype, and gradients are reduced in fp32.
        activation_checkpointing: Whether to recompute each layer in the backward pass.

    Returns:
        The same policy.
    """
    policy.compute_dtype = compute_dtype
    frozen = [parameter for parameter in policy.parameters() if not parameter.requires_grad]
    master_dtype = next(parameter.dtype for parameter in policy.parameters() if parameter.requires_grad)
    if policy.adapters is not None:
        # The base stays as it is in the source. What is frozen beside trained weights is published with them.
        for parameter in frozen:
            parameter.data = parameter.data.to(compute_dtype)
    if activation_checkpointing:
        for layer in policy.decoder_layers():
            # The module itself stays, so names do not change. There is no dropout whose random state would have to be kept.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    has_little_to_convert = compute_dtype == master_dtype or policy.adapters is not None
    if mesh.size() == 1 and (has_little_to_convert or (mesh.device_type == "cpu" and not activation_checkpointing)):
        # Nothing to shard: FSDP would only copy every weight and gradient, for each micro-batch. But it converts layer by layer.
        # On a GPU, whose memory is scarce, and where layers are recomputed, that is worth the copies, unless only adapters have
        # to be converted.
        if compute_dtype != master_dtype:
            convert_linears(policy)
        return policy.to(mesh.device_type)
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for module in (*policy.decoder_layers(), policy):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the number of pairs of all ranks, so gradients are summed; gloo supports no scaled sum.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return policy
