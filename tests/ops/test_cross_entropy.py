"""The fused loss against plain torch and fairseq: on a GPU if there is one, else small ones in Triton's interpreter."""

import itertools
import logging
from dataclasses import dataclass

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

from lite_transformer import ops
from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops import backends, cross_entropy
from tests.helpers.compare import assert_same
from tests.helpers.kernels import relative_error

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAD = 1


def views(logits):
    """The same logits in memory of other strides, by name."""
    shape = (*logits.shape[:-1], logits.size(-1) + 3)
    wide = logits.new_full(shape, float("nan"))
    wide[..., 3:] = logits
    return {
        "dense": logits,
        "cut from wider rows": wide[..., 3:],
        "time first": logits.transpose(0, 1).contiguous().transpose(0, 1),
        "every other row": torch.stack([logits, logits * float("nan")], dim=1).flatten(0, 1)[::2],
        "every other column": torch.stack([logits, logits * float("nan")], dim=-1).flatten(-2)[..., ::2],
    }


@dataclass(frozen=True)
class Case:
    """A loss to compute: sizes (B, T, V) and options; some targets are padding."""

    vocabulary: int
    epsilon: float = 0.1
    batch: int = 2
    length: int = 3
    ignore_index: int | None = PAD
    view: str = "dense"
    scale: float = 3.0
    offset: float = 0.0

    def tensors(self, dtype):
        generator = torch.Generator(DEVICE).manual_seed(self.vocabulary + self.length)
        shape = (self.batch, self.length, self.vocabulary)
        logits = torch.randn(shape, generator=generator, device=DEVICE) * self.scale + self.offset
        target = torch.randint(self.vocabulary, shape[:-1], generator=generator, device=DEVICE)
        if self.ignore_index is not None:
            target[0, 0] = self.ignore_index
        target[-1, -1] = self.vocabulary - 1
        return logits.to(dtype), target

    def run(self, dtype, backend, compute=None, weights=(2.0, 0.5)):
        """Loss, nll and the gradient of their weighted sum."""
        logits, target = self.tensors(dtype)
        logits = views(logits.to(compute or dtype))[self.view].detach().requires_grad_()
        results = ops.label_smoothed_cross_entropy(
            logits, target, epsilon=self.epsilon, ignore_index=self.ignore_index, backend=backend
        )
        sum(weight * result for weight, result in zip(weights, results, strict=True)).backward()
        return [*(result.detach() for result in results), logits.grad]

    def check(self, dtype=torch.float32):
        """Fails if the fused result is further from fp64 than twice plain torch, or than two units of fp32.

        What is stored in halves is allowed half a unit of theirs.
        """
        exact = self.run(dtype, "reference", torch.float64)
        plain = self.run(dtype, "reference")
        fused = self.run(dtype, "triton")
        dtypes = (torch.float32, torch.float32, dtype)
        for name, expected, right, by_torch, result in zip(
            ("loss", "nll", "gradient"), dtypes, exact, plain, fused, strict=True
        ):
            assert result.dtype == expected and result.shape == right.shape, name
            unit = torch.finfo(expected).eps * (2 if expected == torch.float32 else 0.5)
            allowed = max(2 * relative_error(by_torch, right), unit)
            assert relative_error(result, right) <= allowed, f"{name} of {self}, {dtype}"


# --- against plain torch and fairseq -------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [2, 31, 512, 2048, 2049, 4096, 5001])  # around both kernels' blocks
def test_sums_and_gradients(vocabulary, epsilon):
    Case(vocabulary, epsilon).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_fp32_sums(dtype):
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter computes bfloat16 in numpy, which has none")
    for vocabulary, epsilon in ((40, 0.1), (4100, 0.0)):
        Case(vocabulary, epsilon).check(dtype)


@pytest.mark.parametrize("view", list(views(torch.zeros(1, 1, 1)))[1:])
def test_strided_logits(view):
    Case(40, view=view).check()


def test_other_sizes_and_options():
    Case(1, 0.0, ignore_index=None).check()
    Case(7, 1.0).check()
    Case(7, ignore_index=None).check()
    Case(7, ignore_index=0).check()
    Case(7, ignore_index=-100).check()


