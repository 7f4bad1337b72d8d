"""From a trained fairseq model to the folder of an exported one, compared with the original before it gets its name."""

from __future__ import annotations

import dataclasses
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.modules import MultiheadAttention as FairseqAttention
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from data_prep.folders import atomic_folder
from data_prep.text import TextPipeline
from lite_transformer.edge import graphs, parts
from lite_transformer.edge import shortlist as shortlists
from lite_transformer.edge.engine import Engine
from lite_transformer.edge.folder import (
    FORMAT,
    KIND,
    PRECISIONS,
    SHORTLIST_FILE,
    SPECIAL,
    Manifest,
    describe_files,
    write_manifest,
)
from lite_transformer.edge.search import Settings, collate, search
from lite_transformer.edge.tiers import load_engine
from lite_transformer.edge.vocabulary import END, PAD, UNKNOWN, Vocabulary
from lite_transformer.errors import CheckpointError, ConfigError, DataError, UnsupportedInputError
from lite_transformer.modules.attention import MultiheadAttention
from lite_transformer.modules.convolution import DynamicConv, LightweightConv, ShortRangeConv
from lite_transformer.modules.lsra import LongShortRangeAttention

logger = logging.getLogger(__name__)

# Of log-probabilities, in nats: the largest one of fp32, and the mean one beyond which a model is broken.
LARGEST_DIFFERENCE = 1e-3
LARGEST_MEAN_DIFFERENCES = {"fp32": LARGEST_DIFFERENCE, "int8": 0.25, "int4": 1.0}
CHECKED_SENTENCES = 24
_CHECKED_BEAM = 4
_CHECKED_LENGTH = 30


# --- the model's parts ---------------------------------------------------------------------------------------------


def model_parts(model: Any) -> parts.Model:
    """The parts of a fairseq encoder-decoder of this project, in fp32; tensors that are one stay one.

    Raises: UnsupportedInputError naming what cannot be exported.
    """
    if not hasattr(model, "encoder"):
        raise UnsupportedInputError(
            f"{type(model).__name__} is a language model: the exported graphs are of an encoder and of a decoder that "
            "reads it, and have no adaptive softmax. Use it by: lite-transformer generate"
        )
    arrays = _Arrays()
    encoder, decoder = model.encoder, model.decoder
    for name in ("project_in_dim", "project_out_dim", "adaptive_softmax"):
        if getattr(decoder, name, None) is not None:
            raise UnsupportedInputError(f"the decoder has {name}, which cannot be exported yet")
    if getattr(decoder, "output_projection", None) is None or decoder.output_projection.bias is not None:
        raise UnsupportedInputError("the decoder's output is no plain projection, which alone can be exported")
    dictionary = decoder.dictionary
    return parts.Model(
        encoder=_side(encoder, arrays),
        decoder=_side(decoder, arrays),
        output=arrays.of(decoder.output_projection.weight),
        pad=int(dictionary.pad()),
        end=int(dictionary.eos()),
    )


