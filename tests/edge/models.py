"""Loaded models with fairseq's own translation task, and their export."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from data_prep.text import TextPipeline
from lite_transformer.edge.export import export
from lite_transformer.models.config import LiteTransformerConfig, TransformerBaselineConfig
from lite_transformer.models.lite_transformer import LiteTransformerModel, TransformerBaselineModel
from lite_transformer.scoring.decoding import Loaded
from tests.helpers.commands import environment
from tests.helpers.models import TINY, dictionary, randomize_biases

LANGUAGES = ("de", "en")
TINY_TRANSFORMER = {
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 2, "decoder_attention_heads": 4,
    "dropout": 0.0,
}  # fmt: skip


def loaded_model(transformer: bool = False, target_words: int | None = None, seed: int = 1, **options: Any) -> Loaded:
    """A model of random weights, whose hypotheses have many lengths; one dictionary of 40 words for both sides unless
    ``target_words`` is given."""
    source = dictionary(40)
    target = source if target_words is None else dictionary(target_words)
    task = TranslationTask(TranslationConfig(source_lang="de", target_lang="en"), source, target)
    torch.manual_seed(seed)
    if transformer:
        model = TransformerBaselineModel.build_model(TransformerBaselineConfig(**TINY_TRANSFORMER | options), task)
    else:
        model = LiteTransformerModel.build_model(LiteTransformerConfig(**TINY | options), task)
    randomize_biases(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "output_projection" in name:
                parameter.mul_(3)  # surer of its words: rounding must not decide between two
        if model.decoder.output_projection.weight is not model.decoder.embed_tokens.weight:
            model.decoder.output_projection.weight[task.target_dictionary.eos()] *= 1.5
    model.eval()
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    return Loaded([model], task, None, torch.device("cpu"))


def exported(
    loaded: Loaded,
    folder: Path,
    precision: str = "fp32",
    shortlist: tuple[Path, int] | None = None,
    static_length: int | None = None,
    languages: tuple[str, str] = LANGUAGES,
    **search: Any,
) -> Path:
    """FOLDER/model, with dictionaries and text settings in FOLDER/data: words as white space gives them."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    loaded.task.source_dictionary.save(str(data / f"dict.{languages[0]}.txt"))
    loaded.task.target_dictionary.save(str(data / f"dict.{languages[1]}.txt"))
    pipelines = {
        language: TextPipeline(language, normalize=False, tokenizer="none", subword="none", folder=data)
        for language in languages
    }
    export(loaded, pipelines, data, folder / "model", precision, search, shortlist, static_length)
    return folder / "model"


def translated_without(folder: Path, missing: Sequence[str], lines: Sequence[str], engine: str = "auto") -> list[str]:
    """What a Python that cannot import the ``missing`` modules makes of the lines. It must say nothing else."""
    program = (
        "import sys\n"
        f"for name in {list(missing)!r}: sys.modules[name] = None\n"
        "from lite_transformer.edge import Translator\n"
        "assert not sys.modules.get('onnxruntime'), 'only an engine that needs it imports it'\n"
        f"print('|'.join(Translator.load({str(folder)!r}, engine={engine!r}).translate({list(lines)!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr == ""
    return done.stdout.rstrip("\n").split("|")