@pytest.mark.parametrize(("scale", "offset"), [(30.0, 0.0), (3.0, 1e4), (3.0, -1e4)])
def test_large_logits(scale, offset):
    """Maxima that come in any block, and what all logits have in common, leave nothing of the result."""
    Case(5001, scale=scale, offset=offset).check()


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_the_reference_is_fairseqs(epsilon):
    logits, target = Case(20, epsilon, 4, 5).tensors(torch.float32)
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=epsilon, ignore_index=PAD, backend="reference")
    scores = torch.log_softmax(logits, -1).view(-1, 20)
    right = label_smoothed_nll_loss(scores, target.view(-1), epsilon, ignore_index=PAD)
    assert_same(loss, right[0], 1e-5)
    assert_same(nll, right[1], 1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_gradients_of_the_reference(epsilon):
    logits, target = Case(5, epsilon).tensors(torch.float64)

    def both(logits):
        return ops.label_smoothed_cross_entropy(logits, target, epsilon=epsilon, ignore_index=PAD, backend="reference")

    assert torch.autograd.gradcheck(both, logits.requires_grad_())


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1024.0, -3.0)])
def test_each_sum_has_its_gradient(weights):
    case = Case(33)
    assert_same(
        case.run(torch.float32, "triton", weights=weights)[2],
        case.run(torch.float32, "reference", weights=weights)[2],
        1e-6 * max(map(abs, weights)),
    )
    logits, target = case.tensors(torch.float32)
    logits.requires_grad_()
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend="triton")
    alone = [torch.autograd.grad(result, logits, retain_graph=True)[0] for result in (loss, nll)]
    rows, flat = logits.flatten(0, 1), target.flatten()
    assert not cross_entropy.cross_entropy(rows, flat, 0.1, PAD)[2].requires_grad
    total = sum(weight * gradient for weight, gradient in zip(weights, alone, strict=True))
    assert_same(total, case.run(torch.float32, "triton", weights=weights)[2], 1e-6 * max(map(abs, weights)))


# --- rows that do not count, or should not be ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_rows_without_a_target_count_nothing(backend):
    logits, target = Case(50).tensors(torch.float32)
    logits.requires_grad_()
    target[:] = PAD
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend=backend)
    loss.backward()
    assert loss == 0 and nll == 0 and not logits.grad.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_padding_may_hold_anything(value):
    """It reaches neither the sums nor any gradient."""
    case = Case(5000)
    logits, target = case.tensors(torch.float32)
    assert target[0, 0] == PAD
    right = case.run(torch.float32, "triton", weights=(1.0, 0.0))
    logits[0, 0] = value
    logits.requires_grad_()
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend="triton")
    loss.backward()
    for result, expected in zip((loss.detach(), nll.detach(), logits.grad), right, strict=True):
        assert torch.equal(result, expected)
    assert not logits.grad[0, 0].any()


def test_a_bad_logit_is_seen():
    logits, target = Case(5000).tensors(torch.float32)
    logits[1, 1, 4321] = float("nan")
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend="triton")
    assert loss.isnan() and nll.isnan()


def test_types_ruled_out_get_no_gradient():
    """Logits of -inf, as a mask of types leaves them; a block of them alone comes first."""
    logits, target = Case(5000).tensors(torch.float32)
    target.clamp_(min=4600)
    logits[..., :4500] = float("-inf")
    gradients = []
    for backend in ("triton", "reference"):
        copy = logits.clone().requires_grad_()
        loss, _ = ops.label_smoothed_cross_entropy(copy, target, ignore_index=PAD, backend=backend)
        loss.backward()
        gradients.append(copy.grad)
        assert torch.isfinite(loss)
    assert_same(*gradients, 1e-6)
    assert not gradients[0][..., :4500].any()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_rows(shape, backend):
    logits = torch.zeros(*shape, 7, device=DEVICE, requires_grad=True)
    target = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend=backend)
    (loss + nll).backward()
    assert loss == 0 and nll == 0 and logits.grad.shape == logits.shape


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_a_target_that_is_no_type_stops_a_training(wrong):
    logits, target = Case(50).tensors(torch.float32)
    target[1, 0] = wrong
    logits.requires_grad_()
    loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend="triton")
    loss.backward()
    assert loss.isnan() and nll.isnan()
    assert logits.grad[1, 0].isnan().all()
    logits.grad[1, 0] = 0
    assert torch.isfinite(logits.grad).all()
    with pytest.raises(UnsupportedInputError, match=f"target {wrong} is no type: there are 50, from 0 on"):
        ops.label_smoothed_cross_entropy(logits.cpu(), target.cpu(), backend="reference")


@pytest.mark.parametrize("vocabulary", [33, 5001])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_every_element_is_written(vocabulary, epsilon):
    """torch fills new tensors with NaN in this mode; what a kernel forgets stays NaN."""
    logits, target = Case(vocabulary).tensors(torch.float32)
    logits, target, one = logits.flatten(0, 1), target.flatten(), torch.ones((), device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.empty(3, device=DEVICE)).all()
        results = cross_entropy.cross_entropy(logits, target, epsilon, PAD)
        gradient = cross_entropy.cross_entropy_backward(one, None, logits, target, results[2], epsilon, PAD)
        counted = target != PAD
        for result in (*results[:2], results[2][counted], gradient):
            assert torch.isfinite(result).all()
    finally:
        torch.use_deterministic_algorithms(False)


