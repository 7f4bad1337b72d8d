"""Training through CUDA graphs: a small model's step waits for kernel launches, and a graph is one launch.

A graph has fixed shapes, so a batch is padded to its bucket: batch size and lengths rounded up. The first batch of a
bucket runs eagerly, the second is captured, all later ones are replayed. Padding reaches no real position, and what is
computed at padded positions is cut off before the loss, so the result is that of the eager pass.

Encoder and decoder are captured, up to the features; the projection to the vocabulary stays outside, because its
logits would be held in memory for every bucket. Two graphs a bucket, forward and backward, share one memory pool with
all others: between a forward and its backward no other may run, see `TrainingGraphs.features`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fairseq.modules import LayerDropModuleList
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lite_transformer.modules.convolution import ShortRangeConv

logger = logging.getLogger(__name__)

_LENGTH_MULTIPLE, _LENGTH_STEP = 4, 1 / 8
_BATCH_MULTIPLE, _BATCH_STEP = 8, 1 / 16

# Part of the card's memory that has to be free for a new graph.
_FREE_MEMORY = 0.2


def round_up(size: int, multiple: int, step: float) -> int:
    """The smallest bucket that holds ``size``: multiples of ``multiple``, about ``step`` of themselves apart."""
    bucket = multiple
    while bucket < size:
        bucket = max(bucket + multiple, math.floor(bucket * (1 + step) / multiple) * multiple)
    return bucket


class Bucket(NamedTuple):
    """Sizes that a batch is padded to, and the autocast dtype it is computed in (None without autocast)."""

    batch: int
    source_length: int
    target_length: int
    autocast: torch.dtype | None


def bucket_of(
    source: Tensor, target: Tensor, longest_source: int, longest_target: int, batch_multiple: int = _BATCH_MULTIPLE
) -> Bucket | None:
    """The bucket of token ids (B, S) and (B, T); None if they are longer than the model's positions or empty."""
    batch, source_length = source.shape
    target_length = target.size(1)
    if source_length > longest_source or target_length > longest_target or 0 in (batch, source_length, target_length):
        return None
    device = source.device.type
    return Bucket(
        round_up(batch, batch_multiple, _BATCH_STEP),
        min(round_up(source_length, _LENGTH_MULTIPLE, _LENGTH_STEP), longest_source),
        min(round_up(target_length, _LENGTH_MULTIPLE, _LENGTH_STEP), longest_target),
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
    )


def fill_padded(out: Tensor, tokens: Tensor, pad: int, eos: int) -> Tensor:
    """``out`` (rows, width), overwritten by tokens (B, T): padding on the right, rows of one end-of-sentence below.

    A row without any real token would have no key to attend to.
    """
    batch, length = tokens.shape
    out.fill_(pad)
    out[:batch, :length] = tokens
    if batch < out.size(0):
        out[batch:, 0] = eos
    return out


class FlatGradients:
    """Gradients of the parameters in one buffer a dtype: the buffer is what every backward graph writes.

    autograd may keep a gradient it is given, and adds to it when gradients are accumulated, so it gets views of a copy.
    """

    _ALIGNMENT = 8  # elements; kernels over many tensors want aligned addresses

    def __init__(self, parameters: Sequence[Tensor]):
        self._sizes: Counter[torch.dtype] = Counter()
        self._places: list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]] = []
        for parameter in parameters:
            shape = tuple(parameter.shape)
            strides = torch.empty(shape, device="meta").stride()
            self._places.append((parameter.dtype, shape, strides, self._sizes[parameter.dtype]))
            self._sizes[parameter.dtype] += -(-parameter.numel() // self._ALIGNMENT) * self._ALIGNMENT
        device = parameters[0].device
        self._flat = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in self._sizes.items()}
        self._views = self._cut(self._flat)

    def _cut(self, flat: dict[torch.dtype, Tensor]) -> list[Tensor]:
        return [flat[dtype].as_strided(shape, strides, offset) for dtype, shape, strides, offset in self._places]

    def write(self, gradients: Sequence[Tensor]) -> None:
        """Copies the gradients, one a parameter, into the buffer."""
        for dtype in self._flat:
            views = [view for view in self._views if view.dtype == dtype]
            values = [value.contiguous() for value in gradients if value.dtype == dtype]
            torch._foreach_copy_(views, values)

    def copies(self) -> list[Tensor]:
        """The gradients as views of a new copy of the buffer."""
        return self._cut({dtype: flat.clone() for dtype, flat in self._flat.items()})


