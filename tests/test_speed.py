"""Tables of speed say what the benchmark records say."""

import json

import pytest

from lite_transformer import results, speed
from lite_transformer.errors import DataError

FROM = {"command": "scripts/bench.py --x", "commit": "0123456789", "dirty": False, "device": "a card",
        "versions": {"torch": "2"}}  # fmt: skip


def spread(median):
    return {"median": median, "min": median - 1, "max": median + 1, "samples": [median]}


def operation(kind, length, **variants):
    case = {"dtype": "fp16", "length": length, "batch": 2, "kernel_size": 3, "channels": 8, "heads": 2}
    parts = {
        name: {"forward": {"graph": spread(value)}, "both": {"graph": spread(value * 3)}}
        for name, value in variants.items()
    }
    return {"kind": kind, "case": case, "floor_us": [1.25, 2.5], "variants": parts}


def write(folder, name, content):
    (folder / "speed").mkdir(exist_ok=True)
    (folder / "speed" / f"{name}.json").write_text(json.dumps(content))


def test_operations_with_the_published_figures_beside_them(tmp_path):
    rows = [operation("dynamic", 9, fused=10, band=20), operation("dynamic", 9, fused=99), operation("dynamic", 7)]
    write(tmp_path, "ops", {**FROM, "copy_terabytes_per_second": 3.0, "results": rows})
    figure = {"kind": "dynamic", "dtype": "fp16", "length": 9, "batch": 2, "kernel_size": 3}
    write(tmp_path, "published_cuda", {"figures": [{**figure, "forward_us": 43, "both_us": 149}]})
    text = speed.render(tmp_path, "ops")
    assert text.startswith("`scripts/bench.py --x`, commit 0123456, a card, torch 2:\n")
    assert text.splitlines()[4:] == ["| dynamic | fp16 | 9 | 2 | 3 | 10 / 30 | 20 / 60 | 43 / 149 | 1.2 / 2.5 |"]


def test_training_and_generation(tmp_path):
    figures = {"updates_per_second": spread(50.0), "target_tokens_per_second": spread(9000.0),
               "model_tflops": spread(7.25), "model_flops_utilisation": None}  # fmt: skip
    result = {"arch": "small", "macs": 54_000_000, "variants": {"ours": figures}}
    write(tmp_path, "train", {**FROM, "benchmark": "training", "results": [result]})
    assert speed.render(tmp_path, "train").splitlines()[-1] == (
        "| small | ours | 54M | 50.0 (49.0 to 51.0) | 9,000 (8,999 to 9,001) | 7.2 |  |"
    )
    result = {"arch": "small", "macs": 54_000_000, "variants": {"greedy": {"sentences_per_second": spread(300.0)}}}
    write(tmp_path, "search", {**FROM, "benchmark": "generation", "dirty": True, "results": [result]})
    text = speed.render(tmp_path, "search")
    assert "commit 0123456 and changes" in text
    assert text.splitlines()[-1] == "| small | 54M | 300 (299 to 301) |"


def test_training_of_language_models_has_the_length_of_a_block_and_the_memory(tmp_path):
    figures = {"updates_per_second": spread(50.0), "target_tokens_per_second": spread(9000.0),
               "model_tflops": spread(7.25), "model_flops_utilisation": spread(0.5)}  # fmt: skip
    memory = {"peak_memory_gigabytes": {"allocated": 1.5, "reserved": 2.125}}
    found = [
        {
            "arch": "lm",
            "macs": 327e6,
            "tokens_per_sample": 3072,
            "variants": {"plain": figures, "ours": figures | memory},
        },
        {"arch": "mt", "macs": 54e6, "tokens_per_sample": None, "variants": {"ours": figures}},
    ]
    write(tmp_path, "train", {**FROM, "benchmark": "training", "results": found})
    head, _, plain, ours, other = speed.render(tmp_path, "train").splitlines()[2:]
    assert "| Mult-Adds | tokens a sample | updates/s |" in head and head.endswith("| utilisation | peak memory, GB |")
    assert plain.startswith("| lm | plain | 327M | 3,072 | 50.0") and plain.endswith(" |  |")
    assert ours.endswith("| 2.12 |")
    assert other.startswith("| mt | ours | 54M |  | 50.0")


def test_scaling(tmp_path):
    result = {"count": 2, "tokens_per_second": spread(9000.0), "speed_up": 1.876, "largest_loss_difference": 0.0012}
    write(tmp_path, "gpus", {**FROM, "benchmark": "scaling", "results": [result]})
    assert speed.render(tmp_path, "gpus").splitlines()[-1] == "| 2 | 9,000 (8,999 to 9,001) | 1.88 | 0.001 |"


def test_blocks_of_a_file_are_filled(tmp_path):
    write(tmp_path, "ops", {**FROM, "results": []})
    text = results.render_blocks("a\n<!-- speed: ops -->\nold\n<!-- end -->\nb\n", tmp_path, "FILE")
    assert "old" not in text and "scripts/bench.py" in text and text.startswith("a\n") and text.endswith("-->\nb\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"no speed record .*ops.json. Known: other"),
        ({**FROM, "benchmark": "flying", "results": []}, "unknown benchmark 'flying'; known: operations, training"),
        ({"results": []}, "not a record of a benchmark script"),
    ],
)
def test_bad_records_are_named(tmp_path, content, text):
    write(tmp_path, "other", {})
    if content is not None:
        write(tmp_path, "ops", content)
    with pytest.raises(DataError, match=text):
        speed.render(tmp_path, "ops")