# --- as torch operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "ignore_index"), [(0.1, PAD), (0.0, None)])
def test_opcheck(epsilon, ignore_index):
    logits, target = Case(9).tensors(torch.float32)
    logits, target, one = logits.flatten(0, 1), target.flatten(), torch.ones((), device=DEVICE)
    statistics = cross_entropy.cross_entropy(logits, target, epsilon, ignore_index)[2]
    torch.library.opcheck(cross_entropy.cross_entropy, (logits.clone().requires_grad_(), target, epsilon, ignore_index))
    grads = (one, None) if epsilon else (None, one)
    torch.library.opcheck(
        cross_entropy.cross_entropy_backward, (*grads, logits, target, statistics, epsilon, ignore_index)
    )


def test_compiled_models_keep_the_operator():
    logits, target = Case(9).tensors(torch.float32)
    logits.requires_grad_()

    def loss_of(logits):
        return ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD, backend="triton")[0]

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(logits)
    assert_same(compiled, loss_of(logits), 1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (compiled, loss_of(logits))]
    assert_same(*gradients, 1e-6)


# --- the choice of a backend ---------------------------------------------------------------------------------------


def test_the_choice_is_logged_once(monkeypatch, caplog):
    backends._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, "lite_transformer.ops.backends"):
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        for _ in range(3):
            assert cross_entropy.chosen_backend(torch.ones(3, 4), "auto") == "triton"
            assert cross_entropy.chosen_backend(torch.ones(3, 4, dtype=torch.float64), "auto") == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "loss: fused Triton kernels (loss_backend=reference for plain torch)",
        "loss: plain torch instead of fused kernels: logits is torch.float64; allowed: torch.float32, torch.float16, "
        "torch.bfloat16",
    ]
    backends._log_choice.cache_clear()


def test_a_cpu_computes_the_reference():
    assert cross_entropy.chosen_backend(torch.ones(3, 4), "auto") == "reference"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"backend": "cuda"}, UnsupportedInputError, "unknown backend 'cuda'; allowed: auto, triton, reference"),
        ({"epsilon": 1.5}, UnsupportedInputError, "epsilon = 1.5 is no part of one"),
        ({"target": torch.zeros(2)}, UnsupportedInputError, "target is torch.float32; allowed: a floating type and"),
        ({"logits": torch.ones(2, 4, dtype=torch.int64)}, UnsupportedInputError, "logits are torch.int64"),
        ({"logits": torch.ones(2, 4).double()}, UnsupportedInputError, "logits is torch.float64; allowed: torch.float"),
        ({"logits": torch.ones(3, 4)}, UnsupportedShapeError, r"target \(\.\.\.\), got \(3, 4\) and \(2,\)"),
        ({"logits": torch.ones(2, 1)}, UnsupportedShapeError, "there is one type only"),
        ({"logits": torch.ones(2, 4, device="meta")}, UnsupportedInputError, "logits are on meta and target on cpu"),
    ],
)
def test_unsupported_input_is_named(change, error, text):
    arguments = {"logits": torch.ones(2, 4), "target": torch.zeros(2, dtype=torch.int64)}
    arguments |= {"backend": "triton", "epsilon": 0.1} | change
    with pytest.raises(error, match=text):
        ops.label_smoothed_cross_entropy(**arguments)


# --- on a GPU ------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [1023, 32768, 32771, 39984, 300_001])
def test_the_whole_grid(vocabulary, dtype):
    for epsilon, view, ignore_index in itertools.product((0.0, 0.1), views(torch.zeros(1, 1, 1)), (PAD, None)):
        Case(vocabulary, epsilon, batch=3, length=5, view=view, ignore_index=ignore_index).check(dtype)
    Case(vocabulary, batch=8, length=700).check(dtype) if vocabulary < 40_000 else None


def gpu_loss(rows=4096, vocabulary=32768, dtype=torch.bfloat16):
    logits = torch.randn(rows, vocabulary, device="cuda", dtype=dtype, requires_grad=True)
    target = torch.randint(vocabulary, (rows,), device="cuda")
    target[::7] = PAD

    def step():
        logits.grad = None
        loss, nll = ops.label_smoothed_cross_entropy(logits, target, epsilon=0.1, ignore_index=PAD)
        loss.backward()
        return loss.detach(), nll.detach(), logits.grad

    return step, logits


@pytest.mark.gpu
@needs_gpu
def test_no_races():
    step, _ = gpu_loss()
    first = step()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


@pytest.mark.gpu
@needs_gpu
def test_peak_memory():
    """The logits and their gradient, and a hundredth more."""
    step, logits = gpu_loss()
    step()
    logits.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    assert torch.cuda.max_memory_allocated() - before <= 1.01 * logits.nbytes


@pytest.mark.gpu
@needs_gpu
def test_nothing_waits_for_the_gpu():
    step, _ = gpu_loss(rows=64)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_computes_the_same():
    step, logits = gpu_loss(rows=64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    with torch.no_grad():
        logits.copy_(torch.randn_like(logits))
    graph.replay()
    results = [result.clone() for result in captured]
    assert all(torch.equal(a, b) for a, b in zip(results, step(), strict=True))
