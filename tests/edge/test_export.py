"""What is exported computes what the model computes; what cannot be exported is refused, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import onnx
import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig

from lite_transformer.cli.main import main
from lite_transformer.edge import Translator, engine, graphs
from lite_transformer.edge import export as exporting
from lite_transformer.edge.folder import read_manifest
from lite_transformer.edge.search import collate, search
from lite_transformer.errors import CheckpointError, ConfigError, DataError, UnsupportedInputError
from lite_transformer.scoring.decoding import NoRepeatedNgrams
from tests.edge.models import exported, loaded_model
from tests.helpers.models import tiny_language_model

MODELS = {
    "dynamic": {},
    "lightweight": {"encoder_branches": ["lightweight", "attention"], "encoder_branch_dims": [4, 12]},
    "three_branches": {
        "encoder_embed_dim": 24,
        "encoder_branches": ["dynamic", "attention", "lightweight"],
        "decoder_kernel_sizes": [1, 4],
    },
    "plain_conv": {"no_conv_linear": True, "encoder_conv_gate": "none", "decoder_conv_gate": "none"},
    "unnormalised": {"no_weight_softmax": True},
    "masked_before": {"conv_padding_mask": "before_linear", "activation_fn": "tanh"},
    "pre_norm": {"encoder_normalize_before": True, "decoder_normalize_before": True, "layernorm_embedding": True},
    "learned_positions": {"encoder_learned_pos": True, "decoder_learned_pos": True, "no_scale_embedding": True},
    "no_positions": {"no_token_positional_embeddings": True},
    "one_matrix": {"share_all_embeddings": True},
    "two_dictionaries": {"target_words": 30},
    "two_widths": {"target_words": 30, "decoder_embed_dim": 24, "decoder_layers": 1, "decoder_kernel_sizes": [5]},
    "transformer": {"transformer": True},
    "transformer_pre_norm": {
        "transformer": True,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
    },
}
SEARCHES = {
    "greedy": {"beam": 1},
    "beam": {"beam": 5},
    "penalty": {"beam": 4, "lenpen": 0.3},
    "short": {"beam": 4, "max_len_a": 0.0, "max_len_b": 6},
    "long": {"beam": 3, "min_len": 8, "lenpen": 2.0},
    "no_repeated_trigrams": {"beam": 4, "no_repeat_ngram_size": 3, "min_len": 12},
    "no_repeats": {"beam": 4, "no_repeat_ngram_size": 2, "min_len": 12},
}


def sources(words: int = 40, count: int = 12, seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[*(rng.randrange(4, words + 4) for _ in range(rng.randint(1, 14))), 2] for _ in range(count)]


def fairseq_hypotheses(loaded, batch, **options):
    """Tokens and scores of fairseq's own search."""
    config = GenerationConfig(**{"max_len_a": 0.0, "max_len_b": 20} | options)
    generator = loaded.task.build_generator(loaded.models, config)
    if options.get("no_repeat_ngram_size"):
        generator.repeat_ngram_blocker = NoRepeatedNgrams(options["no_repeat_ngram_size"])
    lengths = torch.tensor([len(source) for source in batch])
    sample = {"net_input": {"src_tokens": torch.from_numpy(collate(batch)), "src_lengths": lengths}}
    with torch.no_grad():
        found = loaded.task.inference_step(generator, loaded.models, sample)
    return [[(tuple(item["tokens"].tolist()), float(item["score"])) for item in each] for each in found]


def own_hypotheses(translator, batch, **options):
    settings = translator.settings(**{"lenpen": 1.0, "max_len_a": 0.0, "max_len_b": 20} | options)
    size, longest = translator.manifest.model["target_vocabulary"], translator.manifest.max_target_tokens
    found = search(translator.engine, batch, settings, size, longest)
    return [[(item.tokens, item.score) for item in each] for each in found]


def check_same(ours, theirs):
    assert [[tokens for tokens, _ in each] for each in ours] == [[tokens for tokens, _ in each] for each in theirs]
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([score for _, score in own], [score for _, score in other], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name, tmp_path):
    loaded = loaded_model(**MODELS[name])
    translator = Translator.load(exported(loaded, tmp_path))
    assert translator.manifest.parity["max_logprob_difference"] < 1e-4
    check_same(own_hypotheses(translator, sources(), beam=4), fairseq_hypotheses(loaded, sources(), beam=4))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search(name, tiny, translator):
    options = SEARCHES[name]
    ours = own_hypotheses(translator, sources(), **options)
    check_same(ours, fairseq_hypotheses(tiny.loaded, sources(), **options))
    if name not in ("greedy", "short"):
        assert len({len(tokens) for each in ours for tokens, _ in each}) > 2


