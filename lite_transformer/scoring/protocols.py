"""How each data set is evaluated, as data: averaging, search, compound split, metrics, and who said so. No code runs.

A protocol bears its corpus's name, and the experiments of the corpus begin with it: 'iwslt14_de_en_lite_160' is
evaluated by 'iwslt14_de_en'. The number of lines of a test set is the corpus's (``data_prep.corpora``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from lite_transformer.errors import ConfigError

METRICS = {"bleu": "tokenized_bleu, sacrebleu, chrf", "rouge": "ROUGE-1/2/L/Lsum, without and with stemming"}


@dataclass(frozen=True)
class Search:
    """Settings of the beam search, with the defaults and the meaning of ``fairseq-generate``.

    Attributes:
        lenpen: exponent of the length that a hypothesis' score is divided by.
        max_len_a, max_len_b: a hypothesis has at most max_len_a * source length + max_len_b subwords.
        min_len: and at least so many.
        no_repeat_ngram_size: no subword n-gram of this size occurs twice in a hypothesis; 0 lets all.
    """

    beam: int = 4
    lenpen: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200
    min_len: int = 1
    no_repeat_ngram_size: int = 0

    def check(self) -> None:
        """Raises: ConfigError naming the option that no search can have, and what is allowed."""
        for name, least in (("beam", 1), ("max_len_b", 0), ("min_len", 0), ("no_repeat_ngram_size", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{_flag(name)} {getattr(self, name)}: at least {least} is needed")
        if not (math.isfinite(self.max_len_a) and self.max_len_a >= 0):
            raise ConfigError(f"--max-len-a {self.max_len_a}: a number of at least 0 is needed")
        if not math.isfinite(self.lenpen):
            raise ConfigError(f"--lenpen {self.lenpen}: a finite number is needed")
        shortest_limit = int(self.max_len_a + self.max_len_b)  # of a source of one subword
        if shortest_limit < max(1, self.min_len):
            raise ConfigError(
                f"--min-len {self.min_len} is more than --max-len-a {self.max_len_a:g} and --max-len-b "
                f"{self.max_len_b} leave to a short sentence: raise --max-len-b"
            )

    def __str__(self) -> str:
        """Beam and length penalty always, of the rest what is not fairseq's default."""
        rest = [
            f"{field.name.replace('_', '-')} {getattr(self, field.name):g}"
            for field in fields(self)
            if field.name not in ("beam", "lenpen") and getattr(self, field.name) != field.default
        ]
        return ", ".join([f"beam {self.beam}, lenpen {self.lenpen:g}", *rest])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Protocol:
    """The published way from a training run to its scores.

    Attributes:
        name: the corpus.
        search: of the hypotheses.
        source: who evaluates so.
        average_last: so many last epoch checkpoints are averaged; None for checkpoint_best.pt as it is.
        metric: a key of METRICS.
        compound_split: tokenized_bleu counts the parts of hyphenated words.
        remark: how the published scores differ from what is computed here.
    """

    name: str
    search: Search
    source: str
    average_last: int | None = None
    metric: str = "bleu"
    compound_split: bool = False
    remark: str = ""

    def __str__(self) -> str:
        chosen = averaging(self.average_last) if self.average_last else "checkpoint_best.pt"
        split = ", compound split" if self.compound_split else ""
        return f"{self.name}: {chosen}, {self.search}{split}; {METRICS[self.metric]}"


def averaging(count: int | None) -> str:
    """Which weights are evaluated, as it stands in records and in the names of protocols."""
    return f"average of the last {count} epochs" if count else "one checkpoint"


_REFERENCE = "configs/{}/test.sh of github.com/mit-han-lab/lite-transformer"

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                "iwslt14_de_en",
                Search(beam=4),
                _REFERENCE.format("iwslt14.de-en"),
                average_last=10,
                remark="published: tokenized_bleu, lower-cased as the data is",
            ),
            Protocol(
                "wmt16_en_de",
                Search(beam=4, lenpen=0.6),
                _REFERENCE.format("wmt16.en-de"),
                compound_split=True,
                remark="published: tokenized_bleu; sacrebleu is 0.2 to 0.6 lower",
            ),
            Protocol(
                "wmt14_en_fr",
                Search(beam=4, lenpen=0.6),
                _REFERENCE.format("wmt14.en-fr"),
                remark="published: tokenized_bleu; sacrebleu is about 2.8 lower",
            ),
            Protocol(
                "cnn_dm",
                Search(beam=4, lenpen=2.0, max_len_b=140, min_len=55, no_repeat_ngram_size=3),
                _REFERENCE.format("cnndm"),
                metric="rouge",
                remark="published: files2rouge (ROUGE-1.5.5) after Stanford's PTB tokenizer; here rouge-score",
            ),
            Protocol(
                "multi30k",
                Search(beam=5),
                "Wu et al. 2021, Good for Misconceived Reasons",
                average_last=10,
                remark="published: tokenized_bleu, lower-cased",
            ),
            Protocol("libreoffice_help", Search(beam=5), "this project", average_last=10),
            Protocol("debian_synopses", Search(beam=5), "this project", average_last=10, metric="rouge"),
            Protocol("embedded", Search(beam=4), "this project"),
        )
    }
)


def find_protocol(experiment: str) -> Protocol:
    """The protocol of an experiment, or of that name itself.

    Raises: ConfigError listing the protocols if there is none.
    """
    for name, protocol in PROTOCOLS.items():
        if experiment == name or experiment.startswith(f"{name}_"):
            return protocol
    raise ConfigError(
        f"no evaluation protocol for '{experiment}'. Known: {', '.join(PROTOCOLS)}; without a name, give the options "
        "(--beam, --lenpen, --average-last) yourself"
    )
