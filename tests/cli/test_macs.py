"""The macs verb: table, JSON, options, errors."""

import json

import pytest

from lite_transformer.cli.main import main


def run(capsys, *words):
    code = main(["macs", *words])
    return code, *capsys.readouterr()


def run_json(capsys, *words):
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    return json.loads(out)  # exactly one object: anything else on stdout fails here


def test_table_shows_components_totals_taps_and_published_figures(capsys):
    code, out, _ = run(capsys, "lite_transformer_iwslt_de_en")
    assert code == 0
    rows = {line[:40].strip(): line[40:].split() for line in out.splitlines()}
    assert rows["decoder cross-attention"] == ["20,160,000", "37.2", "618,240"]
    assert rows["total"] == ["54,144,000", "100.0", "1,713,584"]
    assert rows["encoder convolution taps"] == ["283,200"]
    assert rows["total with taps"] == ["54,710,400"]
    assert "5,251,504" in out  # with 8848 x 160 source and 2 x 6632 x 160 target embeddings
    assert "54M" in out and "+0.3 %" in out and "2.8M" in out and "2,774,704" in out
    assert "Wu et al. 2020" in out


def test_json_is_one_object_with_all_figures(capsys):
    result = run_json(capsys, "lite_transformer_wmt_en_de")
    assert (result["macs"], result["taps_macs"], result["params_core"]) == (526_990_080, 1_755_840, 17_283_616)
    assert result["params_total"] == 17_283_616 + 32768 * 496, "WMT shares one table"
    assert result["published"]["macs"] == {"ours": 526_990_080, "published": "527M", "difference_percent": 0.0}
    assert sum(row["macs"] for row in result["components"]) == result["macs"]
    assert (result["source_length"], result["target_length"]) == (30, 30)


def test_lengths_and_vocabularies_change_what_they_should(capsys):
    words = ("lite_transformer_cnn_dm", "--source-length", "1000", "--vocab", "100")
    result = run_json(capsys, *words)
    assert result["macs"] == 12_464_718_080
    assert result["params_total"] == 17_283_616 + 100 * 496
    assert result["published"]["macs"]["published"] is None, "no published figure at another length"
    assert result["published"]["params"]["published"] == "17.3M"
    separate = run_json(capsys, "lite_transformer_cnn_dm", "--source-vocab", "100", "--target-vocab", "50")
    assert separate["shared_embeddings"] is False
    assert separate["params_total"] == 17_283_616 + (100 + 50 + 50) * 496


def test_options_change_the_architecture(capsys):
    # transformer-tiny of Multi30k out of a larger one
    words = [
        "--set", "encoder-layers=4", "--set", "decoder_layers=4", "--set", "encoder_embed_dim=128",
        "--set", "encoder_ffn_embed_dim=256", "--set", "decoder_ffn_embed_dim=256",
        "--set", "encoder_attention_heads=4", "--set", "decoder_attention_heads=4",
    ]  # fmt: skip
    tiny = run_json(capsys, "transformer_wmt_en_de_base", "--vocab", "9712", *words)
    assert (tiny["macs"], tiny["params_core"]) == (42_086_400, 1_325_056)
    assert tiny["params_total"] == 1_325_056 + 9712 * 128
    assert tiny["published"]["macs"]["published"] is None, "a changed model has no published figure"
    lite = run_json(capsys, "lite_transformer_iwslt_de_en", "--set", "encoder_embed_dim=128")
    assert (lite["macs"], lite["params_core"]) == (
        66 * 128**2 * 30 + 12 * 2 * 30**2 * 64 + 6 * 2 * 30**2 * 128,
        1_100_720,
    )
    three = run_json(
        capsys, "lite_transformer", "--set", "encoder_branches=attention, dynamic,lightweight",
        "--set", "encoder_branch_dims=[200,200,96]", "--set", "decoder_branch_dims=96,200,200",
        "--set", "no_weight_softmax=true", "--set", "decoder_ffn_embed_dim=none",
    )  # fmt: skip
    assert three["settings"]["encoder_branches"] == ["attention", "dynamic", "lightweight"]
    assert three["settings"]["no_weight_softmax"] is True and three["settings"]["decoder_ffn_embed_dim"] is None