class Shared:
    """What all passes of a model share: the parameters the features depend on, their gradients, the graphs' memory."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.gradients = FlatGradients(parameters)
        # what the features depend on for autograd where they do not on the parameters
        self.anchor = torch.zeros((), device=parameters[0].device, requires_grad=True)
        self.pool: Any = None
        self.stream: torch.cuda.Stream | None = None

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Adds to the parameters' ``grad`` what autograd would, without a node for each of them."""
        kept: list[Tensor] = []
        added: list[Tensor] = []
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                kept.append(parameter.grad)
                added.append(gradient)
        if kept:
            torch._foreach_add_(kept, added)


class BucketPass:
    """Encoder, decoder and their gradients over the fixed tensors of one bucket, computed eagerly.

    `GraphedPass` captures the same two computations.
    """

    def __init__(self, model: Any, bucket: Bucket, device: torch.device):
        self._compute = model.decoder_features
        self._bucket = bucket
        self._device = device
        self._pad, self._eos = model.decoder.padding_idx, model.decoder.dictionary.eos()
        self._source = torch.full((bucket.batch, bucket.source_length), self._eos, device=device)
        self._target = torch.full((bucket.batch, bucket.target_length), self._eos, device=device)
        self._features: Tensor | None = None
        self._features_gradient: Tensor | None = None

    def used(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that the features depend on."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            features = self._compute_features()
            found = torch.autograd.grad(features, parameters, torch.zeros_like(features), allow_unused=True)
        return [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is not None]

    def prepare(self, shared: Shared, warm_ups: int) -> None:
        """Makes `forward` and `backward` ready."""
        self.shared = shared

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Features (B, T, C) of token ids (B, S) and (B, T), valid until the next pass of any bucket."""
        fill_padded(self._source, source, self._pad, self._eos)
        fill_padded(self._target, target, self._pad, self._eos)
        self._run_forward()
        assert self._features is not None
        return self._features.detach()[: target.size(0), : target.size(1)]

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the shared parameters, from the gradient (B, T, C) of what `forward` returned."""
        out = self._gradient_buffer().zero_()
        out[: gradient.size(0), : gradient.size(1)] = gradient
        self._run_backward()
        return self.shared.gradients.copies()

    def _run_forward(self) -> None:
        self._features = self._compute_features()

    def _run_backward(self) -> None:
        self._write_gradients()

    def _gradient_buffer(self) -> Tensor:
        if self._features_gradient is None:
            assert self._features is not None
            self._features_gradient = torch.zeros_like(self._features)
        return self._features_gradient

    def _compute_features(self) -> Tensor:
        dtype = self._bucket.autocast
        # a cast kept in autocast's cache would belong to another capture
        cast = torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
        with torch.enable_grad(), cast:
            return self._compute(self._source, self._target)

    def _write_gradients(self) -> None:
        assert self._features is not None
        with torch.autocast(self._device.type, enabled=False):
            found = torch.autograd.grad(self._features, self.shared.parameters, self._gradient_buffer())
        self.shared.gradients.write(found)


class GraphedPass(BucketPass):
    """A `BucketPass` that replays two CUDA graphs."""

    def prepare(self, shared: Shared, warm_ups: int) -> None:
        """Captures both graphs, after passes that let libraries and kernels choose and allocate.

        The state of the random generator is that of before. Raises whatever the passes or the capture raise.
        """
        super().prepare(shared, warm_ups)
        if shared.pool is None or shared.stream is None:
            shared.pool, shared.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
        before = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        random_state, spare = generator.get_state(), generator.clone_state()
        try:
            self._warm_up(shared.stream, before, warm_ups)
            self._capture(shared.pool, shared.stream)
        except Exception:
            # A capture that broke off leaves its stream current, the allocator in its pool and the generator in
            # capture; only another state object gets the generator out of it.
            torch.cuda.set_stream(before)
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self._device.index, shared.pool)
            generator.graphsafe_set_state(spare)
            raise
        generator.set_state(random_state)

    def _warm_up(self, stream: torch.cuda.Stream, before: torch.cuda.Stream, times: int) -> None:
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(times):
                self._features = self._compute_features()
                self._write_gradients()
        before.wait_stream(stream)

    def _capture(self, pool: Any, stream: torch.cuda.Stream) -> None:
        self._graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads (data loading, NCCL's watchdog) may call CUDA meanwhile.
        options: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._graphs[0], **options):
            self._features = self._compute_features()
        with torch.cuda.graph(self._graphs[1], **options):
            self._write_gradients()
        # lets go of autograd's nodes; what they saved is gone, and the next capture may use its memory
        self._features = self._features.detach()

    def _run_forward(self) -> None:
        self._graphs[0].replay()

    def _run_backward(self) -> None:
        self._graphs[1].replay()


class _Turn:
    """One forward that waits for its backward; it ends with it, or when autograd forgets it."""

    done = False


