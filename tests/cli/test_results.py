"""The results verb: rendering, checking, errors. What it renders is tested in tests/test_results_records.py."""

from pathlib import Path

from lite_transformer.cli.main import main
from tests.test_results_records import folder, record  # noqa: F401  (a fixture)


def test_renders_tables_and_plots(folder, capsys):  # noqa: F811
    assert main(["results", "--dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out == f"wrote {folder / 'tables.md'}\nwrote {folder / 'plots/multi30k-en-de.png'}\n"
    assert main(["results", "--dir", str(folder), "--check"]) == 0


def test_check_fails_if_a_table_was_edited_or_a_record_added(folder, capsys):  # noqa: F811
    from lite_transformer import results

    check = ["results", "--dir", str(folder), "--check"]
    assert main(check) == 2
    assert "tables.md is missing. Run: lite-transformer results --dir" in capsys.readouterr().err
    assert main(["results", "--dir", str(folder), "--no-plots"]) == 0
    assert not (folder / "plots").exists()
    table = folder / "tables.md"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("41.02", "39.02"), encoding="utf-8")
    assert main(check) == 2
    line = next(number for number, content in enumerate(text.splitlines(), start=1) if "41.02" in content)
    assert f"tables.md, line {line}: not what the records give. Run: " in capsys.readouterr().err
    assert main(["results", "--dir", str(folder), "--no-plots"]) == 0
    results.write_record(folder / "runs" / "lite-3.json", record(seed=3))
    assert main(check) == 2
    assert table.read_text(encoding="utf-8") == text, "a check writes nothing"


def test_bad_folder_and_bad_record_are_one_line(folder, tmp_path, capsys):  # noqa: F811
    assert main(["results", "--dir", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    (folder / "runs" / "broken.json").write_text("{}", encoding="utf-8")
    assert main(["results", "--dir", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "broken.json: missing key arch, commands" in err


def test_blocks_of_another_file_are_filled_and_checked(folder, tmp_path, capsys):  # noqa: F811
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: multi30k-en-de -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    base = ["results", "--dir", str(folder), "--into", str(page)]
    assert main([*base, "--no-plots"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| Transformer-Tiny | 42.1M | 8,000 | 1 | 40.68 | beam 5 | 41.02 |" in text
    assert "| Lite | 35.0M | 8,000 | 2 | 41.00 (40.00 to 42.00) | beam 5 |  |" in text
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert main([*base, "--check"]) == 0
    page.write_text(text.replace("40.68", "39.68"), encoding="utf-8")
    assert main([*base, "--check"]) == 2
    assert "page.md: its results are not what the records give" in capsys.readouterr().err
    page.write_text("<!-- results: nothing -->\n<!-- end -->\n", encoding="utf-8")
    assert main([*base, "--check"]) == 2
    assert "results of unknown task 'nothing'. Known: multi30k-en-de" in capsys.readouterr().err
    assert main(["results", "--dir", str(folder), "--into", str(tmp_path / "none.md")]) == 2
    assert "none.md: no such file" in capsys.readouterr().err


def test_a_block_may_name_its_rows(folder, tmp_path, capsys):  # noqa: F811
    page = tmp_path / "page.md"
    page.write_text("<!-- results: multi30k-en-de | Lite -->\nold\n<!-- end -->\n", encoding="utf-8")
    base = ["results", "--dir", str(folder), "--into", str(page)]
    assert main([*base, "--no-plots"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| Lite | 35.0M |" in text and "Transformer-Tiny" not in text
    assert text.startswith("<!-- results: multi30k-en-de | Lite -->\n\n| row |")
    assert main([*base, "--check"]) == 0
    page.write_text(text.replace("| Lite -->", "| Lite | Heavy -->"), encoding="utf-8")
    assert main([*base, "--check"]) == 2
    assert "page.md: multi30k-en-de has no row 'Heavy'. Known: " in capsys.readouterr().err


def test_tables_and_readme_of_the_repository_are_what_its_records_give():
    root = Path(__file__).parents[2]
    pages = [str(root / "README.md"), str(root / "results" / "speed" / "README.md")]
    assert main(["results", "--dir", str(root / "results"), "--into", *pages, "--check"]) == 0