def test_lengths_are_limited_by_each_source_itself(tiny, translator):
    options = {"beam": 3, "max_len_a": 0.6, "max_len_b": 2, "lenpen": 3.0}
    together = own_hypotheses(translator, sources(), **options)
    check_same(together, [fairseq_hypotheses(tiny.loaded, [source], **options)[0] for source in sources()])
    longest = [max(len(tokens) for tokens, _ in each) for each in together]
    limits = [int(0.6 * len(source) + 2) + 1 for source in sources()]  # the end of the sentence not counted
    assert all(length <= limit for length, limit in zip(longest, limits, strict=True))
    assert sum(length == limit for length, limit in zip(longest, limits, strict=True)) > 6


def test_standard_operators_and_shared_weights(tied):
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load(str(tied.folder / name), load_external_data=False)
        assert {node.domain for node in graph.graph.node} == {""}
        assert [(item.domain, item.version) for item in graph.opset_import] == [("", graphs.OPSET)]
    manifest = read_manifest(tied.folder)
    embedding = 44 * 16 * 4
    bytes_of_tensors = sum(
        int(np.prod(item["shape"])) * np.dtype(item["dtype"]).itemsize for item in manifest.tensors.values()
    )
    assert [item["shape"] for item in manifest.tensors.values()].count([44, 16]) == 1
    assert manifest.files["weights.bin"]["size_bytes"] < bytes_of_tensors + embedding
    assert manifest.vocabulary == {"source": "dict.txt", "target": "dict.txt"}


def test_two_dictionaries_keep_their_names(tmp_path):
    manifest = read_manifest(exported(loaded_model(target_words=30), tmp_path))
    assert manifest.vocabulary == {"source": "dict.de.txt", "target": "dict.en.txt"}


def test_int8(tied, tmp_path):
    folder = exported(tied.loaded, tmp_path, "int8")
    manifest = read_manifest(folder)
    codes = [item for item in manifest.tensors.values() if item["dtype"] == "int8"]
    assert [44, 16] in [item["shape"] for item in codes]
    content = np.fromfile(folder / "weights.bin", np.int8)
    largest = max(
        int(np.abs(content[item["offset"] : item["offset"] + int(np.prod(item["shape"]))]).max()) for item in codes
    )
    assert largest == 64  # more would overflow the 16 bits in which AVX2 adds products
    assert 0.001 < manifest.parity["mean_logprob_difference"] < 0.25
    sizes = [read_manifest(each).files["weights.bin"]["size_bytes"] for each in (folder, tied.folder)]
    assert sizes[0] < 0.6 * sizes[1]
    decoder = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
    kinds = [node.op_type for node in decoder.graph.node]
    assert kinds.count("MatMulInteger") > 10
    assert {node.domain for node in decoder.graph.node} == {""}


WIDE = {"encoder_embed_dim": 32}  # queries, keys and values are matrices worth quantizing, each alone as well as joined


@pytest.mark.parametrize(
    "options", [WIDE | {"share_all_embeddings": True}, WIDE | {"target_words": 30}, {"transformer": True}]
)
def test_int4(options, tmp_path, monkeypatch):
    """It computes with the dequantized weights; products in fp32 show that to the last digits."""
    loaded = loaded_model(**options)
    monkeypatch.setattr(engine, "INT4_ACCURACY", "1")
    coded = Translator.load(exported(loaded, tmp_path, "int4"), engine="portable")
    manifest = read_manifest(tmp_path / "model")
    for module in loaded.models[0].modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and len(module.weight) >= 16:
            codes, scales = graphs.quantize_blocks(module.weight.detach().numpy())
            blocks = np.repeat(scales, graphs.INT4_BLOCK, axis=0)[: len(codes)]
            module.weight.data = torch.from_numpy((codes * blocks).T.copy())
    (tmp_path / "plain").mkdir()
    plain = Translator.load(exported(loaded, tmp_path / "plain"), engine="portable")
    check_same(own_hypotheses(coded, sources(26), beam=4), own_hypotheses(plain, sources(26), beam=4))
    assert {item["dtype"] for item in manifest.tensors.values()} == {"int4", "uint8", "float32", "int64"}
    if "share_all_embeddings" in options:
        same = [manifest.tensors[f"embedding.{name}"]["offset"] for name in ("weight", "bytes")]
        assert same[0] == same[1]
    decoder = onnx.load(str(tmp_path / "model" / "decoder.onnx"), load_external_data=False)
    assert {node.domain for node in decoder.graph.node} == {""}
    assert [node.op_type for node in decoder.graph.node].count("DequantizeLinear") > 8