class _Replay(torch.autograd.Function):
    """Features of a batch as a function of the parameters.

    Given the parameters, it hands their gradients to autograd. Given one anchor instead, it writes them itself: for 300
    parameters autograd's bookkeeping takes the host as long as launching both graphs.
    """

    @staticmethod
    def forward(ctx: Any, graphs: TrainingGraphs, ready: BucketPass, source: Tensor, target: Tensor, *inputs: Tensor):
        ctx.graphs, ctx.ready, ctx.turn = graphs, ready, _Turn()
        ctx.shared = ready.shared if inputs[0] is ready.shared.anchor else None
        graphs.begin(ctx.turn)
        return ready.forward(source, target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        ctx.graphs.end(ctx.turn)
        found = ctx.ready.backward(gradient)
        if ctx.shared is None:
            return None, None, None, None, *found
        ctx.shared.add_gradients(found)
        return None, None, None, None, None


@dataclass
class _Surroundings:
    """What a model's graphs were captured with; looked up once, compared at every batch."""

    tensors: list[Tensor]
    parameters: list[nn.Parameter]
    hooks: list[dict]
    addresses: list[int]
    trained: list[bool]

    @classmethod
    def of(cls, model: nn.Module) -> _Surroundings:
        parameters = list(model.parameters())
        tensors = [*parameters, *model.buffers()]
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooks = [getattr(module, kind) for module in model.modules() if module is not model for kind in kinds]
        return cls(tensors, parameters, hooks, *cls._look(tensors))

    @staticmethod
    def _look(tensors: list[Tensor]) -> tuple[list[int], list[bool]]:
        return [tensor.data_ptr() for tensor in tensors], [tensor.requires_grad for tensor in tensors]

    def changed(self) -> bool:
        """Whether a tensor moved, or is trained now and was not, or the reverse."""
        return (self.addresses, self.trained) != self._look(self.tensors)

    def obstacle(self) -> str | None:
        """What stands in the way at this batch, and may be gone at the next; None if nothing does."""
        if any(self.hooks) or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters):
            return "hooks are registered on the model's modules or parameters"
        if torch.is_anomaly_enabled():
            return "anomaly detection is on"
        return None