class _Arrays:
    """fp32 copies of parameters; of a shared one, one copy."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.Size], parts.Array] = {}

    def of(self, tensor: Tensor) -> parts.Array:
        key = (tensor.data_ptr(), tensor.shape)
        if key not in self._known:
            self._known[key] = tensor.detach().float().cpu().numpy().copy()
        return self._known[key]


def _side(side: Any, arrays: _Arrays) -> parts.Side:
    return parts.Side(
        embedding=arrays.of(side.embed_tokens.weight),
        scale=float(side.embed_scale),
        positions=_positions(side.embed_positions, side.padding_idx, side.embed_tokens.embedding_dim),
        embedding_norm=_norm(side.layernorm_embedding),
        layers=tuple(_layer(layer) for layer in side.layers),
        norm=_norm(side.layer_norm),
    )


def _positions(embedding: Any, pad: int, embed_dim: int) -> parts.Positions | None:
    if embedding is None:
        return None
    if isinstance(embedding, SinusoidalPositionalEmbedding):
        table = embedding.weights.detach().float().cpu().numpy()
        if embed_dim % 2 == 0:
            half = embed_dim // 2
            steps = torch.arange(half, dtype=torch.float) * -(np.log(10000) / max(half - 1, 1))
            frequencies = torch.exp(steps).numpy()
            angles = np.arange(pad + 1, len(table), dtype=np.float32)[:, None] * frequencies
            computed = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
            if np.abs(computed - table[pad + 1 :]).max() < 1e-5:
                return parts.Positions(pad + 1, frequencies=frequencies)
        return parts.Positions(pad + 1, table=table)
    return parts.Positions(pad + 1, table=embedding.weight.detach().float().cpu().numpy())


def _linear(layer: nn.Linear) -> parts.Linear:
    bias = None if layer.bias is None else layer.bias.detach().float().cpu().numpy()
    return parts.Linear(layer.weight.detach().float().cpu().numpy(), bias)


def _norm(norm: Any) -> parts.Norm | None:
    if norm is None:
        return None
    weight, bias = norm.weight.detach().float().cpu().numpy(), norm.bias.detach().float().cpu().numpy()
    return parts.Norm(weight, bias, float(norm.eps))


def _layer(layer: Any) -> parts.Layer:
    for name in ("c_attn", "attn_ln", "ffn_layernorm", "w_resid"):
        if getattr(layer, name, None) is not None:
            raise UnsupportedInputError(f"a layer has {name}, which cannot be exported")
    attention = layer.self_attn
    if isinstance(attention, LongShortRangeAttention):
        branches = tuple(_branch(branch) for branch in attention.branches)
        widths = tuple(attention.branch_dims)
    else:
        branches, widths = (_branch(attention),), (layer.embed_dim,)
    cross = getattr(layer, "encoder_attn", None)
    norm, final_norm = _norm(layer.self_attn_layer_norm), _norm(layer.final_layer_norm)
    assert norm is not None and final_norm is not None
    return parts.Layer(
        branches=branches,
        widths=widths,
        norm=norm,
        cross=None if cross is None else _attention(cross),
        cross_norm=None if cross is None else _norm(layer.encoder_attn_layer_norm),
        fc1=_linear(layer.fc1),
        fc2=_linear(layer.fc2),
        final_norm=final_norm,
        normalize_before=bool(layer.normalize_before),
        activation=getattr(layer.activation_fn, "__name__", str(layer.activation_fn)).replace("<lambda>", "linear"),
    )


def _branch(branch: nn.Module) -> parts.Branch:
    if isinstance(branch, MultiheadAttention | FairseqAttention):
        return _attention(branch)
    if not isinstance(branch, ShortRangeConv):
        raise UnsupportedInputError(f"a branch of kind {type(branch).__name__} cannot be exported")
    is_light = isinstance(branch, LightweightConv)
    kernels = None
    if isinstance(branch, LightweightConv):
        weight = branch.weight.detach().float()
        kernels = (torch.softmax(weight, dim=-1) if branch.weight_softmax else weight).cpu().numpy()
    return parts.Convolution(
        num_heads=branch.num_heads,
        kernel_size=branch.kernel_size,
        gate=branch.gate,
        softmax=branch.weight_softmax,
        mask_after_gate=branch.mask_after_gate,
        linear1=None if branch.linear1 is None else _linear(branch.linear1),
        linear2=None if branch.linear2 is None else _linear(branch.linear2),
        kernels=kernels,
        generator=None if is_light or not isinstance(branch, DynamicConv) else _linear(branch.weight_linear),
    )


def _attention(attention: Any) -> parts.Attention:
    for name in ("bias_k", "bias_v"):
        if getattr(attention, name, None) is not None:
            raise UnsupportedInputError(f"an attention has {name}, which cannot be exported")
    projections = [_linear(getattr(attention, f"{name}_proj")) for name in ("q", "k", "v", "out")]
    return parts.Attention(int(attention.num_heads), *projections)


# --- the folder ----------------------------------------------------------------------------------------------------


def export(
    loaded: Any,
    pipelines: dict[str, TextPipeline],
    data: Path,
    out: Path,
    precision: str = "fp32",
    search_settings: dict[str, Any] | None = None,
    shortlist: tuple[Path, int] | None = None,
    static_length: int | None = None,
) -> Manifest:
    """Writes the exported model to ``out``, which appears only when it is whole and agrees with the original.

    Args:
        loaded: one model with its task, see `lite_transformer.scoring.decoding.load`.
        pipelines: how text of either language becomes subwords. data: the folder of the dictionaries.
        search_settings: 'beam' and 'lenpen' that translations take unless others are asked for.
        shortlist: bin folder of the training data, and how many words a source word allows; see `edge.shortlist`.
        static_length: tokens of the source and of the target that graphs of fixed shapes are for; the beam is that of
            ``search_settings``, or 4.
    Raises: ConfigError if ``out`` exists or the options do not fit; UnsupportedInputError naming what of the model
        cannot be exported; CheckpointError if the exported model computes something else.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    if static_length is not None and shortlist is not None:
        raise ConfigError("a model of fixed shapes has no shortlist: leave out one of the two")
    if len(loaded.models) != 1:
        raise ConfigError(f"{len(loaded.models)} models: an ensemble cannot be exported; average the checkpoints first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists already: choose another name, or delete it first")
    with atomic_folder(out) as folder:
        model = loaded.models[0]
        source, target = loaded.languages
        vocabulary = _copy_texts(data, folder, [source, target], pipelines)
        words = [Vocabulary(folder / vocabulary[side]) for side in ("source", "target")]
        plain = model_parts(model)
        for side, known, rows in zip(("source", "target"), words, (plain.encoder, plain.decoder), strict=True):
            if len(known) != len(rows.embedding):
                raise DataError(
                    f"{data}: the {side} dictionary has {len(known)} subwords, the model {len(rows.embedding)}"
                )
        limits = [int(model.encoder.max_positions()), int(model.decoder.max_positions())]
        settings = {"beam": 4, "lenpen": 1.0, "max_len_a": 1.5, "max_len_b": 200} | (search_settings or {})
        fixed = None
        if static_length is not None:
            if not 2 <= static_length <= min(limits):
                raise ConfigError(f"static length {static_length}: between 2 and the model's {min(limits)} is needed")
            limits = [static_length] * 2
            fixed = graphs.Fixed(static_length, settings["beam"])
        Settings(**settings).check_for(len(words[1]), limits[1])
        if shortlist is not None:
            write_shortlist(loaded, *shortlist, folder / SHORTLIST_FILE)
        tensors = graphs.write_graphs(plain, folder, precision, fixed)
        manifest = Manifest(
            format=FORMAT,
            kind=KIND,
            precision=precision,
            source_language=source,
            target_language=target,
            text={language: pipelines[language].to_json() for language in (source, target)},
            vocabulary=vocabulary,
            special=SPECIAL,
            max_source_tokens=limits[0],
            max_target_tokens=limits[1],
            caches=[list(shape) for shape in parts.cache_shapes(plain.decoder)],
            model=_describe(plain) | ({} if fixed is None else {"fixed": dataclasses.asdict(fixed)}),
            search=settings,
            parity={},
            tensors=tensors,
            files=describe_files(folder),
        )
        engine = load_engine("portable", folder, manifest, threads=1)
        beam = min(_CHECKED_BEAM, fixed.beam if fixed else _CHECKED_BEAM)
        parity = check_parity(loaded, engine, words, precision, min(limits), beam)
        manifest = dataclasses.replace(manifest, parity=parity)
        write_manifest(folder, manifest)
    return manifest