def test_int4_in_int8_arithmetic_and_odd_dictionaries(tied, tmp_path):
    (tmp_path / "even").mkdir()
    manifest = read_manifest(exported(tied.loaded, tmp_path / "even", "int4"))
    assert 0.001 < manifest.parity["mean_logprob_difference"] < 1
    (tmp_path / "odd").mkdir()
    odd = read_manifest(exported(loaded_model(target_words=27), tmp_path / "odd", "int4"))
    assert odd.tensors["decoder.embedding.weight"]["dtype"] == "int8"
    assert odd.tensors["encoder.embedding.bytes"]["dtype"] == "uint8"


def test_quantized_blocks():
    weight = np.zeros((2, 40), np.float32)
    weight[0, :32] = np.arange(-16, 16) / 2
    weight[1, 32:] = [4, 2, 1, 0.5, 0, -0.5, -1, -3.5]
    codes, scales = graphs.quantize_blocks(weight)
    assert codes.shape == (40, 2) and scales.shape == (2, 2)
    assert codes[32:, 1].tolist() == [-8, -4, -2, -1, 0, 1, 2, 7]
    np.testing.assert_allclose(scales[1, 1], -0.5)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 64)).astype(np.float32)
    codes, scales = graphs.quantize_blocks(weight)
    step = np.abs(np.repeat(scales, 32, axis=0)).T
    error = np.abs(codes.T * np.repeat(scales, 32, axis=0).T - weight)
    assert (error <= step * 0.5 + 1e-6).mean() > 0.95  # a few are clipped
    whole = np.abs(weight.reshape(6, 2, 32)).max(axis=2).T / 8
    assert (np.abs(scales) <= whole + 1e-6).all() and (np.abs(scales) < whole - 1e-6).any()
    packed = graphs.pack(np.array([[-8, 7, 0, -1]], np.int8))
    assert packed.tolist() == [[0x78, 0xF0]]


def test_quantized_rows():
    weight = np.array([[1.0, -0.5, 0.25], [0, 0, 0], [-3, 3, 1.5]], np.float32)
    codes, scales = graphs.quantize_rows(weight)
    assert codes.tolist() == [[64, -32, 16], [0, 0, 0], [-64, 64, 32]]
    np.testing.assert_allclose(codes * scales[:, None], weight)


