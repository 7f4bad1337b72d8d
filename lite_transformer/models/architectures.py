"""The named architectures as data: settings, published figures and where they come from. No code runs here.

Sharing of embeddings is left to the recipes: it depends on the dictionaries, and a fairseq switch whose default is
on turns off when it is typed. Dimensions of the Lite rows are those of the paper's configuration files; dimensions of
the baselines are inferred as the round sizes that give both published columns at once. ``macs`` and ``core_params``
are integers that `lite_transformer.macs` recomputes and the tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lite_transformer.errors import UnknownArchitectureError


@dataclass(frozen=True)
class DataSet:
    """What the accounting of a paper takes from a data set: lengths of the counted pass, sizes of the vocabularies.

    ``output_matrix_counted``, ``embeddings_counted``: whether the published parameters include the (untied) output
    matrix, the embeddings.
    """

    name: str
    source_length: int
    target_length: int
    source_vocab: int
    target_vocab: int
    shared_embeddings: bool
    output_matrix_counted: bool = False
    embeddings_counted: bool = False


IWSLT14_DE_EN = DataSet("IWSLT'14 De-En", 30, 30, 8848, 6632, shared_embeddings=False, output_matrix_counted=True)
WMT16_EN_DE = DataSet("WMT'16 En-De", 30, 30, 32768, 32768, shared_embeddings=True)
WMT14_EN_FR = DataSet("WMT'14 En-Fr", 30, 30, 44512, 44512, shared_embeddings=True)
# About 30k joint BPE types; the exact size was never published.
CNN_DM = DataSet("CNN/DailyMail", 30, 60, 30000, 30000, shared_embeddings=True)
# Size of the joint dictionary of our own preparation (10,000 merges, En-De).
MULTI30K = DataSet("Multi30k", 30, 30, 9728, 9728, shared_embeddings=True, embeddings_counted=True)


# A language model has no source: the counted pass is over the target's tokens. 267,735 words and fairseq's specials.
WIKITEXT_103 = DataSet("WikiText-103", 0, 30, 0, 267744, shared_embeddings=True)


@dataclass(frozen=True)
class Architecture:
    """A name for ``--arch``: which model, which settings, and what is claimed of it.

    ``model`` is 'lite_transformer' or 'transformer', or one of these with '_lm': a language model. ``published_*`` are
    the paper's rounded figures.
    """

    name: str
    model: str
    data: DataSet
    settings: Mapping[str, Any]
    macs: int
    core_params: int
    published_macs: str = ""
    published_params: str = ""
    source: str = ""
    other_lengths: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def is_language_model(self) -> bool:
        return self.model.endswith("_lm")


_PAPER = "Wu et al. 2020"


def _lite(name: str, data: DataSet, dim: int, macs: int, params: int, published: tuple[str, str], **more: Any):
    if data is IWSLT14_DE_EN:
        settings = {
            "encoder_branches": ["attention", "lightweight"],
            "encoder_conv_gate": "none",
            "decoder_conv_gate": "none",
            "cross_attention_heads": 4,
            "ffn_init": "widened",
            "dropout": 0.2,
            "weight_dropout": 0.1,
        }
    else:
        settings = {"cross_attention_heads": 8}
    settings |= {"encoder_embed_dim": dim} | more.pop("settings", {})
    return Architecture(
        name, "lite_transformer", data, MappingProxyType(settings), macs, params, *published, source=_PAPER, **more
    )


def _transformer(
    name: str, data: DataSet, dim: int, ffn: int, macs: int, params: int, published: tuple[str, str], **more: Any
):
    heads = 4 if data is IWSLT14_DE_EN or dim < 256 else 8
    settings = {
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "decoder_ffn_embed_dim": ffn,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
    } | more.pop("settings", {})
    return Architecture(
        name,
        "transformer",
        data,
        MappingProxyType(settings),
        macs,
        params,
        *published,
        source=f"{_PAPER}, dimensions inferred",
        **more,
    )


def _lightconv(name: str, dim: int, macs: int, params: int, published: tuple[str, str]):
    settings = {
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": 2 * dim,
        "decoder_ffn_embed_dim": 2 * dim,
        "encoder_layers": 7,
        "encoder_branches": ["lightweight"],
        "encoder_conv_gate": "none",
        "decoder_conv_gate": "none",
        "cross_attention_heads": 4,
    }
    return Architecture(
        name,
        "lite_transformer",
        IWSLT14_DE_EN,
        MappingProxyType(settings),
        macs,
        params,
        *published,
        source=f"{_PAPER}, dimensions inferred",
    )


_WMT_LITE = {
    # dim: (macs, core parameters, published macs and parameters, dropout, attention and weight dropout of the recipe)
    200: (89_952_000, 2_884_400, ("90M", "2.9M")),
    408: (359_170_560, 11_739_792, ("360M", "11.7M")),
    496: (526_990_080, 17_283_616, ("527M", "17.3M")),
}
_WMT_DROPOUT = {
    ("en_de", 200): (0.04, 0.03), ("en_de", 408): (0.08, 0.06), ("en_de", 496): (0.10, 0.08),
    ("en_fr", 200): (0.04, 0.03), ("en_fr", 408): (0.08, 0.07), ("en_fr", 496): (0.10, 0.08),
}  # fmt: skip
_WMT_TRANSFORMER = {
    "87m": (128, 512, 86_722_560, 2_777_088, ("87M", "2.8M")),
    "338m": (256, 1024, 338_595_840, 11_059_200, ("338M", "11.1M")),
    "527m": (320, 1280, 526_464_000, 17_264_640, ("527M", "17.3M")),
    "base": (512, 2048, 1_337_794_560, 44_138_496, ("1.3G", "44M")),
}


def _wmt() -> list[Architecture]:
    rows = []
    for pair, data in (("en_de", WMT16_EN_DE), ("en_fr", WMT14_EN_FR)):
        for dim, (macs, params, published) in _WMT_LITE.items():
            dropout, weight_dropout = _WMT_DROPOUT[pair, dim]
            drops = {"dropout": dropout, "attention_dropout": weight_dropout, "weight_dropout": weight_dropout}
            suffix = "" if dim == 496 else f"_{dim}"
            name = f"lite_transformer_wmt_{pair}{suffix}"
            rows.append(_lite(name, data, dim, macs, params, published, settings=drops))
        for budget, (dim, ffn, macs, params, published) in _WMT_TRANSFORMER.items():
            rows.append(_transformer(f"transformer_wmt_{pair}_{budget}", data, dim, ffn, macs, params, published))
    return rows


_BANDS = {
    "adaptive_input_cutoff": [20000, 60000],
    "adaptive_softmax_cutoff": [20000, 60000],
    "adaptive_softmax_dropout": 0.2,
    "activation_dropout": 0.1,
}
# dim: (macs at 30, 100 and 1000 tokens, core parameters, published macs and parameters, dropout, attention and weight
# dropout). Only the recipe of 896 is published; the dropouts of the others are its own by width.
_WIKITEXT_LITE = {
    408: ((247_150_080, 858_105_600, 12_987_456_000), 7_971_504, ("", ""), (0.10, 0.06)),
    512: ((383_631_360, 1_321_779_200, 18_747_392_000), 12_399_616, ("", ""), (0.12, 0.08)),
    640: ((592_588_800, 2_029_056_000, 27_202_560_000), 19_185_920, ("", ""), (0.15, 0.10)),
    896: ((1_146_163_200, 3_895_808_000, 48_634_880_000), 37_182_208, ("1147M", "37.2M"), (0.21, 0.14)),
}
_WIKITEXT_TRANSFORMER = {
    256: ((290_611_200, 1_011_712_000, 15_646_720_000), 9_477_120, ("", "")),
    320: ((452_352_000, 1_561_600_000, 22_528_000_000), 14_795_520, ("", "")),
    512: ((1_151_385_600, 3_923_968_000, 50_298_880_000), 37_828_608, ("", "37.8M")),
}


def _language_model(name: str, model: str, settings: dict[str, Any], macs: tuple[int, ...], params: int, **more: Any):
    lengths = {(0, length): count for length, count in zip((100, 1000), macs[1:], strict=True)}
    return Architecture(
        name, model, WIKITEXT_103, MappingProxyType(settings), macs[0], params, other_lengths=lengths, **more
    )


def _wikitext() -> list[Architecture]:
    rows = [
        _language_model(
            "lite_transformer_lm", "lite_transformer_lm", {}, (1_122_078_720, 3_815_526_400, 47_832_064_000), 37_182_208
        ),
        _language_model(
            "transformer_lm_baseline", "transformer_lm", {}, (1_143_521_280, 3_897_753_600, 50_036_736_000), 37_828_608
        ),
    ]
    for dim, (macs, params, published, (dropout, other)) in sorted(_WIKITEXT_LITE.items(), reverse=True):
        drops = {"dropout": dropout, "attention_dropout": other, "weight_dropout": other}
        rows.append(
            _language_model(
                f"lite_transformer_lm_wikitext103{'' if dim == 896 else f'_{dim}'}", "lite_transformer_lm",
                _BANDS | drops | {"decoder_embed_dim": dim}, macs, params, published_macs=published[0],
                published_params=published[1], source=_PAPER if dim == 896 else f"{_PAPER}, dimensions inferred",
            )
        )  # fmt: skip
    for dim, (macs, params, published) in sorted(_WIKITEXT_TRANSFORMER.items()):
        settings = {
            "decoder_embed_dim": dim,
            "decoder_ffn_embed_dim": 4 * dim,
            "dropout": 0.3,
            "attention_dropout": 0.1,
        }
        rows.append(
            _language_model(
                f"transformer_lm_wikitext103_{dim}", "transformer_lm", _BANDS | settings, macs, params,
                published_macs=published[0], published_params=published[1],
                source=f"{_PAPER}, Adaptive Inputs (Baevski and Auli 2019), dimensions inferred",
            )
        )  # fmt: skip
    return rows


_CNN_DM_DROPOUT = {"dropout": 0.15, "attention_dropout": 0.1, "weight_dropout": 0.1}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        row.name: row
        for row in [
            _lite("lite_transformer", WMT14_EN_FR, 496, 526_990_080, 17_283_616, ("527M", "17.3M")),
            _lite("lite_transformer_iwslt_de_en", IWSLT14_DE_EN, 160, 54_144_000, 1_713_584, ("54M", "2.8M")),
            _lite("lite_transformer_iwslt_de_en_240", IWSLT14_DE_EN, 240, 119_232_000, 3_837_104, ("119M", "5.4M")),
            _lite("lite_transformer_iwslt_de_en_320", IWSLT14_DE_EN, 320, 209_664_000, 6_805_424, ("209M", "8.9M")),
            _transformer(
                "transformer_iwslt_de_en_63m", IWSLT14_DE_EN, 128, 256, 63_129_600, 1_987_584, ("63M", "2.8M")
            ),
            _transformer(
                "transformer_iwslt_de_en_139m", IWSLT14_DE_EN, 192, 384, 138_931_200, 4_455_936, ("139M", "5.7M")
            ),
            _transformer(
                "transformer_iwslt_de_en_215m", IWSLT14_DE_EN, 240, 480, 215_136_000, 6_952_320, ("215M", "8.5M")
            ),
            _lightconv("lightconv_iwslt_de_en_52m", 128, 51_517_440, 1_691_820, ("52M", "2.5M")),
            _lightconv("lightconv_iwslt_de_en_115m", 192, 114_877_440, 3_790_572, ("115M", "5.1M")),
            _lightconv("lightconv_iwslt_de_en_204m", 256, 203_304_960, 6_724_908, ("204M", "8.4M")),
            *_wmt(),
            _lite(
                "lite_transformer_cnn_dm", CNN_DM, 496, 798_520_320, 17_283_616, ("0.8G", "17.3M"),
                settings=_CNN_DM_DROPOUT,
                other_lengths={(100, 60): 1_452_922_880, (1000, 60): 12_464_718_080},
            ),
            _transformer(
                "transformer_cnn_dm_2g", CNN_DM, 512, 2048, 2_020_515_840, 44_138_496, ("2.0G", "44.1M"),
                other_lengths={(100, 60): 3_643_637_760, (1000, 60): 29_876_060_160},
            ),
            Architecture(
                "transformer_multi30k", "transformer", MULTI30K,
                MappingProxyType(
                    {
                        "encoder_embed_dim": 128,
                        "encoder_ffn_embed_dim": 256,
                        "decoder_ffn_embed_dim": 256,
                        "encoder_layers": 4,
                        "decoder_layers": 4,
                        "encoder_attention_heads": 4,
                        "decoder_attention_heads": 4,
                        "dropout": 0.3,
                    }
                ),
                42_086_400, 1_325_056, "", "2.6M", source="Transformer-Tiny, Wu et al. 2021",
            ),
            *_wikitext(),
        ]
    }
)  # fmt: skip


def find_architecture(name: str) -> Architecture:
    """The architecture of that name. Raises UnknownArchitectureError, which lists the known ones."""
    if name not in ARCHITECTURES:
        raise UnknownArchitectureError(f"unknown architecture '{name}'. Known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
