"""Mult-Adds of a running module: every operator that reaches torch's dispatcher is counted, or free, or an error.

The convention is that of `closed_form`, but nothing here knows a configuration: products are counted from the shapes
of the tensors, and put down to the module that was running.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lite_transformer.errors import UnknownOperatorError
from lite_transformer.macs.report import ENCODER_DECODER, INPUT_PROJECTION, OUTPUT, CostReport
from lite_transformer.models.config import FlatConfig
from lite_transformer.modules.attention import MultiheadAttention
from lite_transformer.modules.convolution import ShortRangeConv

Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def _product(first: int, second: int) -> Formula:
    """A matrix product of the arguments at these places: (..., M, N) by (..., N, P) costs ... M N P."""

    def macs(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        left, right = args[first], args[second]
        return left.numel() * (right.shape[-1] if right.dim() > 1 else 1)

    return macs


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    """weight: (C_out, C_in / groups, K...); every output element is one product over C_in / groups and K."""
    weight, transposed = args[1], args[6] if len(args) > 6 else False
    if transposed:
        return args[0].numel() * math.prod(weight.shape[1:])
    return out.numel() * math.prod(weight.shape[1:])


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """query (B, H, T, R), key (B, H, S, R), value (B, H, S, R'): B H T S (R + R'), the full rectangle."""
    query, key, value = args[:3]
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# Operators with multiply-adds, by name without overload.
FORMULAS: Mapping[str, Formula] = {
    "aten::mm": _product(0, 1),
    "aten::bmm": _product(0, 1),
    "aten::mv": _product(0, 1),
    "aten::dot": _product(0, 1),
    "aten::addmm": _product(1, 2),
    "aten::baddbmm": _product(1, 2),
    "aten::addbmm": _product(1, 2),
    "aten::addmv": _product(1, 2),
    "aten::convolution": _convolution,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
}

# Operators that are free by the convention, by what they do.
_MAKE = """
    arange bernoulli bernoulli_ empty empty_like empty_strided fill fill_ full full_like new_empty new_full new_ones
    new_zeros ones ones_like scalar_tensor zero_ zeros zeros_like
"""
_MOVE = """
    alias as_strided cat clone constant_pad_nd copy_ detach expand gather index index_put_ index_select lift_fresh
    permute repeat repeat_interleave select slice split split_with_sizes squeeze stack t transpose tril triu triu_
    unbind unfold unsqueeze view where _local_scalar_dense _reshape_alias _to_copy _unsafe_view
"""
_LOOK_UP = "embedding"
_COMPARE = """
    all any bitwise_and bitwise_not bitwise_or eq ge gt isinf isnan le logical_and logical_not logical_or lt ne
"""
_ELEMENT_BY_ELEMENT = """
    abs add add_ clamp cos div div_ exp gelu glu log masked_fill masked_fill_ mul mul_ native_dropout neg pow reciprocal
    relu relu_ rsqrt rsub sigmoid silu sin sqrt sub sub_ tanh
"""
_NORMALISE = "cumsum max mean min native_layer_norm sum _log_softmax _safe_softmax _softmax"
FREE = frozenset(
    f"aten::{name}"
    for group in (_MAKE, _MOVE, _LOOK_UP, _COMPARE, _ELEMENT_BY_ELEMENT, _NORMALISE)
    for name in group.split()
) | {"lite_transformer::short_range_conv"}  # counted where its module is


@dataclass(frozen=True)
class Count:
    """Multiply-adds by the path of the module that ran them ('' for the counted module itself)."""

    macs: Mapping[str, int]
    taps: Mapping[str, int]


class _Dispatch(TorchDispatchMode):
    """Hands every operator's cost to ``spend``."""

    def __init__(self, spend: Callable[[int], None]):
        super().__init__()
        self._spend = spend

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in FORMULAS and name not in FREE:
            # An operator that torch itself composes of others, not yet taken apart (inference mode does that).
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            raise UnknownOperatorError(
                f"the MAC counter has no formula for operator {name}. Give it one in FORMULAS of "
                "lite_transformer/macs/counter.py, or list it in FREE if it multiplies no matrices"
            )
        out = func(*args, **kwargs)
        if name in FORMULAS:
            self._spend(FORMULAS[name](args, kwargs, out))
        return out


