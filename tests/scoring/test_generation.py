"""The reader of fairseq-generate's output: order, n-best lists, log lines, missing sentences."""

import pytest

from lite_transformer.errors import ScoringError
from lite_transformer.scoring.generation import check_count, parse_generation, read_generation

OUTPUT = """2024-01-01 10:00:00 | INFO | fairseq_cli.generate | loading model(s) from x.pt
S-1\tein Haus
T-1\ta house
H-1\t-0.25\ta house\tof glass
D-1\t-0.25\ta house of glass.
P-1\t-0.1 -0.4
H-1\t-0.75\tone house
D-1\t-0.75\tone house.
P-1\t-1.0 -0.5
S-0\t
T-0\t<<unk>>
H-0\t-1.5\t
D-0\t-1.5\t
P-0\t-1.5
A-0\t0-0
Generate test with beam=4: BLEU4 = 10.00
"""


def test_restores_order_and_keeps_the_best_hypothesis():
    first, second = parse_generation(OUTPUT.splitlines(keepends=True), expected=2)
    assert (first.id, first.source, first.target, first.hypothesis, first.score) == (0, "", "<<unk>>", "", -1.5)
    assert (second.source, second.target) == ("ein Haus", "a house")
    assert second.hypothesis == "a house\tof glass", "only the first tabulator ends the score"
    assert second.detokenized == "a house of glass."
    assert second.score == -0.25
    assert second.token_scores == (-0.1, -0.4)


def test_order_of_more_than_ten_is_by_number_and_not_by_text():
    lines = [f"H-{number}\t-1\tw{number}" for number in (11, 2, 10, 0, 1, 9, 3, 8, 4, 7, 5, 6)]
    assert [row.hypothesis for row in parse_generation(lines)] == [f"w{number}" for number in range(12)]


def test_line_separators_inside_a_sentence_do_not_end_it(tmp_path):
    path = tmp_path / "generate.txt"
    path.write_bytes("H-0\t-1\ta\u2028b\u0085c\rd\n".encode())
    assert read_generation(path)[0].hypothesis == "a\u2028b\u0085c\rd"


def test_dropped_batch_is_an_error_naming_both_counts_and_the_cause():
    lines = [f"H-{number}\t-1\tx" for number in range(8)]
    assert len(parse_generation(lines, expected=8)) == 8
    with pytest.raises(
        ScoringError, match=r"8 hypotheses for 11 source lines \(first missing: sentence 8\).*"
    ) as caught:
        parse_generation(lines, expected=11)
    assert "--required-batch-size-multiple 1" in str(caught.value)


def test_gap_is_found_without_knowing_the_count():
    with pytest.raises(ScoringError, match=r"2 hypotheses for 3 source lines \(first missing: sentence 1\)"):
        parse_generation(["H-0\t-1\tx", "S-1\tsource only", "H-2\t-1\tz"])


def test_surplus_hypotheses_are_an_error():
    with pytest.raises(ScoringError, match="3 hypotheses for 2 source lines"):
        check_count([0, 1, 2], 2)


def test_output_without_hypotheses_is_an_error(tmp_path):
    path = tmp_path / "log"
    path.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(ScoringError, match=r"log: no hypothesis found"):
        read_generation(path)
    with pytest.raises(ScoringError, match="0 hypotheses for 5 source lines"):
        parse_generation([], expected=5)


def test_malformed_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ScoringError, match="line 2: 'H-1' is followed by no number"):
        parse_generation(["H-0\t-1\tx", "H-1\tx\ty"])
    with pytest.raises(ScoringError, match="missing: cannot be read"):
        read_generation(tmp_path / "missing")
    (tmp_path / "latin").write_bytes("H-0\t-1\tü".encode("latin-1"))
    with pytest.raises(ScoringError, match="latin: not UTF-8"):
        read_generation(tmp_path / "latin")