def test_counter_runs_the_model(capsys):
    small = ["--set", "encoder_layers=2", "--set", "decoder_layers=2", "--source-length", "5", "--target-length", "7"]
    result = run_json(capsys, "lite_transformer_iwslt_de_en", "--counter", *small)
    assert result["counter_agrees"] is True
    code, out, _ = run(capsys, "lite_transformer_iwslt_de_en", "--counter", *small)
    assert code == 0 and "the running model agrees in every component" in out


def test_counter_that_disagrees_is_an_error_with_the_component(capsys, monkeypatch):
    from lite_transformer.macs import counter

    monkeypatch.setitem(counter.FORMULAS, "aten::addmm", lambda args, kwargs, out: 1)
    words = ["--set", "encoder_layers=1", "--set", "decoder_layers=1"]
    code, out, err = run(capsys, "transformer_iwslt_de_en_63m", "--counter", *words)
    assert (code, out) == (2, "")
    assert "closed form and running model disagree: encoder attention (2196480, 66048) against" in err


def test_language_model(capsys):
    result = run_json(capsys, "lite_transformer_lm_wikitext103", "--set", "dropout=0.3")
    assert (result["macs"], result["params_core"]) == (1_146_163_200, 37_182_208)
    assert result["published"]["macs"]["published"] == "1147M"
    assert (result["source_length"], result["target_length"], result["target_vocab"]) == (0, 30, 267744)
    longer = run_json(capsys, "lite_transformer_lm_wikitext103", "--target-length", "1000")
    assert longer["macs"] == 48_634_880_000 and longer["published"]["macs"]["published"] is None
    code, out, _ = run(
        capsys, "transformer_lm_wikitext103_256", "--counter", "--set", "decoder_layers=1", "--target-length", "7"
    )
    assert code == 0 and "transformer_lm_wikitext103_256 at 7 tokens, vocabulary 267,744 (one shared table)" in out
    assert "input projection" in out and "the running model agrees in every component" in out
    one = ["--set", "adaptive_input_cutoff=", "--set", "adaptive_softmax_cutoff=none"]
    code, out, _ = run(capsys, "transformer_lm_wikitext103_256", *one)
    assert code == 0 and "input projection" not in out and "shared" not in out


def test_list_names_every_architecture(capsys):
    from lite_transformer.models.architectures import ARCHITECTURES

    code, out, _ = run(capsys, "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(ARCHITECTURES)
    assert [row["arch"] for row in json.loads(run(capsys, "--list", "--json")[1])] == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "unknown architecture 'nope'. Known: lite_transformer, lite_transformer_iwslt_de_en"),
        ([], "which architecture? Known: lite_transformer, "),
        (["lite_transformer", "--set", "width=3"], "--set width=3: unknown option 'width'. Known: "),
        (["lite_transformer", "--set", "dropout"], "--set dropout: write it as OPTION=VALUE"),
        (["lite_transformer", "--set", "encoder_layers=x"], "--set encoder_layers=x: 'x' is no whole number"),
        (["lite_transformer", "--set", "encoder_kernel_sizes=3,y"], "'y' is no whole number"),
        (["lite_transformer", "--set", "no_weight_softmax=maybe"], "'maybe' is neither true nor false"),
        (["lite_transformer", "--set", "ffn_init=big"], "'big' is none of xavier, widened"),
        (["lite_transformer", "--set", "encoder_branch_dims=200,200"], "200 + 200 = 400 do not add up to"),
        (["lite_transformer_lm", "--source-length", "3"], "lite_transformer_lm is a language model and has no source"),
        (["lite_transformer_lm_wikitext103", "--vocab", "9"], "20000,60000 does not fit a vocabulary of 9 types"),
        (["lite_transformer", "--source-length", "0"], "source length 0 is not a positive number"),
        (["lite_transformer", "--vocab", "9", "--target-vocab", "9"], "--vocab sets both vocabularies"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("lite-transformer macs: ") and message in err
    assert err.count("\n") == 1
