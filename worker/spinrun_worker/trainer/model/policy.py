"""The policy: a causal language model that turns packed pairs into log-probs of their completions.

Any `AutoModelForCausalLM` with attention layers will do. A model that packed pairs would train wrongly is refused when it is
loaded, by comparison with its own plain forward pass.
"""

# S = completions (2P), T = packed tokens, C = completion tokens, D = hidden size, V = vocabulary

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
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from spinrun_api.spec import Lora, Model
from spinrun_worker.model_files import GENERATION_CONFIG, check_names, find_file, hub_names
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.attention import IMPLEMENTATION, PairsLayout, UnsupportedModelError
from spinrun_worker.trainer.model.conversion import call_converted, convert_linears
from spinrun_worker.trainer.model.files import ModelError, check_files, loading, place_of
from spinrun_worker.trainer.model.logprobs import at_least_fp32, logit_transform, sum_by_completion, token_logprobs
from spinrun_worker.trainer.model.lora import add_adapters, file_name, merge
from spinrun_worker.trainer.model.packing import MicroBatch, pack


class Policy(nn.Module):
    """A causal language model over packed pairs."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self._transform = logit_transform(self.config)
        self._longest_sequence = _longest_sequence(self.config)
        self.compute_dtype: torch.dtype | None = None
        """Dtype of the arithmetic; None means that of the weights."""
        self.adapters: LoraConfig | None = None
        """The adapters that are trained in place of the model's own weights; None where those are trained."""
        self.generation_config: bytes | None = None
        """The source's generation_config.json, as it is; None where it has none."""
        # Dropout stays off: the policy is also the reference that it is compared with.
        self.eval()

    def forward(self, micro: MicroBatch) -> Tensor:
        """Summed log-probs of the completions at temperature 1.

        Args:
            micro: Packed pairs. If they have weights, the sums are weighted.

        Returns:
            [2P] in nats, fp32: of pair 0's chosen and rejected, of pair 1's … With noise, [2P, 2]: log-probs, and the summed
            `logprobs.contrasts`.

        Raises:
            UnsupportedModelError: A pair is longer than the model's positions allow for packing.
        """
        if not isinstance(self, FSDPModule) and self.arithmetic_dtype != next(self.parameters()).dtype:
            return call_converted(self, self.arithmetic_dtype, micro)
        self._check_length(micro.layout)
        decoder, head = self.model.get_decoder(), cast(nn.Module, self.model.get_output_embeddings())
        output = decoder(
            input_ids=micro.token_ids_T[None],
            position_ids=micro.position_ids_T[None],
            use_cache=False,
            pairs=micro.layout,
        )
        hidden_TD = cast(Tensor, output.last_hidden_state)[0]
        values_C = token_logprobs(
            hidden_TD.index_select(0, micro.source_C),
            micro.target_C,
            head,
            vocabulary_size=self.config.vocab_size,
            transform=self._transform,
            noise_CK=micro.noise_CK,
        )
        return sum_by_completion(values_C, micro.lengths_S, micro.weight_C)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a version consists of, by name; the same names in the same order on every rank.

        These are all trained tensors and persistent buffers by their Hugging Face names, with tied weights once; or, where
        adapters are trained, the adapters alone, by their names in peft's file. They are the tensors themselves, not copies:
        DTensors when sharded.
        """
        once = {name for name, _ in self.named_parameters()}
        tied_again = {name for name, _ in self.named_parameters(remove_duplicate=False)} - once
        # The state dict of the whole module, because FSDP then frees what a forward pass has gathered.
        tensors = cast(dict[str, Tensor], self.state_dict())
        if self.adapters is not None:
            trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
            return {file_name(name.removeprefix("model.")): tensors[name] for name in trained}
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name not in tied_again}

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
        UnsupportedModelError: Packed pairs would train it wrongly.
        ConfigurationError: It cannot have these adapters.
        RunError: It cannot be reached now.
    """
    with loading(model):
        policy = Policy(_load(model, master_dtype))
        generation_config = find_file(model.source, model.revision, GENERATION_CONFIG)
        policy.generation_config = generation_config.read_bytes() if generation_config else None
        _check_names(policy)
        _check_layer_types(policy.config)
        if lora is not None:
            policy.adapters = add_adapters(policy.model, policy.decoder_layers(), lora, source=model, seed=seed)
            policy.eval()
        _check_logprobs(policy)
        return policy


