"""The native engine computes what the model computes, on every instruction set that the processor has.

Another processor's sets are tested by running this file there: pytest tests/edge/test_native.py
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lite_transformer.edge import Translator, graphs, native, tiers
from lite_transformer.edge import export as exporting
from lite_transformer.edge.engine import Candidates
from lite_transformer.edge.folder import read_manifest
from lite_transformer.edge.native import NativeEngine, obstacle
from lite_transformer.edge.native.library import Library
from lite_transformer.edge.search import collate, search
from lite_transformer.edge.vocabulary import END, PAD, Vocabulary
from lite_transformer.errors import ConfigError, UnsupportedInputError
from tests.edge.models import exported, loaded_model, translated_without
from tests.edge.test_export import MODELS, check_same, fairseq_hypotheses, own_hypotheses, sources
from tests.helpers.commands import environment

LIBRARY = native.compiled()
needs_native = pytest.mark.skipif(LIBRARY is None, reason="the native engine was not built (no C++ compiler?)")
KERNELS = ["generic"] if LIBRARY is None else LIBRARY.kernels()
WORDS = 44
ROOT = Path(__file__).parents[2]


def test_it_was_built_where_there_is_a_compiler():
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert LIBRARY is not None, "build it: python setup.py build_ext --inplace"
    assert KERNELS[-1] == "generic" and len(set(KERNELS)) == len(KERNELS)


@needs_native
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name, tmp_path, monkeypatch):
    # it is this engine that the export compares
    monkeypatch.setattr(exporting, "load_engine", lambda _, folder, manifest, threads: NativeEngine(folder, manifest))
    parity = read_manifest(exported(loaded_model(**MODELS[name]), tmp_path)).parity
    assert parity["max_logprob_difference"] < 1e-4
    assert parity["same_hypotheses"] == parity["sentences"] == exporting.CHECKED_SENTENCES


@needs_native
@pytest.mark.parametrize("width", [20, 44, 124, 140])  # heads of half of that
def test_convolutions_whose_heads_fill_no_vectors(width, tmp_path, monkeypatch):
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("embed_dim", 8 + width), ("branch_dims", [8, width]))}  # fmt: skip
    monkeypatch.setattr(exporting, "load_engine", lambda _, folder, manifest, threads: NativeEngine(folder, manifest))
    parity = read_manifest(exported(loaded_model(**sizes), tmp_path)).parity
    assert parity["max_logprob_difference"] < 1e-4


@needs_native
def test_hypotheses_and_scores_are_those_of_fairseq(tiny):
    translator = Translator.load(tiny.folder, engine="native")
    assert isinstance(translator.engine, NativeEngine)
    for options in ({"beam": 5}, {"beam": 1}, {"beam": 4, "min_len": 8, "no_repeat_ngram_size": 2}):
        ours = own_hypotheses(translator, sources(), **options)
        if "no_repeat_ngram_size" not in options:
            check_same(ours, fairseq_hypotheses(tiny.loaded, sources(), **options))
        else:
            portable = Translator.load(tiny.folder, engine="portable")
            check_same(ours, own_hypotheses(portable, sources(), **options))


# --- int8 ----------------------------------------------------------------------------------------------------------


def coded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes 0 to 255 of each row of x (..., in), their scale and their zero."""
    low, high = (np.float32(0) + extreme(x, -1, keepdims=True) for extreme in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = (high - low) / np.float32(255)
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


def linear(kernels: str, x: np.ndarray, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = np.empty((len(x), len(codes)), np.float32)
    LIBRARY.try_to(
        "lt_linear", kernels.encode(), x.ctypes.data, *x.shape, codes.ctypes.data, scales.ctypes.data,
        None if bias is None else bias.ctypes.data, len(codes), y.ctypes.data, error=RuntimeError,
    )  # fmt: skip
    return y


@needs_native
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_layer_is_the_same_integer_arithmetic(kernels):
    rng = np.random.default_rng(1)
    sizes = [(i, o) for i in (1, 3, 4, 5, 16, 31, 64, 496) for o in (1, 7, 8, 15, 16, 17, 33, 48)]
    for number, (inputs, outputs) in enumerate(sizes):
        rows = 1 + number % 19
        x = rng.normal(size=(rows, inputs)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, size=(rows, 1))
        x = np.ascontiguousarray(np.maximum(x, 0) if number % 3 == 0 else x, np.float32)
        x[0] = 0 if number % 5 == 0 else x[0]
        codes = rng.integers(-64, 65, size=(outputs, inputs)).astype(np.int8)
        scales, bias = rng.uniform(0.5, 2, size=(2, outputs)).astype(np.float32)
        values, scale, zero = coded(x)
        sums = (values - zero).astype(np.int64) @ codes.astype(np.int64).T
        expected = sums.astype(np.float32) * (scales * scale)
        found = linear(kernels, x, codes, scales, None)
        np.testing.assert_allclose(found, expected, rtol=3e-7, err_msg=f"{rows} x {inputs} -> {outputs}")
        with_bias = linear(kernels, x, codes, scales, bias)
        np.testing.assert_allclose(with_bias, expected + bias, rtol=1e-6, atol=1e-6)
        generic = linear("generic", x, codes, scales, bias)
        np.testing.assert_allclose(with_bias, generic, rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("kernels", KERNELS)
def test_numbers_between_two_codes_go_where_a_division_puts_them(kernels):
    rng = np.random.default_rng(2)
    steps = rng.uniform(0.01, 3, size=(60, 1)).astype(np.float32)
    x = (rng.integers(0, 250, size=(60, 96)).astype(np.float32) + np.float32(0.5)) * steps
    x = np.nextafter(x, rng.choice([-np.inf, 0, np.inf], size=x.shape).astype(np.float32))
    x[:, :2] = np.concatenate([0 * steps, 255 * steps], axis=1)
    x[-1] *= np.float32(1e-41)  # of whose step a reciprocal is no number
    expected, scale, zero = coded(x)
    found = linear(kernels, x, np.eye(96, dtype=np.int8), np.ones(96, np.float32), None)
    np.testing.assert_array_equal(np.rint(found / scale), expected - zero)


@needs_native
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_largest_codes_do_not_overflow(kernels):
    width = 4096
    x = np.ones((5, width), np.float32)
    x[1:, :1] = -1e-6
    codes = np.full((16, width), 64, np.int8)
    codes[1::2] = -64
    found = linear(kernels, x, codes, np.ones(16, np.float32), None)
    np.testing.assert_allclose(np.abs(found[0]), 64 * width, rtol=3e-6)
    np.testing.assert_allclose(np.abs(found[1:]), 64 * (width - 1), rtol=3e-6)
    assert (found[:, ::2] > 0).all() and (found[:, 1::2] < 0).all()


@needs_native
@pytest.mark.parametrize("kernels", KERNELS)
def test_numbers_that_are_none_do_no_harm(kernels):
    x = np.array([[np.nan, 1, 2], [np.inf, -1, 0], [-np.inf, np.inf, np.nan], [3e38, -3e38, 1]], np.float32)
    codes = np.ones((3, 3), np.int8)
    linear(kernels, x, codes, np.ones(3, np.float32), None)
    finite = np.concatenate([x[:0], np.ones((1, 3), np.float32)])
    np.testing.assert_allclose(linear(kernels, finite, codes, np.ones(3, np.float32), None), 3, rtol=1e-6)


WIDE = {  # no matrix of fewer rows than the export quantizes, so that every product is one of integers
    "encoder_embed_dim": 40,
    "encoder_branch_dims": [20, 20],
    "decoder_branch_dims": [20, 20],
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_kernel_sizes": [5, 7],
    "decoder_kernel_sizes": [5, 7],
}


@pytest.fixture(scope="module")
def wide_int8(tmp_path_factory):
    """An int8 model, and as its reference the same in torch with every product faked in integers."""
    loaded = loaded_model(share_all_embeddings=True, **WIDE)
    folder = exported(loaded, tmp_path_factory.mktemp("wide"), "int8")
    embedding = loaded.models[0].encoder.embed_tokens.weight
    codes, scales = graphs.quantize_rows(embedding.detach().numpy())
    embedding.data.copy_(torch.from_numpy(codes * scales[:, None]))
    return loaded, folder


def faked_linear(x, weight, bias=None):
    codes, scales = graphs.quantize_rows(weight.detach().numpy())
    values, scale, zero = coded(x.detach().numpy())
    y = ((values - zero).astype(np.float64) @ codes.astype(np.float64).T).astype(np.float32) * (scales * scale)
    y = torch.from_numpy(y.astype(np.float32))
    return y if bias is None else y + bias


@needs_native
@pytest.mark.parametrize("kernels", KERNELS)
def test_an_int8_model_is_the_faked_one(kernels, wide_int8, monkeypatch):
    loaded, folder = wide_int8
    manifest = read_manifest(folder)
    engine = NativeEngine(folder, manifest, kernels=kernels)
    assert engine.kernels == kernels
    batch = sources(count=6)
    targets = [[*source[:-1][::-1], END] for source in batch]
    exact = exporting._torch_scores(loaded, batch, targets)
    monkeypatch.setattr(torch.nn.functional, "linear", faked_linear)
    expected = exporting._torch_scores(loaded, batch, targets)
    found = exporting._engine_scores(engine, batch, targets, WORDS)
    # rounding of floats turns a code over now and then; quantizing itself is fifty times as much
    assert np.abs(found - expected).mean() < np.abs(expected - exact).mean() / 20
    assert np.median(np.abs(found - expected)) < 1e-4


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_instruction_set_says_the_same(precision, tied, wide_int8):
    folder = tied.folder if precision == "fp32" else wide_int8[1]
    manifest = read_manifest(folder)
    scores = [
        exporting._engine_scores(NativeEngine(folder, manifest, kernels=kernels), sources(), sources(seed=2), WORDS)
        for kernels in KERNELS
    ]
    for found in scores:
        assert np.median(np.abs(found - scores[-1])) < 1e-5
        assert np.abs(found - scores[-1]).max() < (1e-4 if precision == "fp32" else 0.3)


# --- batches, threads, shortlists ------------------------------------------------------------------------------------


def decode(engine: NativeEngine, batch: list[list[int]], beams: int, steps: int, count: int = 5) -> list[Candidates]:
    """Steps with tokens and an order of the beams that the candidates themselves give."""
    state = engine.encode(collate(batch))
    tokens, order = np.full((len(batch), 1), END), np.arange(len(batch))[:, None]
    found = []
    for _ in range(steps):
        found.append(engine.step(state, tokens, order, None, count))
        best = found[-1].tokens
        chosen = np.arange(beams)[None] % best.shape[1]
        order = np.arange(len(batch))[:, None] * tokens.shape[1] + chosen
        tokens = np.take_along_axis(best[:, :, :beams], chosen[:, :, None], axis=1)[
            :, np.arange(beams), np.arange(beams)
        ]
    return found


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sentence_does_not_see_its_batch(precision, tiny, wide_int8):
    folder = tiny.folder if precision == "fp32" else wide_int8[1]
    engine = NativeEngine(folder, read_manifest(folder))
    together = decode(engine, sources(), 3, 6)
    for number, source in enumerate(sources()):
        for whole, alone in zip(together, decode(engine, [source], 3, 6), strict=True):
            np.testing.assert_array_equal(whole.tokens[number], alone.tokens[0])
            np.testing.assert_array_equal(whole.scores[number], alone.scores[0])


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_threads_share_the_work_and_say_the_same(precision, tiny, wide_int8):
    folder = tiny.folder if precision == "fp32" else wide_int8[1]
    manifest = read_manifest(folder)
    one, two = (NativeEngine(folder, manifest, threads) for threads in (1, 2))
    assert (one.threads, two.threads) == (1, min(2, len(os.sched_getaffinity(0))))
    batch = sources(count=120)
    for whole, alone in zip(decode(one, batch, 4, 12), decode(two, batch, 4, 12), strict=True):
        np.testing.assert_array_equal(whole.tokens, alone.tokens)
        np.testing.assert_array_equal(whole.scores, alone.scores)
    np.testing.assert_array_equal(one.encoder_states(collate(batch)), two.encoder_states(collate(batch)))


@needs_native
def test_callers_of_several_threads_wait_for_each_other(tiny):
    engine = NativeEngine(tiny.folder, read_manifest(tiny.folder), threads=2)
    expected = decode(engine, sources(count=40), 4, 8)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: decode(engine, sources(count=40), 4, 8), range(8)):
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours.tokens, theirs.tokens)
                np.testing.assert_array_equal(ours.scores, theirs.scores)


@needs_native
def test_a_forked_child_goes_on_without_the_threads(tiny):
    program = (
        "import os, sys\n"
        "from lite_transformer.edge import Translator\n"
        f"translator = Translator.load({str(tiny.folder)!r}, threads=2, engine='native')\n"
        "lines = [f'w{n} w{n + 1}' for n in range(30)]\n"
        "expected = translator.translate(lines, max_len_b=9)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = translator.translate(lines, max_len_b=9) == expected\n"
        "    del translator\n"
        "    sys.exit(0 if same else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shortlist(precision, tied, wide_int8):
    folder = tied.folder if precision == "fp32" else wide_int8[1]
    engine = NativeEngine(folder, read_manifest(folder))
    ids = np.array([1, 2, 3, 5, 8, 11, 17, 18, 19, 30, 31, 32, 33, 34, 40, 41, 43])
    first = [np.full((1, 1), END), np.zeros((1, 1), np.int64), None]
    source = np.array([[5, 6, END]])
    everything = engine.step(engine.encode(source), *first, WORDS)
    of_word = np.empty(WORDS, np.float32)
    of_word[everything.tokens.ravel()] = everything.scores.ravel()
    before = engine.encode(source)
    engine.restrict(ids)
    found = engine.step(engine.encode(source), *first, len(ids))
    assert sorted(found.tokens.ravel().tolist()) == ids.tolist()
    expected = of_word[ids] - np.log(np.exp(of_word[ids]).sum())
    np.testing.assert_allclose(found.scores.ravel(), expected[np.searchsorted(ids, found.tokens.ravel())], atol=1e-5)
    np.testing.assert_allclose(found.end_scores.ravel(), expected[1], atol=1e-5)
    # a batch that was begun before keeps its words
    np.testing.assert_array_equal(engine.step(before, *first, WORDS).scores, everything.scores)
    with pytest.raises(UnsupportedInputError, match="18 candidates of 17 words"):
        engine.step(engine.encode(source), *first, 18)
    engine.restrict(None)
    np.testing.assert_array_equal(engine.step(engine.encode(source), *first, WORDS).scores, everything.scores)
    for wrong, message in (
        ([2, 2, 3], "must rise"),
        ([2, 44], "within a vocabulary of 44"),
        ([-1, 2], "must rise"),
        ([1, 3], "do not hold the end"),
        ([], "no words are allowed"),
    ):
        with pytest.raises(UnsupportedInputError, match=message):
            engine.restrict(np.array(wrong, np.int64))


@needs_native
def test_many_candidates_are_sorted_like_few(tiny):
    engine = NativeEngine(tiny.folder, read_manifest(tiny.folder))
    for few, many in zip(decode(engine, sources(), 1, 3, 4), decode(engine, sources(), 1, 3, WORDS), strict=True):
        np.testing.assert_array_equal(few.tokens, many.tokens[..., :4])
        np.testing.assert_array_equal(few.scores, many.scores[..., :4])
        assert (np.diff(many.scores) <= 0).all()
        np.testing.assert_allclose(np.exp(many.scores).sum(axis=-1), 1, rtol=1e-5)


@needs_native
def test_equal_words_come_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    loaded = loaded_model(target_words=200, seed=3)
    loaded.models[0].decoder.output_projection.weight.data[4:] = loaded.models[0].decoder.output_projection.weight[4]
    monkeypatch.setattr(exporting, "check_parity", lambda *_: {})  # torch puts equal words in any order
    folder = exported(loaded, tmp_path)
    engine = NativeEngine(folder, read_manifest(folder))
    for count in (9, 150):
        found = decode(engine, [[5, END]], 1, 1, count)[0].tokens[0, 0].tolist()
        same = [token for token in found if token >= 4]
        assert len(same) >= count - 4 and same == list(range(4, 4 + len(same)))


@needs_native
@pytest.mark.parametrize("count", [9, 70])  # kept while they are found, and sorted in the end
def test_the_likeliest_of_many_words(count, tmp_path, monkeypatch):
    """Words that several pieces look through, some of them equal, with one thread and with two."""
    loaded = loaded_model(target_words=5000, seed=4)
    weight = loaded.models[0].decoder.output_projection.weight.data
    words = len(weight)
    rng = np.random.default_rng(5)
    weight[4:] = weight[torch.from_numpy(rng.integers(4, 400, words - 4))]
    monkeypatch.setattr(exporting, "check_parity", lambda *_: {})  # torch puts equal words in any order
    folder = exported(loaded, tmp_path)
    engines = [NativeEngine(folder, read_manifest(folder), threads) for threads in (1, 2)]
    found = [decode(engine, sources(count=3), 3, 6, count) for engine in engines]
    everything = decode(engines[0], sources(count=3), 3, 1, words)[0]
    best = np.argsort(-everything.scores, axis=-1, kind="stable")
    assert (everything.tokens[..., 1:] > everything.tokens[..., :-1])[np.diff(everything.scores) == 0].all()
    np.testing.assert_array_equal(found[0][0].tokens, np.take_along_axis(everything.tokens, best, -1)[..., :count])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.scores, two.scores)


# --- which engine runs -----------------------------------------------------------------------------------------------


@needs_native
def test_which_engine_runs_is_logged(tiny, caplog):
    caplog.set_level(logging.INFO, logger=tiers.__name__)
    assert Translator.load(tiny.folder).engine.name == "native"
    assert caplog.messages == [f"native engine: fp32, {KERNELS[0]}, threads: 1"]
    caplog.clear()
    assert Translator.load(tiny.folder, engine="portable").engine.name == "onnxruntime"
    assert caplog.messages == ["portable engine"]


def test_the_portable_engine_serves_where_the_native_one_cannot(tiny, caplog, monkeypatch):
    monkeypatch.setattr(native, "compiled", lambda: None)
    caplog.set_level(logging.INFO, logger=tiers.__name__)
    assert Translator.load(tiny.folder).engine.name == "onnxruntime"
    (message,) = caplog.messages
    assert message.startswith("portable engine: the native one cannot run, it was not built: install a C++ compiler")
    with pytest.raises(ConfigError, match=r"cannot run: it was not built.*--engine portable"):
        Translator.load(tiny.folder, engine="native")
    with pytest.raises(ConfigError, match="engine 'fast' is not one of auto, native, portable"):
        Translator.load(tiny.folder, engine="fast")


@needs_native
def test_obstacles(tiny):
    import dataclasses

    manifest = read_manifest(tiny.folder)
    assert obstacle(manifest) is None
    assert "export the model again" in obstacle(dataclasses.replace(manifest, format=1))
    assert "no int4 weights" in obstacle(dataclasses.replace(manifest, precision="int4"))
    with pytest.raises(ConfigError, match="this processor has no abacus; it has"):
        NativeEngine(tiny.folder, manifest, kernels="abacus")


@needs_native
def test_neither_onnxruntime_nor_torch(tiny):
    missing, lines = ("torch", "fairseq", "onnx", "onnxruntime"), ["w1 w2", "", "w5"]
    found = translated_without(tiny.folder, missing, lines, engine="native")
    assert found == Translator.load(tiny.folder).translate(lines)


def test_a_package_without_a_compiler(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp",
         str(tmp_path / "temp")],
        cwd=ROOT, env=environment() | {"CC": "no-such-compiler", "CXX": "no-such-compiler"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert not list(tmp_path.rglob("*.so"))
    assert "building extension" in done.stderr and "failed" in done.stderr


class Stepping:
    """An engine that leaves the search to Python."""

    def __init__(self, engine: NativeEngine):
        self.encode, self.step = engine.encode, engine.step


@needs_native
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam": 1},
        {"beam": 21, "max_len_b": 4},  # as wide as 44 words allow
        {"lenpen": 0.3, "min_len": 5},
        {"lenpen": -1.5, "max_len_a": 1.2, "max_len_b": 0},  # another limit for each sentence
        {"min_len": 15, "max_len_b": 15, "no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "min_len": 12},
        {"no_repeat_ngram_size": 3, "min_len": 20, "beam": 2},
        {"max_len_b": 0, "min_len": 0},
    ],
    ids=repr,
)
def test_the_search_is_that_of_python(options, tiny):
    """To the last bit, for a batch and for each sentence alone, with all words and with some."""
    translator = Translator.load(tiny.folder, engine="native")
    engine, longest = translator.engine, translator.manifest.max_target_tokens
    settings = translator.settings(**{"beam": 4, "max_len_a": 0.0, "max_len_b": 20, "lenpen": 1.0} | options)
    batch = [[40, END], *sources(count=20, seed=7)]
    ids = np.arange(WORDS) if settings.beam == 21 else np.setdiff1d(np.arange(WORDS), [3, 9, 17, 30, 40])
    for allowed in (None, ids):
        engine.restrict(allowed)
        words = WORDS if allowed is None else len(allowed)
        found = search(engine, batch, settings, words, longest)
        assert found == search(Stepping(engine), batch, settings, words, longest)
        assert found == [search(engine, [source], settings, words, longest)[0] for source in batch]


@needs_native
def test_the_search_among_equal_words_and_padding_that_is_likely(tmp_path, monkeypatch):
    loaded = loaded_model(target_words=60, seed=3)
    weight = loaded.models[0].decoder.output_projection.weight.data
    weight[4:] = weight[4 + torch.arange(len(weight) - 4) % 5]
    weight[PAD] = weight[3]  # the likeliest
    monkeypatch.setattr(exporting, "check_parity", lambda *_: {})  # torch puts equal words in any order
    folder = exported(loaded, tmp_path)
    translator = Translator.load(folder, engine="native")
    settings = translator.settings(beam=6, max_len_a=0.0, max_len_b=9, min_len=3)
    found = search(translator.engine, sources(count=20), settings, len(weight), 30)
    assert found == search(Stepping(translator.engine), sources(count=20), settings, len(weight), 30)
    assert all(PAD not in item.tokens for each in found for item in each)


@needs_native
def test_an_interrupt_ends_a_search(tiny, monkeypatch):
    engine = NativeEngine(tiny.folder, read_manifest(tiny.folder))
    steps, released, call, try_to = [], [], Library.call, Library.try_to

    def interrupted(library, name, *arguments, error):
        steps.append(name)
        if steps.count("lt_search_step") == 3:
            raise KeyboardInterrupt
        return try_to(library, name, *arguments, error=error)

    def watched(library, name, *arguments):
        released.append(name)
        return call(library, name, *arguments)

    monkeypatch.setattr(Library, "try_to", interrupted)
    monkeypatch.setattr(Library, "call", watched)
    with pytest.raises(KeyboardInterrupt):
        engine.search(np.array([[5, END]]), np.array([20]), 4, 12, 0, 1.0)
    assert released == ["lt_search_release"]


@needs_native
def test_search_goes_through_the_same_words(tiny):
    """Both engines, with every sentence leaving the batch at another step."""
    manifest = read_manifest(tiny.folder)
    words = Vocabulary(tiny.folder / manifest.vocabulary["target"])
    translators = [Translator.load(tiny.folder, engine=name) for name in ("native", "portable")]
    settings = translators[0].settings(beam=4, max_len_a=1.0, max_len_b=3)
    batch = sources(count=30, seed=9)
    native_found, portable_found = (
        search(translator.engine, batch, settings, len(words), manifest.max_target_tokens) for translator in translators
    )
    assert [[item.tokens for item in each] for each in native_found] == [
        [item.tokens for item in each] for each in portable_found
    ]
    assert all(PAD not in item.tokens for each in native_found for item in each)
