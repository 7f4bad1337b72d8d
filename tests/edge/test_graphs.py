"""What ONNX Runtime makes of the graphs, and graphs of older formats."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from lite_transformer.edge import Translator
from lite_transformer.edge.engine import OnnxEngine, session_options
from lite_transformer.edge.folder import read_manifest
from lite_transformer.edge.search import search
from tests.edge.models import exported, loaded_model
from tests.edge.test_export import own_hypotheses, sources


def kernels(folder, name, tmp_path):
    """What a graph's operators become."""
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize("options", [{"share_all_embeddings": True}, {"target_words": 30}])
@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "decoder_restricted.onnx"])
def test_no_matrix_of_int4_is_dequantized(options, name, tmp_path):
    """Not even the output's, whose scales may be those of an embedding: it would be 32,000 words at each step."""
    folder = exported(loaded_model(encoder_embed_dim=32, **options), tmp_path, "int4")
    found = kernels(folder, name, tmp_path)
    assert "DequantizeLinear" not in found
    assert found.count("MatMulNBits") >= 16


def test_products_of_int8_are_one_operator_each(tied, tmp_path):
    folder = exported(tied.loaded, tmp_path, "int8")
    found = kernels(folder, "decoder.onnx", tmp_path)
    assert found.count("DynamicQuantizeMatMul") > 10
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & set(found)
    assert found.count("FusedMatMul") == 2  # keys are read as they lie in their cache


def test_steps_of_format_2(tiny, tmp_path):
    """They gave (B, N, ...): of one sentence, rows with one dimension more."""
    folder = shutil.copytree(tiny.folder, tmp_path / "old")
    model = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
    graph = model.graph
    names = {item.name for item in graph.output}
    for node in graph.node:
        for kind in (node.input, node.output):
            kind[:] = [f"{name}.rows" if name in names else name for name in kind]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    for name in names:
        if name.startswith("new."):
            graph.node.append(onnx.helper.make_node("Unsqueeze", [f"{name}.rows", "axis"], [name]))
        else:  # (rows, 1, ...)
            perm = [1, 0] if name == "end_scores" else [1, 0, 2]
            graph.node.append(onnx.helper.make_node("Transpose", [f"{name}.rows"], [name], perm=perm))
    for item in graph.output:
        item.type.tensor_type.ClearField("shape")
    onnx.save(model, str(folder / "decoder.onnx"))
    translator = Translator.load(tiny.folder, engine="portable")
    old = OnnxEngine(folder, read_manifest(folder), 1)
    settings = translator.settings(beam=4, max_len_a=0, max_len_b=20)
    for source in sources()[:4]:
        found = search(old, [source], settings, 44, translator.manifest.max_target_tokens)
        expected = own_hypotheses(translator, [source], beam=4, lenpen=settings.lenpen)
        assert [item.tokens for item in found[0]] == [tokens for tokens, _ in expected[0]]


def test_there_are_no_more_threads_than_processors():
    assert session_options(1).intra_op_num_threads == 1
    assert 1 <= session_options(10**20).intra_op_num_threads <= (os.cpu_count() or 1)


def test_errors_are_raised_and_not_written_to_the_screen_as_well(tiny, capfd):
    translator = Translator.load(tiny.folder, engine="portable")
    with pytest.raises(Exception, match="indices element out of data bounds"):
        translator.engine.encode(np.array([[10**6, 2]]))
    assert "onnxruntime" not in capfd.readouterr().err