@contextlib.contextmanager
def _tracked(
    module: nn.Module, stack: list[tuple[str, nn.Module]], count_taps: Callable[[ShortRangeConv, tuple], None]
) -> Iterator[None]:
    """Keeps path and module of the innermost running submodule on top of ``stack``; calls back before a convolution."""
    handles = []
    for path, child in module.named_modules():
        entry = (path, child)
        handles.append(child.register_forward_pre_hook(lambda *_, entry=entry: stack.append(entry)))
        if isinstance(child, ShortRangeConv):
            handles.append(child.register_forward_pre_hook(count_taps))
        handles.append(child.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def count_macs(module: nn.Module, *args: Any, **kwargs: Any) -> Count:
    """The multiply-adds of ``module(*args, **kwargs)``, by submodule.

    What a `ShortRangeConv` computes outside its child layers is the convolution itself and goes to ``taps``, K for each
    element by its definition: implementations differ in how many zeros they multiply beside them.

    Raises: UnknownOperatorError naming an operator that has neither a formula nor a place on the free list.
    """
    macs: Counter[str] = Counter()
    taps: Counter[str] = Counter()
    stack: list[tuple[str, nn.Module]] = []

    def spend(cost: int) -> None:
        path, running = stack[-1] if stack else ("", module)
        if not isinstance(running, ShortRangeConv):
            macs[path] += cost

    def count_taps(convolution: ShortRangeConv, inputs: tuple[Tensor, ...]) -> None:
        taps[stack[-1][0]] += inputs[0].numel() * convolution.kernel_size

    with _tracked(module, stack, count_taps), torch.no_grad(), _Dispatch(spend):
        module(*args, **kwargs)
    return Count(dict(macs), dict(taps))


def count_model(model: Any, source_length: int, target_length: int) -> CostReport:
    """The cost of one teacher-forced pass of a fairseq model over one sentence pair without padding.

    ``model`` has ``encoder`` and ``decoder``, or is a language model: a decoder, which reads ``target_length`` tokens
    of the most frequent types. Its parameters are counted as they are, vocabulary included; its training mode is left
    as it was.

    Raises: UnknownOperatorError, also for a product in a module that is no known component.
    """
    device = next(model.parameters()).device
    is_language_model = not hasattr(model, "encoder")
    dictionary = (model.decoder if is_language_model else model.encoder).dictionary
    token = dictionary.nspecial if len(dictionary) > dictionary.nspecial else dictionary.unk()
    previous = torch.full((1, target_length), token, device=device)
    training = model.training
    model.eval()
    # on a GPU heads are padded for its kernels: zeros that the definition does not count
    fused = [module for module in model.modules() if isinstance(module, MultiheadAttention) and module.fuse_projections]
    for attention in fused:
        attention.fuse_projections = False
    try:
        if is_language_model:
            source_length = 0
            count = _count_language_model(model, previous)
        else:
            source = torch.full((1, source_length), token, device=device)
            count = count_macs(model, source, torch.tensor([source_length], device=device), previous)
    finally:
        model.train(training)
        for attention in fused:
            attention.fuse_projections = True
    macs: Counter[str] = Counter()
    for path, cost in count.macs.items():
        macs[_component(model, path)] += cost
    for path, cost in count.taps.items():
        macs[f"{path.partition('.')[0]} convolution taps"] += cost
    params: Counter[str] = Counter()
    for path, parameter in model.named_parameters():
        component = _component(model, path.rpartition(".")[0])
        params["decoder embeddings" if component == INPUT_PROJECTION else component] += parameter.numel()
    return CostReport.build(source_length, target_length, macs, params)


def _count_language_model(model: Any, tokens: Tensor) -> Count:
    """A pass over ``tokens`` (1, T), and with an adaptive softmax the probabilities of all types."""
    passed = count_macs(model, tokens)
    softmax = model.decoder.adaptive_softmax
    if softmax is None:
        return passed

    class AllTypes(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return softmax.get_log_prob(features, None)

    features = tokens.new_zeros(*tokens.shape, model.decoder.output_embed_dim, dtype=torch.float32)
    every_type = count_macs(AllTypes(), features)
    return Count({**passed.macs, "decoder.adaptive_softmax": sum(every_type.macs.values())}, passed.taps)


# The innermost of these names on a module's path says which component it belongs to.
_COMPONENTS = {
    "encoder_attn": "cross-attention",
    "fc1": "feed-forward",
    "fc2": "feed-forward",
    "self_attn_layer_norm": "layer norm",
    "encoder_attn_layer_norm": "layer norm",
    "final_layer_norm": "layer norm",
    "layer_norm": "layer norm",
    "layernorm_embedding": "layer norm",
    "embed_tokens": "embeddings",
    "embed_positions": "embeddings",
}


def _component(model: nn.Module, path: str) -> str:
    side, _, rest = path.partition(".")
    names = rest.split(".")
    if side in ENCODER_DECODER:
        if names[0] in ("output_projection", "adaptive_softmax"):
            return OUTPUT
        if names[0] == "embed_tokens" and names[-2:] == ["0", "1"]:
            return INPUT_PROJECTION
        for name in reversed(names):
            if name in _COMPONENTS:
                return f"{side} {_COMPONENTS[name]}"
            if name == "weight_linear":
                return f"{side} kernel generator"
        if "self_attn" in names:
            ancestors = [model.get_submodule(".".join([side, *names[:end]])) for end in range(1, len(names) + 1)]
            is_convolution = any(isinstance(ancestor, ShortRangeConv) for ancestor in ancestors)
            return f"{side} {'convolution' if is_convolution else 'attention'}"
    raise UnknownOperatorError(f"the MAC counter does not know what component module '{path}' belongs to")


class _Vocabularies:
    """What fairseq's ``build_model`` asks of a task: two dictionaries."""

    def __init__(self, source_types: int, target_types: int):
        from fairseq.data import Dictionary

        def dictionary(types: int):
            made = Dictionary()
            for number in range(types - len(made)):
                made.add_symbol(f"w{number}")
            return made

        self.source_dictionary = dictionary(source_types)
        self.target_dictionary = dictionary(target_types)


def build_model(config: FlatConfig, source_types: int = 8, target_types: int = 8) -> nn.Module:
    """An untrained model of a resolved configuration on the CPU, with tiny made-up vocabularies.

    A language model gets ``target_types``, or as many as its cutoffs need, see `smallest_vocabulary`.
    """
    from lite_transformer.models.config import LiteTransformerConfig
    from lite_transformer.models.language_model import LANGUAGE_MODEL_CLASSES
    from lite_transformer.models.lite_transformer import MODEL_CLASSES
    from lite_transformer.models.lm_config import LiteTransformerLMConfig, TransformerLMConfig

    if isinstance(config, TransformerLMConfig):
        name = "lite_transformer_lm" if isinstance(config, LiteTransformerLMConfig) else "transformer_lm"
        types = smallest_vocabulary(config, target_types)
        return LANGUAGE_MODEL_CLASSES[name].build_model(config, _Vocabularies(types, types))
    name = "lite_transformer" if isinstance(config, LiteTransformerConfig) else "transformer"
    return MODEL_CLASSES[name].build_model(config, _Vocabularies(source_types, target_types))


def smallest_vocabulary(config: FlatConfig, types: int) -> int:
    """``types``, or as many as the cutoffs of a language model need so that every band has two."""
    cutoffs = [getattr(config, f"adaptive_{end}_cutoff", None) for end in ("input", "softmax")]
    return max([types, *(bands[-1] + 2 for bands in cutoffs if bands)])
