import importlib.util
import itertools
import json
import sys

import pytest

from lite_transformer import speed
from lite_transformer.edge import native
from tests.helpers.commands import ROOT
from tests.released import conftest as released

sys.path.insert(0, str(ROOT / "scripts"))
import _benchmark
import _edge_worker
import bench_edge

MODELS = ["--models", "tiny=lite_transformer_iwslt_de_en", "flat=transformer_iwslt_de_en_63m", "--vocabulary", "60"]
SMALL = ["--rounds", "2", "--sentences", "2", "--length", "5"]
HAS_CTRANSLATE2 = importlib.util.find_spec("ctranslate2") is not None


trained = released.trained  # the fixture


@pytest.fixture(autouse=True)
def no_commands(monkeypatch):
    monkeypatch.setattr(_benchmark, "git", lambda *words: "abc")


def test_systems_are_measured_recorded_and_shown(tmp_path, capsys):
    path = tmp_path / "edge" / "tiny.json"
    systems = "ctranslate2:tiny,portable:tiny,portable:tiny:fp32,ctranslate2:flat"
    words = [*MODELS, *SMALL, "--systems", systems, "--cases", "1:1:1,2:2:1", "--shortlist", "20"]
    assert bench_edge.main([*words, "--record", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["benchmark"] == "edge" and record["commit"] == "abc"
    assert record["command"].startswith("scripts/bench_edge.py --models") and "record" not in record["command"]
    assert set(record["models"]) == {"tiny", "flat"}
    measured = ["portable:tiny:int8", "portable:tiny:fp32"] + ["ctranslate2:flat:int8"] * HAS_CTRANSLATE2
    assert [result["system"] for result in record["results"]] == measured
    # a Lite Transformer is none that CTranslate2 knows, and without it no model is
    assert set(record["left_out"]) == {"ctranslate2:tiny:int8"} | (
        {"ctranslate2:flat:int8"} if not HAS_CTRANSLATE2 else set()
    )
    for result in record["results"]:
        cases = [tuple(row["case"].values()) for row in result["cases"]]
        assert cases == [(1, 1, 1, 0), (2, 2, 1, 0), (1, 1, 1, 20), (2, 2, 1, 20)]
        for row in result["cases"]:
            assert len(row["tokens_per_second"]["samples"]) == 2
            assert row["tokens_per_second"]["min"] > 0
        assert result["resident_bytes"] > 1e7 and result["disk_bytes"] > 1e5
        assert 0 < result["load_seconds"] < result["start_to_first_token_seconds"]
    first, second = record["results"][:2]
    assert all(row["ratio"]["median"] == 1 for row in first["cases"])
    samples = [result["cases"][0]["tokens_per_second"]["samples"] for result in (first, second)]
    assert second["cases"][0]["ratio"]["samples"] == [b / a for a, b in zip(*samples, strict=True)]
    whole, some = (first["cases"][number]["step_bytes"] for number in (0, 2))
    assert whole - some == (60 - 20) * 160
    assert second["cases"][0]["step_bytes"] > 3 * whole
    reads = record["bandwidth"][str(whole)]["median"]
    fraction = first["cases"][0]["tokens_per_second"]["median"] * whole / reads
    assert first["cases"][0]["bandwidth_fraction"] == pytest.approx(fraction)
    shown = capsys.readouterr().out
    assert "\n".join(speed.edge_tables(record)) in shown
    assert speed.render(tmp_path, "tiny").startswith("`scripts/bench_edge.py --models")


def test_threads_are_held_against_one_and_against_the_processors(tmp_path, capsys, monkeypatch):
    """With speeds that are given: one thread 10 before and 20 after, two threads 30."""
    given = {1: itertools.cycle([10.0, 20.0]), 2: itertools.cycle([30.0])}
    asked = []

    def ask(process, **request):
        if "products" in request:
            asked.append(request["products"])
            return {"multiply_adds_per_second": next(given[request["products"][0]])}
        if "read" in request or "memory" in request:
            return {"bytes_per_second": 1e9} if "read" in request else {}
        tokens = sum(map(len, request["batches"])) * request["length"]
        return {"seconds": tokens / next(given[process.threads])}

    def start(process, system, errors):
        process.threads, process.start = system.threads, {"load_seconds": 1.0, "start_to_first_token_seconds": 2.0}

    monkeypatch.setattr(bench_edge.Process, "__init__", start)
    monkeypatch.setattr(bench_edge.Process, "ask", ask)
    monkeypatch.setattr(bench_edge.Process, "close", lambda process: None)
    monkeypatch.setattr(bench_edge, "export_model", lambda *_: None)
    words = [
        *MODELS,
        *SMALL,
        "--systems",
        "portable:tiny",
        "--cases",
        "1:1:1,1:1:2",
        "--record",
        str(tmp_path / "x.json"),
    ]
    assert bench_edge.main(words) == 0
    record = json.loads((tmp_path / "x.json").read_text())
    one, two = record["results"][0]["cases"]
    assert "threads" not in one
    for found in (
        two["threads"],
        record["machine_threads"]["2"]["products"],
        record["machine_threads"]["2"]["reading"],
    ):
        assert found["ratio"]["samples"] == [2.0, 2.0] and set(found["one_against_one"]["samples"]) <= {2.0, 0.5}
    assert two["tokens_per_second"]["median"] == pytest.approx(30)
    size = bench_edge.SMALL_BYTES
    assert asked[:6] == [[1, 8, size], [2, 8, 2 * size], [1, 8, size], *([n, 1, one["step_bytes"]] for n in (1, 2, 1))]
    shown = capsys.readouterr().out
    assert "2.00 (2.00 to 2.00; " in shown and "The processors give 2 threads 2.00" in shown


def test_eager_pytorch_translates_into_as_many_tokens_as_are_forced():
    system = _edge_worker.System("pytorch", "", "lite_transformer_iwslt_de_en", 60, "", 1)
    request = {"batches": [[[5, 6, 7, 2], [9, 8, 2]]], "beam": 2, "length": 6, "allowed": None}
    found = _edge_worker.answer(_edge_worker.Eager(system), request)
    assert [len(tokens) for tokens in found["hypotheses"]] == [5, 5]
    assert found["seconds"] > 0


@pytest.mark.parametrize("engine", ["portable", "native"])
def test_a_shortlist_ends_with_the_request_that_had_it(engine, tmp_path):
    if engine == "native" and native.compiled() is None:
        pytest.skip("the native engine was not built")
    bench_edge.export_model(
        _edge_worker.random_model("lite_transformer_iwslt_de_en", 60), "", "int8", tmp_path / "model"
    )
    model = _edge_worker.Exported(_edge_worker.System(engine, str(tmp_path / "model"), "", 60, "", 1))
    request = {"batches": [[[5, 6, 7, 2], [9, 8, 2]]], "beam": 2, "length": 6, "allowed": None}
    before = _edge_worker.answer(model, request)["hypotheses"]
    used = set(itertools.chain(*before))
    allowed = [0, 1, 2, 3, *sorted({*range(4, 60)} - used)[:10]]
    restricted = _edge_worker.answer(model, request | {"allowed": allowed})["hypotheses"]
    assert set(itertools.chain(*restricted)) <= {*allowed} and restricted != before
    assert _edge_worker.answer(model, request)["hypotheses"] == before


def test_trained_models_are_scored_and_plotted(trained, tmp_path):
    record, plot = tmp_path / "trained.json", tmp_path / "new" / "plot.png"
    words = [
        "--trained",
        f"lite={trained.checkpoints[0]}",
        "--data",
        str(trained.data),
        "--split",
        "valid",
        "--lines",
        "5",
    ]
    words += ["--systems", "portable:lite:fp32,portable:lite", "--cases", "1:1:1", "--beam", "2", *SMALL]
    assert bench_edge.main([*words, "--record", str(record), "--plot", str(plot)]) == 0
    content = json.loads(record.read_text())
    for result in content["results"]:
        assert 0 <= result["sacrebleu"] <= 100 and "nrefs:1" in result["signature"]
        assert len(result["ms_per_sentence"]["samples"]) == 2
    assert "checkpoint_sha256" in content["models"]["lite"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--systems", "tensorflow:lite"], "'tensorflow:lite:int8' is no system"),
        (["--systems", "portable:nothing"], "'portable:nothing:int8' is no system"),
        (["--systems", "portable:lite:int3"], "'portable:lite:int3' is no system"),
        (["--cases", "1:1"], "--cases BATCH:BEAM:THREADS"),
        (["--cases", "0:1:1"], "are at least 1"),
        (["--trained", "lite=x.pt"], "--trained and --data belong together"),
        (["--plot", "x.png"], "--plot needs both"),
    ],
)
def test_refusals(words, text, capsys):
    with pytest.raises(SystemExit):
        bench_edge.parse_args(words)
    assert text in capsys.readouterr().err