def _copy_texts(
    data: Path, folder: Path, languages: Sequence[str], pipelines: dict[str, TextPipeline]
) -> dict[str, str]:
    """Copies dictionaries and subword models; returns the dictionaries' names by side, one name if they are equal."""
    paths = [data / f"dict.{language}.txt" for language in languages]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing. Give the data folder that the model was trained on: --data DIR/bin")
    contents = [path.read_bytes() for path in paths]
    names = ["dict.txt"] * 2 if contents[0] == contents[1] else [path.name for path in paths]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    for language in languages:
        if language not in pipelines:
            raise DataError(f"{data} was prepared for {'-'.join(pipelines)}, not for {language}, which the model has")
        pipeline = pipelines[language]
        if pipeline.subword != "none":
            pipeline.split("")  # names a missing or damaged file
            destination = folder / pipeline.codes
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pipeline.folder / pipeline.codes, destination)
    return dict(zip(("source", "target"), names, strict=True))


def write_shortlist(loaded: Any, data: Path, size: int, path: Path) -> None:
    """The shortlist that the training split in ``data`` gives, for the dictionaries of a model.

    Raises: DataError if the split is missing or was binarized with other dictionaries.
    """
    from fairseq.data import Dictionary, data_utils

    from lite_transformer.scoring.decoding import check_data

    languages = loaded.languages
    check_data(data, "train", languages)
    dictionaries = (loaded.task.source_dictionary, loaded.task.target_dictionary)
    for language, known in zip(languages, dictionaries, strict=True):
        if Dictionary.load(str(data / f"dict.{language}.txt")).symbols != known.symbols:
            raise DataError(f"{data}: dict.{language}.txt is not the model's. Give the data that it was trained on")
    order = next(pair for pair in (languages, languages[::-1]) if any(data.glob(f"train.{'-'.join(pair)}.*.idx")))
    sides = [
        data_utils.load_indexed_dataset(str(data / f"train.{'-'.join(order)}.{language}"), known)
        for language, known in zip(languages, dictionaries, strict=True)
    ]
    if any(side is None for side in sides) or len(sides[0]) != len(sides[1]):
        raise DataError(f"{data}: its training split cannot be read, or its sides have different lengths")
    source, target = dictionaries
    same = {index: target.indices[word] for index, word in enumerate(source.symbols) if word in target.indices}
    pairs = _Pairs(*sides)
    shortlists.write(shortlists.build(pairs, (len(source), len(target)), size, same), path)