class TrainingGraphs:
    """The CUDA graphs of one model, captured as batches come; what cannot run through them runs eagerly.

    Each reason not to use graphs is logged once. A copy of a model (deepcopy, pickle) starts without graphs. Gradients
    are what ``loss.backward()`` leaves in ``parameter.grad``; ``torch.autograd.grad`` needs ``enabled=False``.

    Args:
        enabled: False never uses graphs.
        limit: number of buckets captured at most; batches of further ones run eagerly.
        make_pass: builds what runs a bucket.
        batch_multiple: small batches are padded to multiples of so many rows; 1 where rows are long and few.
    """

    def __init__(
        self,
        enabled: bool = True,
        limit: int = 256,
        make_pass: Callable[[Any, Bucket, torch.device], BucketPass] = GraphedPass,
        *,
        batch_multiple: int = _BATCH_MULTIPLE,
    ):
        self.enabled = enabled
        self._limit = limit
        self._make_pass = make_pass
        self._batch_multiple = batch_multiple
        self._logged: set[str] = set()
        self.clear()

    def __reduce__(self):
        made = functools.partial(type(self), batch_multiple=self._batch_multiple)
        return made, (self.enabled, self._limit, self._make_pass)

    def clear(self) -> None:
        """Forgets all graphs and what was decided about the model."""
        self._surroundings: _Surroundings | None = None
        self._obstacle: str | None = None
        self._passes: dict[Bucket, BucketPass] = {}
        self._seen: Counter[Bucket] = Counter()
        self._shared: Shared | None = None
        self._full = False
        self._turn: weakref.ref[_Turn] | None = None

    def features(self, model: Any, source: Tensor, target: Tensor) -> Tensor | None:
        """The decoder's features (B, T, C) for a training batch; None if the caller has to compute them itself.

        Args:
            model: has ``encoder``, ``decoder`` and ``decoder_features(source, target)``; a language model has no
                encoder and does not read the source.
            source, target: token ids (B, S) and (B, T) on the model's device.
        """
        if not self.enabled or not torch.is_grad_enabled() or not self._on_device(source):
            return None
        surroundings = self._look_around(model)
        reason = self._obstacle or surroundings.obstacle()
        longest_source = model.encoder.max_positions() if hasattr(model, "encoder") else source.size(1)
        bucket = bucket_of(source, target, longest_source, model.decoder.max_positions(), self._batch_multiple)
        if reason is not None or bucket is None:
            self._say(f"CUDA graphs: off, {reason or 'the batch is empty or longer than the positions of the model'}")
            return None
        self._seen[bucket] += 1
        if self._is_waiting():
            self._say("CUDA graphs: not for a batch that comes before the backward pass of the last one")
            return None
        ready = self._passes.get(bucket)
        if ready is None and self._seen[bucket] > 1 and not self._full:
            ready = self._capture(model, bucket, source.device)
        if ready is not None:
            shared = ready.shared
            # DistributedDataParallel waits, unseen from here, for autograd to hand over each parameter's gradient
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            inputs = shared.parameters if distributed else [shared.anchor]
            return _Replay.apply(self, ready, source, target, *inputs)
        if self._obstacle is not None:  # found while capturing
            return None
        return self._padded(model, bucket, source, target)

    def _look_around(self, model: Any) -> _Surroundings:
        """What surrounds the graphs now; if that is not what they were captured with, they are forgotten."""
        if self._surroundings is None or self._surroundings.changed():
            self.clear()
            self._surroundings = _Surroundings.of(model)
            self._obstacle = obstacle(model)
        return self._surroundings

    @staticmethod
    def _on_device(tokens: Tensor) -> bool:
        return tokens.is_cuda and not torch.cuda.is_current_stream_capturing()

    @staticmethod
    def _padded(model: Any, bucket: Bucket, source: Tensor, target: Tensor) -> Tensor:
        """What a graph of this bucket would compute, eagerly, so that the result does not depend on what is captured.

        Kernels choose by shape, and dropout draws by shape.
        """
        pad, eos = model.decoder.padding_idx, model.decoder.dictionary.eos()
        sources = fill_padded(source.new_empty(bucket.batch, bucket.source_length), source, pad, eos)
        targets = fill_padded(target.new_empty(bucket.batch, bucket.target_length), target, pad, eos)
        return model.decoder_features(sources, targets)[: target.size(0), : target.size(1)]

    def _capture(self, model: Any, bucket: Bucket, device: torch.device) -> BucketPass | None:
        """A pass ready to run this bucket; None, with the reason logged, if there is none to be had."""
        room = self._room(device)
        if room is not None:
            self._full = True
            self._say(f"CUDA graphs: {room}, further ones run eagerly")
            return None
        try:
            ready = self._make_pass(model, bucket, device)
            warm_ups = 1
            if self._shared is None:
                assert self._surroundings is not None
                self._shared = Shared(ready.used([p for p in self._surroundings.parameters if p.requires_grad]))
                warm_ups = 3  # the first ones also set libraries up
            ready.prepare(self._shared, warm_ups)
        except Exception as error:  # whatever it was, training goes on without graphs
            reason = str(error).strip().split("\n")[0]
            surroundings = self._surroundings
            self.clear()
            self._surroundings, self._obstacle = surroundings, f"capturing failed ({type(error).__name__}: {reason})"
            self._say(f"CUDA graphs: off, {self._obstacle}")
            return None
        if not self._passes:
            self._say("CUDA graphs: on, one for each batch shape that comes back")
        self._passes[bucket] = ready
        return ready

    def _room(self, device: torch.device) -> str | None:
        """Why there is no room for one more graph; None if there is."""
        if len(self._passes) >= self._limit:
            return f"{self._limit} batch shapes captured"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if free + unused < _FREE_MEMORY * total:
                return (
                    f"{len(self._passes)} batch shapes are captured and {1 - _FREE_MEMORY:.0%} of the memory is in use"
                )
        return None

    # --- forward and backward take turns --------------------------------------------------------------------------

    def _is_waiting(self) -> bool:
        turn = None if self._turn is None else self._turn()
        return turn is not None and not turn.done

    def begin(self, turn: _Turn) -> None:
        """Called by a forward: from now on the shared memory holds what its backward needs."""
        self._turn = weakref.ref(turn)

    def end(self, turn: _Turn) -> None:
        """Called by a backward. Raises RuntimeError if what it needs has been overwritten."""
        if turn.done or self._turn is None or self._turn() is not turn:
            raise RuntimeError(
                "the backward pass of this batch has run already, and a CUDA graph keeps nothing for another one. "
                "Train with --cuda-graphs off to run backward twice"
            )
        turn.done = True

    # --- one line for each reason ---------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            logger.info(line)


def obstacle(model: Any) -> str | None:
    """Why this model cannot be captured, or cannot be padded, in words; None if it can."""
    modules = list(model.modules())
    if any(isinstance(module, LayerDropModuleList) and module.p > 0 for module in modules):
        return "layer drop chooses other layers for every batch"
    if any(hasattr(module, "precheckpoint_forward") for module in modules):
        return "activation checkpointing runs the forward pass twice"
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in modules):
        return "fully sharded data parallelism moves the parameters"
    if any(isinstance(m, ShortRangeConv) and not m.causal and not m.mask_after_gate for m in modules):
        return "with --conv-padding-mask before_linear padding reaches real tokens"
    return None