def load_merged(model: Model, adapter: Path) -> Policy:
    """A model loaded as by `load_policy`, in fp32, with a published adapter merged into its weights.

    Args:
        model: The spec's block.
        adapter: Folder of the version.

    Raises:
        ModelError: The model cannot be loaded completely.
        RunError: It cannot be reached now.
    """
    with loading(model):
        base = _load(model, torch.float32)
    return Policy(merge(base, adapter))


def _load(model: Model, dtype: torch.dtype) -> PreTrainedModel:
    where = place_of(model)
    check_files(model)
    try:
        loaded_with_report = AutoModelForCausalLM.from_pretrained(
            model.source,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report names them
        )
    except OSError:
        if not Path(model.source).is_absolute():
            check_names(hub_names(model.source, model.revision), model.source, f"{where} cannot be loaded")
        raise
    loaded, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded_with_report)
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


def _check_names(policy: Policy) -> None:
    """Publications and checkpoints name tensors as the modules do: refuse a model whose files name or split them differently."""
    names = policy.state().keys()
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in policy.state().items()}
    saved = revert_weight_conversion(policy.model, tensors).keys()
    if saved != names:
        example = min(names - saved)
        raise UnsupportedModelError(
            f"{type(policy.model).__name__} stores its weights in a different form than it computes with ({example}), as "
            "mixtures of experts do: use a dense model"
        )


def _check_layer_types(config: PretrainedConfig) -> None:
    unsupported = set(_layer_types(config)) - {"full_attention", "sliding_attention"}
    if unsupported:
        raise UnsupportedModelError(
            f"config.layer_types of {config.model_type} has {', '.join(sorted(unsupported))}: packed pairs need layers of full "
            "or sliding attention, so use another model"
        )


def _layer_types(config: PretrainedConfig) -> Sequence[str]:
    """The type of each layer; where the configuration does not say, all slide if there is a window."""
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return getattr(config, "layer_types", None) or ["sliding_attention" if slides else "full_attention"]


@torch.no_grad()
def _check_logprobs(policy: Policy) -> None:
    """Compare packed pairs of random tokens with the model's own plain forward pass, one sequence at a time."""
    pairs = [_random_pair(policy.config.vocab_size, lengths, seed) for seed, lengths in enumerate([(7, 4, 3), (3, 2, 5)])]
    micro = pack(pairs, range(len(pairs)))
    name = type(policy.model).__name__
    try:
        got_S = policy(micro)
    except Exception as error:
        raise UnsupportedModelError(f"{name} cannot run on packed pairs: {error}. Use another model") from error
    slides = "sliding_attention" in _layer_types(policy.config)
    if not micro.layout.windows or slides != bool(micro.layout.windows - {None}):
        raise UnsupportedModelError(
            f"{name} does not hand its attention to transformers' AttentionInterface as config.layer_types and "
            "config.sliding_window say: use another model"
        )
    want_S = torch.stack(
        [plain_logprob(policy.model, pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)]
    )
    if not torch.allclose(got_S, want_S, rtol=1e-4, atol=1e-3):
        raise UnsupportedModelError(
            f"{name} gives different log-probs on packed pairs than on plain sequences ({got_S.tolist()} against "
            f"{want_S.tolist()}): a layer mixes tokens outside attention, or the model changes its logits in an unknown way. Use "
            "another model"
        )


def _random_pair(vocabulary_size: int, lengths: tuple[int, int, int], seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    prompt, chosen, rejected = (
        tuple(torch.randint(vocabulary_size, (length,), generator=generator).tolist()) for length in lengths
    )
    return Pair("self-check", prompt, chosen, rejected, chosen_reward=1.0, rejected_reward=0.0)


def plain_logprob(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Summed log-prob of a completion by the model's own forward pass, unpacked, with eager attention.

    Args:
        model: The model; its attention implementation is `spinrun_pairs` afterwards.
        prompt: Token ids.
        completion: Token ids.

    Returns:
        A scalar in nats.
    """
    model.set_attn_implementation("eager")
    try:
        logits_TV = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
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
    for parameter in frozen:
        parameter.data = parameter.data.to(compute_dtype)
    if activation_checkpointing:
        for layer in policy.decoder_layers():
            # The module itself stays, so names do not change. There is no dropout whose random state would have to be kept.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    has_little_to_convert = compute_dtype == master_dtype or bool(frozen)
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
