"""The protocols against the published ones, written out once more here, and against the experiments and corpora."""

import dataclasses

import pytest
from fairseq.dataclass.configs import GenerationConfig

from data_prep.corpora import CORPORA
from lite_transformer.errors import ConfigError
from lite_transformer.scoring.protocols import METRICS, PROTOCOLS, Search, find_protocol
from lite_transformer.scoring.text_protocols import find_text_protocol
from tests.helpers.commands import ROOT

# an experiment that is for any corpus has no protocol
WITHOUT = {"small_cpu"}


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (
            "iwslt14_de_en",
            "average of the last 10 epochs, beam 4, lenpen 1; tokenized_bleu, sacrebleu, chrf",
        ),
        (
            "wmt16_en_de",
            "checkpoint_best.pt, beam 4, lenpen 0.6, compound split; tokenized_bleu, sacrebleu, chrf",
        ),
        ("wmt14_en_fr", "checkpoint_best.pt, beam 4, lenpen 0.6; tokenized_bleu, sacrebleu, chrf"),
        (
            "cnn_dm",
            "checkpoint_best.pt, beam 4, lenpen 2, max-len-b 140, min-len 55, no-repeat-ngram-size 3; "
            "ROUGE-1/2/L/Lsum, without and with stemming",
        ),
    ],
)
def test_published_protocols(name, printed):
    assert str(PROTOCOLS[name]) == f"{name}: {printed}"
    assert "mit-han-lab/lite-transformer" in PROTOCOLS[name].source


def test_every_experiment_has_the_protocol_of_its_corpus():
    experiments = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert experiments > WITHOUT
    for experiment in experiments - WITHOUT:
        assert experiment.startswith((find_text_protocol(experiment) or find_protocol(experiment)).name)
    for experiment in WITHOUT | {"iwslt14_de_enx", ""}:
        with pytest.raises(ConfigError, match=rf"no evaluation protocol for '{experiment}'\. Known: iwslt14_de_en, "):
            find_protocol(experiment)


def test_every_protocol_can_be_searched_and_belongs_to_a_corpus():
    for name, protocol in PROTOCOLS.items():
        protocol.search.check()
        assert name == protocol.name and name in CORPORA
        assert protocol.source and protocol.metric in METRICS


def test_defaults_are_those_of_fairseq_but_for_the_beam():
    fairseq = GenerationConfig()
    for field in dataclasses.fields(Search):
        expected = 4 if field.name == "beam" else getattr(fairseq, field.name)
        assert field.default == expected, field.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 0}, "--beam 0: at least 1 is needed"),
        ({"min_len": -1}, "--min-len -1: at least 0 is needed"),
        ({"no_repeat_ngram_size": -1}, "--no-repeat-ngram-size -1: at least 0 is needed"),
        ({"max_len_a": -1.0}, "--max-len-a -1.0: a number of at least 0 is needed"),
        ({"max_len_a": float("inf")}, "--max-len-a inf: a number of at least 0 is needed"),
        ({"lenpen": float("nan")}, "--lenpen nan: a finite number is needed"),
        ({"max_len_b": 50, "min_len": 55}, "--min-len 55 is more than --max-len-a 0 and --max-len-b 50 leave"),
        ({"max_len_b": 0, "min_len": 0}, "--min-len 0 is more than"),
    ],
)
def test_search_that_cannot_be_names_the_option(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Search(), **change).check()