class _Pairs(Sequence):
    """Sentences of a binarized split, read as they are asked for."""

    def __init__(self, source: Any, target: Any):
        self._source, self._target = source, target

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._source[index].numpy(), self._target[index].numpy()


def _describe(model: parts.Model) -> dict[str, Any]:
    """Sizes of the architecture; branches in channel order."""

    def layer(item: parts.Layer) -> dict[str, Any]:
        branches = []
        for branch, width in zip(item.branches, item.widths, strict=True):
            if isinstance(branch, parts.Attention):
                branches.append({"kind": "attention", "width": width, "heads": branch.num_heads})
                continue
            options = {key: getattr(branch, key) for key in ("kernel_size", "gate", "softmax", "mask_after_gate")}
            kind = "dynamic" if branch.kernels is None else "lightweight"
            has_linear = branch.linear1 is not None
            branches.append({"kind": kind, "width": width, "heads": branch.num_heads, "linear": has_linear, **options})
        described = {"branches": branches, "ffn": len(item.fc1.weight), "activation": item.activation}
        if item.cross is not None:
            described["cross_heads"] = item.cross.num_heads
        return described

    def norms(item: parts.Side) -> list[parts.Norm]:
        found = [item.embedding_norm, item.norm]
        for one in item.layers:
            found += [one.norm, one.cross_norm, one.final_norm]
        return [norm for norm in found if norm is not None]

    def positions(item: parts.Positions | None) -> str:
        return "none" if item is None else "table" if item.frequencies is None else "sinusoid"

    def side(item: parts.Side) -> dict[str, Any]:
        return {
            "embed_dim": item.embed_dim,
            "embed_scale": item.scale,
            "positions": positions(item.positions),
            "embedding_norm": item.embedding_norm is not None,
            "normalize_before": item.layers[0].normalize_before if item.layers else False,
            "norm_epsilon": sorted({norm.epsilon for norm in norms(item)}),
            "final_norm": item.norm is not None,
            "layers": [layer(one) for one in item.layers],
        }

    return {
        "source_vocabulary": len(model.encoder.embedding),
        "target_vocabulary": len(model.decoder.embedding),
        "shared_embeddings": model.encoder.embedding is model.decoder.embedding,
        "tied_output": model.output is model.decoder.embedding,
        "encoder": side(model.encoder),
        "decoder": side(model.decoder),
    }


# --- parity --------------------------------------------------------------------------------------------------------


def check_parity(
    loaded: Any, engine: Engine, words: Sequence[Vocabulary], precision: str, longest: int, beam: int = _CHECKED_BEAM
) -> dict[str, Any]:
    """How far an engine is from the original model, on sentences drawn from the dictionaries.

    Raises: CheckpointError if it is farther than rounding explains.
    Returns: sentences; mean and largest absolute difference of a log-probability of the original's likely tokens, in
        nats; how many sentences have the same best hypothesis, and the same hypotheses, in a beam search.
    """
    rng = random.Random(1)
    sources, targets = (_drawn(len(known), rng, min(_CHECKED_LENGTH, longest - 1)) for known in words)
    expected, found = _torch_scores(loaded, sources, targets), _engine_scores(engine, sources, targets, len(words[1]))
    if not np.isfinite(expected).all():
        raise CheckpointError("the model's log-probabilities are not finite numbers: it cannot be exported")
    likely = expected > expected.max(axis=-1, keepdims=True) - 10  # what a search can ever see
    differences = np.abs(expected - found)[likely]
    mean, largest = float(differences.mean()), float(differences.max())
    if not mean <= LARGEST_MEAN_DIFFERENCES[precision] or (precision == "fp32" and largest > LARGEST_DIFFERENCE):
        raise CheckpointError(
            f"the exported model ({precision}) computes something else: its log-probabilities differ by {mean:.1e} on "
            f"average, {largest:.1e} at most. Nothing was written"
        )
    best, all_hypotheses = _same_beams(loaded, engine, sources, len(words[1]), longest, beam)
    if precision == "fp32" and best < 0.9 * len(sources):
        raise CheckpointError(
            f"the exported model computes something else: {best} of {len(sources)} sentences have the same best "
            "hypothesis. Nothing was written"
        )
    return {
        "sentences": len(sources),
        "mean_logprob_difference": mean,
        "max_logprob_difference": largest,
        "same_best_hypothesis": best,
        "same_hypotheses": all_hypotheses,
    }