def test_a_model_that_computes_something_else_is_not_written(tiny, tmp_path, monkeypatch):
    original = exporting.model_parts

    def wrong(model):
        parts = original(model)
        return dataclasses.replace(parts, decoder=dataclasses.replace(parts.decoder, scale=parts.decoder.scale * 1.05))

    monkeypatch.setattr(exporting, "model_parts", wrong)
    with pytest.raises(CheckpointError, match="computes something else: its log-probabilities differ"):
        exported(tiny.loaded, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_numbers_that_are_none(tmp_path):
    loaded = loaded_model()
    loaded.models[0].decoder.layers[0].fc1.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        exported(loaded, tmp_path)
    assert not (tmp_path / "model").exists()


def test_refusals(tiny, tmp_path):
    with pytest.raises(UnsupportedInputError, match="activation 'gelu' cannot be exported"):
        exported(loaded_model(activation_fn="gelu"), tmp_path)
    with pytest.raises(UnsupportedInputError, match="is a language model: the exported graphs"):
        exporting.model_parts(tiny_language_model())
    with pytest.raises(ConfigError, match="2 models: an ensemble"):
        exported(dataclasses.replace(tiny.loaded, models=tiny.loaded.models * 2), tmp_path)
    with pytest.raises(ConfigError, match="precision 'int3' is not one of fp32, int8, int4"):
        exported(tiny.loaded, tmp_path, "int3")
    for settings in ({"beam": 22}, {"beam": 22, "static_length": 20}):  # it could translate nothing
        with pytest.raises(ConfigError, match="beam 22 is too wide for 44 subwords: at most 21"):
            exported(tiny.loaded, tmp_path, **settings)
    with pytest.raises(ConfigError, match="min_len 19 is more than"):
        exported(tiny.loaded, tmp_path, min_len=19, static_length=19)
    loaded = loaded_model(target_words=30)
    loaded.task.target_dictionary.add_symbol("more")
    with pytest.raises(DataError, match="the target dictionary has 35 subwords, the model 34"):
        exported(loaded, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ConfigError, match="exists already"):
        exported(tiny.loaded, tmp_path)
    assert (tmp_path / "model" / "mine").exists()


def test_the_verb(trained, released, tmp_path, capsys):
    command = ["export", str(trained.checkpoints[1]), "--data", str(trained.data), "--out", str(tmp_path / "mine")]
    assert main(command) == 0
    assert "Log-probabilities differ" in capsys.readouterr().out
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert (
        main(
            ["export", "--model", str(released), "--out", str(tmp_path / "theirs"), "--lenpen", "0.5", "--min-len", "3"]
        )
        == 0
    )
    manifest = read_manifest(tmp_path / "theirs")
    assert manifest.search["min_len"] == 3
    assert (manifest.search["beam"], manifest.search["lenpen"]) == (2, 0.5)
    assert "bpe/codes" in manifest.files
    packed = tmp_path / "model.ltpack"
    assert main(["compress", str(trained.checkpoints[1]), "--data", str(trained.data), "--out", str(packed)]) == 0
    assert main(["export", str(packed), "--out", str(tmp_path / "packed"), "--precision", "int8"]) == 0
    text = ["Der Hund läuft heute.", "", "Das Haus ist groß."]
    translations = [Translator.load(tmp_path / name).translate(text) for name in ("mine", "packed")]
    assert all(len(each) == 3 and each[0] and not each[1] for each in translations)


def test_a_language_model_is_refused_before_it_is_loaded(tmp_path, capsys):
    checkpoint = tmp_path / "lm.pt"
    torch.save({"args": None, "cfg": {"task": {"_name": "language_modeling"}}, "model": {}}, checkpoint)
    assert main(["export", str(checkpoint), "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is a language model, which cannot be exported" in capsys.readouterr().err


def test_summaries(tmp_path):
    """Of description and synopsis, with the settings of the experiment debian_synopses_lite, made small."""
    sizes = {"encoder_ffn_embed_dim": 12, "encoder_kernel_sizes": [3, 7], "decoder_kernel_sizes": [3, 7]}
    branches = {"encoder_branches": ["attention", "dynamic"], "encoder_conv_gate": "glu", "decoder_conv_gate": "glu"}
    norms = {"encoder_normalize_before": True, "decoder_normalize_before": True, "share_all_embeddings": True}
    loaded = loaded_model(**sizes, **branches, **norms)
    loaded.task.cfg.source_lang, loaded.task.cfg.target_lang = languages = ("description", "synopsis")
    folder = exported(loaded, tmp_path, "fp32", languages=languages, min_len=4, no_repeat_ngram_size=3)
    manifest = read_manifest(folder)
    assert (manifest.source_language, manifest.target_language) == languages
    assert manifest.parity["same_hypotheses"] == manifest.parity["sentences"]
    assert all(len(text.split()) >= 3 for text in Translator.load(folder).translate(["w1 w2 w3", "w5"], max_len_b=12))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.pt", "--data", "d", "--precision", "int3"], "--precision int3: not one of fp32, int8, int4"),
        (["x.pt"], "--data is missing"),
        ([], "give either CHECKPOINT or --model NAME"),
        (["x.pt", "--model", "y"], "give either CHECKPOINT or --model NAME"),
        (["--model", "nothing_like_it"], "unknown model 'nothing_like_it'"),
        (["x.pt", "--data", "d", "--beam", "0"], "--beam 0: at least 1"),
        (["x.pt", "--data", "d", "--no-repeat-ngram-size", "-1"], "--no-repeat-ngram-size -1: at least 0"),
        (["nothing.pt", "--data", "no_such_folder"], "no_such_folder: no prepare.json"),
    ],
)
def test_the_verbs_refusals(words, message, tmp_path, capsys):
    assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
