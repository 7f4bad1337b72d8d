"""The integers that the paper's convention gives, for every row and every length of its tables."""

import pytest

from lite_transformer.errors import ConfigError
from lite_transformer.macs.closed_form import closed_form
from lite_transformer.macs.counter import build_model, count_model, smallest_vocabulary
from lite_transformer.models.architectures import ARCHITECTURES
from lite_transformer.models.lite_transformer import resolved_config

# model, source and target length, MACs, MACs with taps (None: no convolution), core parameters, with output matrix
# (None: not published). Derived by hand from the published configurations, independently of this repository's table.
GOLDEN = [
    ("lite_transformer_iwslt_de_en", 30, 30, 54_144_000, 54_710_400, 1_713_584, 2_774_704),
    ("lite_transformer_iwslt_de_en_240", 30, 30, 119_232_000, 120_081_600, 3_837_104, 5_428_784),
    ("lite_transformer_iwslt_de_en_320", 30, 30, 209_664_000, 210_796_800, 6_805_424, 8_927_664),
    ("transformer_iwslt_de_en_63m", 30, 30, 63_129_600, None, 1_987_584, 2_836_480),
    ("transformer_iwslt_de_en_139m", 30, 30, 138_931_200, None, 4_455_936, 5_729_280),
    ("transformer_iwslt_de_en_215m", 30, 30, 215_136_000, None, 6_952_320, 8_544_000),
    ("lightconv_iwslt_de_en_52m", 30, 30, 51_517_440, 52_542_720, 1_691_820, 2_540_716),
    ("lightconv_iwslt_de_en_115m", 30, 30, 114_877_440, 116_415_360, 3_790_572, 5_063_916),
    ("lightconv_iwslt_de_en_204m", 30, 30, 203_304_960, 205_355_520, 6_724_908, 8_422_700),
    ("lite_transformer_wmt_en_de_200", 30, 30, 89_952_000, 90_660_000, 2_884_400, None),
    ("lite_transformer_wmt_en_fr_200", 30, 30, 89_952_000, 90_660_000, 2_884_400, None),
    ("lite_transformer_wmt_en_de_408", 30, 30, 359_170_560, 360_614_880, 11_739_792, None),
    ("lite_transformer_wmt_en_fr_408", 30, 30, 359_170_560, 360_614_880, 11_739_792, None),
    ("lite_transformer_wmt_en_de", 30, 30, 526_990_080, 528_745_920, 17_283_616, None),
    ("lite_transformer_wmt_en_fr", 30, 30, 526_990_080, 528_745_920, 17_283_616, None),
    ("lite_transformer", 30, 30, 526_990_080, 528_745_920, 17_283_616, None),
    ("transformer_wmt_en_de_87m", 30, 30, 86_722_560, None, 2_777_088, None),
    ("transformer_wmt_en_fr_87m", 30, 30, 86_722_560, None, 2_777_088, None),
    ("transformer_wmt_en_de_338m", 30, 30, 338_595_840, None, 11_059_200, None),
    ("transformer_wmt_en_fr_338m", 30, 30, 338_595_840, None, 11_059_200, None),
    ("transformer_wmt_en_de_527m", 30, 30, 526_464_000, None, 17_264_640, None),
    ("transformer_wmt_en_fr_527m", 30, 30, 526_464_000, None, 17_264_640, None),
    ("transformer_wmt_en_de_base", 30, 30, 1_337_794_560, None, 44_138_496, None),
    ("transformer_wmt_en_fr_base", 30, 30, 1_337_794_560, None, 44_138_496, None),
    ("lite_transformer_lm_wikitext103", 0, 30, 1_146_163_200, 1_153_313_280, 37_182_208, None),
    ("lite_transformer_lm_wikitext103", 0, 100, 3_895_808_000, 3_919_641_600, 37_182_208, None),
    ("lite_transformer_lm_wikitext103", 0, 1000, 48_634_880_000, 48_873_216_000, 37_182_208, None),
    ("lite_transformer_lm_wikitext103_640", 0, 30, 592_588_800, 597_696_000, 19_185_920, None),
    ("lite_transformer_lm_wikitext103_512", 0, 30, 383_631_360, 387_717_120, 12_399_616, None),
    ("lite_transformer_lm_wikitext103_408", 0, 30, 247_150_080, 250_405_920, 7_971_504, None),
    ("lite_transformer_lm", 0, 30, 1_122_078_720, 1_129_228_800, 37_182_208, None),
    ("transformer_lm_wikitext103_256", 0, 30, 290_611_200, None, 9_477_120, None),
    ("transformer_lm_wikitext103_320", 0, 30, 452_352_000, None, 14_795_520, None),
    ("transformer_lm_wikitext103_512", 0, 30, 1_151_385_600, None, 37_828_608, None),
    ("transformer_lm_wikitext103_512", 0, 100, 3_923_968_000, None, 37_828_608, None),
    ("transformer_lm_wikitext103_512", 0, 1000, 50_298_880_000, None, 37_828_608, None),
    ("transformer_lm_baseline", 0, 30, 1_143_521_280, None, 37_828_608, None),
    ("lite_transformer_cnn_dm", 30, 60, 798_520_320, None, 17_283_616, None),
    ("lite_transformer_cnn_dm", 100, 60, 1_452_922_880, None, 17_283_616, None),
    ("lite_transformer_cnn_dm", 1000, 60, 12_464_718_080, None, 17_283_616, None),
    ("transformer_cnn_dm_2g", 30, 60, 2_020_515_840, None, 44_138_496, None),
    ("transformer_cnn_dm_2g", 100, 60, 3_643_637_760, None, 44_138_496, None),
    ("transformer_cnn_dm_2g", 1000, 60, 29_876_060_160, None, 44_138_496, None),
    ("transformer_multi30k", 30, 30, 42_086_400, None, 1_325_056, None),
]
# The running model is counted once for each distinct model, and not on the longest passes, which take long to multiply.
RUN = [row for row in GOLDEN if "en_fr" not in row[0] and row[0] != "lite_transformer" and row[3] < 2e9]
RUN = [row for row in RUN if row[1] or row[0].endswith(("lm_wikitext103", "_408", "lm_wikitext103_256", "_baseline"))]


