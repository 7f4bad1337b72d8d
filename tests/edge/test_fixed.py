"""Graphs of fixed shapes give the translations of those of any shape."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lite_transformer.cli.main import main
from lite_transformer.edge import Translator
from lite_transformer.edge.folder import read_manifest
from lite_transformer.errors import CheckpointError, ConfigError, UnsupportedInputError
from tests.edge.models import exported, loaded_model
from tests.edge.test_export import check_same, own_hypotheses, sources

LENGTH, BEAM = 24, 4


@pytest.fixture(scope="module")
def fixed(tiny, tmp_path_factory):
    return exported(tiny.loaded, tmp_path_factory.mktemp("fixed"), static_length=LENGTH, beam=BEAM)


@pytest.mark.parametrize("options", [{"beam": 4}, {"beam": 2, "lenpen": 0.3}, {"beam": 1}, {"beam": 3, "min_len": 9}])
def test_hypotheses(fixed, tiny, options):
    options = {"max_len_b": 18} | options
    check_same(
        own_hypotheses(Translator.load(fixed), sources(), **options),
        own_hypotheses(Translator.load(tiny.folder, engine="portable"), sources(), **options),
    )


@pytest.mark.parametrize("options", [{"transformer": True}, {"encoder_branches": ["lightweight", "attention"]}])
def test_architectures(options, tmp_path):
    loaded = loaded_model(**options)
    manifest = read_manifest(
        exported(loaded, tmp_path, "int8" if "transformer" in options else "fp32", static_length=20)
    )
    assert manifest.parity["mean_logprob_difference"] < (0.1 if "transformer" in options else 1e-5)
    assert manifest.model["fixed"] == {"length": 20, "beam": 4}


def test_every_shape_is_a_number(fixed):
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(str(fixed / name))).graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    assert "decoder_restricted.onnx" not in read_manifest(fixed).files


def test_long_lines(fixed, tiny, caplog):
    translator = Translator.load(fixed)
    line = " ".join(f"w{number % 40}" for number in range(30))
    assert translator.translate([line, "w1"])[1] == translator.translate(["w1"])[0]
    assert f"line 1: 31 tokens, the model reads {LENGTH}; translated in 2 parts" in caplog.text
    with pytest.raises(UnsupportedInputError, match="26 tokens, the exported model reads 24: export it with a larger"):
        translator.engine.encode(np.full((1, 26), 5))
    translator.translate(["w1 w2"], min_len=LENGTH - 1, max_len_b=60)
    assert f"line 1: its translation has {LENGTH} tokens, all that the model writes, and may be cut" in caplog.text


def test_refusals(fixed, tiny, tmp_path, capsys):
    translator = Translator.load(fixed)
    with pytest.raises(ConfigError, match="beam 5: the model was exported for at most 4, with fixed shapes"):
        translator.settings(beam=5)
    with pytest.raises(ConfigError, match="runs in the portable engine alone"):
        Translator.load(fixed, engine="native")
    with pytest.raises(ConfigError, match="no shortlist: export it without --static-length"):
        translator.engine.restrict(np.array([1, 2, 3]))
    with pytest.raises(ConfigError, match="static length 1: between 2 and the model's"):
        exported(tiny.loaded, tmp_path, static_length=1)
    with pytest.raises(ConfigError, match="has no shortlist: leave out one of the two"):
        exported(tiny.loaded, tmp_path, shortlist=(tmp_path, 3), static_length=20)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert main(["translate", "--model", str(fixed), "--beam", "5"]) == 2
    assert "beam 5: the model was exported for at most 4" in capsys.readouterr().err


def test_a_manifest_without_its_shapes(fixed, tmp_path):
    from dataclasses import replace

    from lite_transformer.edge.fixed import FixedEngine

    manifest = read_manifest(fixed)
    with pytest.raises(CheckpointError, match="does not say its fixed shapes"):
        FixedEngine(fixed, replace(manifest, model=manifest.model | {"fixed": {"length": "x"}}), 1)
    for shapes in ({"length": LENGTH, "beam": BEAM + 1}, {"length": LENGTH + 1, "beam": BEAM}):
        with pytest.raises(CheckpointError, match="its graphs are not of its fixed shapes"):
            FixedEngine(fixed, replace(manifest, model=manifest.model | {"fixed": shapes}), 1)