def _drawn(vocabulary_size: int, rng: random.Random, longest: int) -> list[list[int]]:
    """Sentences of 1 to ``longest`` tokens and their end; frequent subwords, which come first, are drawn more often."""
    first = UNKNOWN + 1
    sentences = []
    for number in range(CHECKED_SENTENCES):
        length = 1 + number * (longest - 1) // (CHECKED_SENTENCES - 1)
        drawn = [first + int((vocabulary_size - first) * rng.random() ** 2) for _ in range(length)]
        sentences.append([*drawn, END])
    return sentences


def _torch_scores(loaded: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> np.ndarray:
    """(tokens, V) log-probabilities of what follows each token of the targets, by the original, all at once."""
    model, device = loaded.models[0], loaded.device
    source = torch.from_numpy(collate(sources)).to(device)
    previous = np.full((len(targets), max(map(len, targets))), PAD, np.int64)
    for row, target in enumerate(targets):
        previous[row, : len(target)] = [END, *target[:-1]]
    with torch.no_grad():
        lengths = torch.tensor([len(sentence) for sentence in sources], device=device)
        logits, _ = model(source, lengths, torch.from_numpy(previous).to(device))
        scores = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return np.concatenate([scores[row, : len(target)] for row, target in enumerate(targets)])


def _engine_scores(
    engine: Engine, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], vocabulary_size: int
) -> np.ndarray:
    """As `_torch_scores`, step by step; sentences leave the batch as their targets end."""
    state = engine.encode(collate(sources))
    scores: list[list[np.ndarray]] = [[] for _ in targets]
    alive = np.arange(len(targets))
    kept: np.ndarray | None = None
    lengths = np.array([len(target) for target in targets])
    for step in range(int(lengths.max())):
        going = lengths[alive] > step
        if not going.all():
            kept, alive = np.flatnonzero(going), alive[going]
        order = np.arange(len(alive)) if kept is None else kept
        tokens = np.array([[END if step == 0 else targets[int(sentence)][step - 1]] for sentence in alive], np.int64)
        found = engine.step(state, tokens, order[:, None], kept, vocabulary_size)
        kept = None
        rows = np.empty((len(alive), vocabulary_size), np.float32)
        np.put_along_axis(rows, found.tokens[:, 0], found.scores[:, 0], axis=1)
        for sentence, row in zip(alive, rows, strict=True):
            scores[sentence].append(row)
    return np.stack([row for sentence in scores for row in sentence])


def _same_beams(
    loaded: Any, engine: Engine, sources: Sequence[Sequence[int]], vocabulary_size: int, longest: int, beam: int
) -> tuple[int, int]:
    """Of how many sentences the best hypothesis, and all of them, are those of fairseq's search."""
    from fairseq.dataclass.configs import GenerationConfig

    length = min(2 * _CHECKED_LENGTH, longest - 1)
    settings = Settings(beam=min(beam, (vocabulary_size - 1) // 2), max_len_b=length)
    config = GenerationConfig(beam=settings.beam, max_len_b=settings.max_len_b)
    generator = loaded.task.build_generator(loaded.models, config)
    source = torch.from_numpy(collate(sources)).to(loaded.device)
    lengths = torch.tensor([len(sentence) for sentence in sources], device=loaded.device)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    with torch.no_grad():
        expected = loaded.task.inference_step(generator, loaded.models, sample)
    found = search(engine, sources, settings, vocabulary_size, longest)
    best = everything = 0
    for theirs, ours in zip(expected, found, strict=True):
        tokens = [tuple(item["tokens"].tolist()) for item in theirs]
        own = [item.tokens for item in ours]
        best += tokens[0] == own[0]
        everything += tokens == own
    return best, everything