def name_of(row):
    return f"{row[0]}-{row[1]}-{row[2]}"


@pytest.mark.parametrize("row", GOLDEN, ids=name_of)
def test_closed_form_gives_the_golden_integers(row):
    name, source, target, macs, with_taps, core, with_output = row
    config = resolved_config(name)
    report = closed_form(config, source, target, 8848, smallest_vocabulary(config, 6632))
    assert report.macs == macs
    assert report.params_core == core
    if "cnn_dm" not in name:
        assert report.taps_macs == (0 if with_taps is None else with_taps - macs)
    if with_output is not None:
        assert report.params_core + report.params_output == with_output


def test_every_architecture_has_golden_values_and_the_table_of_architectures_agrees():
    assert {row[0] for row in GOLDEN} >= set(ARCHITECTURES) - {
        name for name in ARCHITECTURES if "multi30k" in name and name.startswith("lite")
    }
    claimed = {}
    for name, row in ARCHITECTURES.items():
        lengths = {(row.data.source_length, row.data.target_length): row.macs, **row.other_lengths}
        claimed |= {(name, *pair): (macs, row.core_params) for pair, macs in lengths.items()}
    for row in GOLDEN:
        assert claimed[row[:3]] == (row[3], row[5])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_claims_of_the_table_are_recomputed(name):
    row = ARCHITECTURES[name]
    config = resolved_config(name)
    types = smallest_vocabulary(config, 8)
    report = closed_form(config, row.data.source_length, row.data.target_length, 8, types)
    assert (report.macs, report.params_core) == (row.macs, row.core_params)
    for lengths, macs in row.other_lengths.items():
        assert closed_form(config, *lengths, 8, types).macs == macs


@pytest.mark.parametrize("row", RUN, ids=name_of)
def test_running_model_costs_the_golden_integers(row):
    name, source, target, macs, with_taps, core, _ = row
    config = resolved_config(name)
    report = count_model(build_model(config), source, target)
    assert (report.macs, report.params_core) == (macs, core)
    assert report == closed_form(config, source, target, 8, smallest_vocabulary(config, 8))
    if with_taps is not None:
        assert report.macs + report.taps_macs == with_taps


TINY = {
    "encoder_embed_dim": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_kernel_sizes": [3, 7],
    "decoder_kernel_sizes": [3, 7],
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "cross_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("options", "core", "macs"),
    [
        ({}, 7_008, 41_856),
        (
            {
                "encoder_branches": ["attention", "lightweight"],
                "encoder_conv_gate": "none",
                "decoder_conv_gate": "none",
            },
            6_440,
            38_400,
        ),
        ({"encoder_branches": ["attention", "lightweight"]}, 6_440, 38_400),
    ],
    ids=["gate-dynamic", "lightweight", "lightweight-ignores-the-gate"],
)
def test_tiny_model_by_hand_both_ways(options, core, macs):
    """Source length 5 and target length 7: shorter than or equal to the longest kernel, which costs its full width."""
    config = resolved_config("lite_transformer", **TINY, **options)
    for report in (closed_form(config, 5, 7, 8, 8), count_model(build_model(config), 5, 7)):
        assert (report.params_core, report.macs, report.taps_macs) == (core, macs, 960)
        assert (report.output_macs, report.params_output) == (7 * 16 * 8, 16 * 8)


def test_vocabulary_and_sharing():
    def params(source, target, **options):
        report = closed_form(resolved_config("lite_transformer", **TINY, **options), 5, 7, source, target)
        return report.params_embeddings, report.params_output, report.params_total - report.params_core

    assert params(100, 50) == (2400, 800, 3200)
    assert params(100, 50, share_decoder_input_output_embed=True) == (2400, 0, 2400)
    assert params(100, 100, share_all_embeddings=True) == (1600, 0, 1600)
    with pytest.raises(ConfigError, match=r"needs one joined vocabulary, got sizes 100 \(source\) and 50 \(target\)"):
        params(100, 50, share_all_embeddings=True)


@pytest.mark.parametrize(
    ("sizes", "named"), [((0, 7, 8, 8), "source length 0"), ((5, 7, 8, -1), "target vocabulary -1")]
)
def test_sizes_that_are_not_positive_are_refused(sizes, named):
    with pytest.raises(ConfigError, match=f"{named} is not a positive number"):
        closed_form(resolved_config("lite_transformer", **TINY), *sizes)


def test_source_longer_than_the_learned_positions_is_refused():
    config = resolved_config("lite_transformer", **TINY, encoder_learned_pos=True, max_source_positions=20)
    with pytest.raises(ConfigError, match="source length 21 is over max_source_positions 20"):
        closed_form(config, 21, 7, 8, 8)
