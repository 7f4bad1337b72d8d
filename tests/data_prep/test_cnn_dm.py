"""CNN/DailyMail from archives in the published format: which stories count, what becomes of their lines, errors."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from data_prep import cnn_dm
from data_prep.io import read_lines
from lite_transformer.cli.main import main

# Written for this test, in the shape of a .story file.
STORY = """(CNN) -- A dog named {name} has
learnt to open doors

"It took a week," said its owner\u2019s \u201cteacher\u201d

@highlight

Dog {name} opens doors

@highlight

It took a week!
"""


def urls(split, count):
    return [f"http://web.archive.org/web/2015id_/http://www.cnn.com/{split}/{number}.html" for number in range(count)]


def spell(number):
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def write_archive(path, stories):
    """A tgz of NAME.story files in a folder, as published, with the folders' own entries."""
    with tarfile.open(path, "w:gz") as tar:
        folder = tarfile.TarInfo(f"./{path.stem[:3]}/stories")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, text in stories.items():
            content = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name if "/" in name else f"./{path.stem[:3]}/stories/{name}.story")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_sources(folder, changes=None):
    """Both archives and the three url lists: 12 / 3 / 3 stories, and one that no list has."""
    folder.mkdir()
    lists = {split: urls(split, count) for split, count in (("train", 12), ("val", 3), ("test", 3))}
    for split, lines in lists.items():
        (folder / f"all_{split}.txt").write_text("".join(f"{url}\n" for url in lines), encoding="utf-8")
    stories = {
        cnn_dm.story_name(url): STORY.format(name=split + spell(number))
        for split, lines in lists.items()
        for number, url in enumerate(lines)
    }
    stories |= {"f" * 40: STORY.format(name="unlisted")} | (changes or {})
    names = sorted(stories)
    write_archive(folder / "cnn_stories.tgz", {name: stories[name] for name in names[::2]})
    write_archive(folder / "dailymail_stories.tgz", {name: stories[name] for name in names[1::2]})
    return folder


def prepare(folder, capsys, *options):
    """(exit code, output, the error if there is one)"""
    command = ["prepare", "cnn_dm", "--source", str(folder), "--dest", str(folder.parent / "out"), "--bpe-merges", "30"]
    code = main([*command, "--workers", "1", *options])
    captured = capsys.readouterr()
    return code, captured.out, "\n".join(line for line in captured.err.splitlines() if " | INFO | " not in line)


def test_lines_of_a_story():
    article, summary = cnn_dm.parse_story(STORY.format(name="Rex").splitlines())
    assert article == (
        "(CNN) -- A dog named Rex has. learnt to open doors. \"It took a week,\" said its owner’s “teacher”"
    )  # fmt: skip
    assert summary == "Dog Rex opens doors. ¶ It took a week!"


@pytest.mark.parametrize("end", [".", "!", "?", "...", "'", "`", '"', ")", "’", "”"])
def test_ends_of_sentences(end):
    assert cnn_dm.end_sentence(f"It is so{end}") == f"It is so{end}"
    assert cnn_dm.end_sentence("It is so,") == "It is so,."


def test_names_of_stories():
    # computed with sha1sum
    assert cnn_dm.story_name("http://www.cnn.com/") == "653cdbad8ad9fe67045a2f41e545cb3d935cb6c5"


def test_long_articles_keep_their_first_words():
    article, _ = cnn_dm.parse_story(["word " * 1500, "", "@highlight", "", "short"])
    assert article == " ".join(["word"] * 1000)


def test_prepared_by_the_command(tmp_path, capsys):
    source = write_sources(tmp_path / "source")
    code, out, _ = prepare(source, capsys)
    assert code == 0
    assert "cnn_dm article-summary is ready" in out and "lines: train 12, valid 3, test 3" in out
    summaries = {
        split: read_lines(tmp_path / "out" / "raw" / f"{split}.summary") for split in ("train", "valid", "test")
    }
    wanted = {
        split: [f"Dog {split}{spell(n)} opens doors. ¶ It took a week!" for n in range(12)] for split in summaries
    }
    assert summaries["test"] == wanted["test"][:3], "in the order of the url list"
    assert summaries["valid"] == [line.replace("valid", "val") for line in wanted["valid"][:3]]
    assert sorted(summaries["train"]) == sorted(wanted["train"])
    subwords = read_lines(tmp_path / "out" / "bpe" / "test.summary")[0].replace("@@ ", "")
    assert subwords.endswith("opens doors . ¶ It took a week !")
    record = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    assert record["text"]["summary"]["language"] == "en" and record["joined_dictionary"] is True
    dictionaries = [(tmp_path / "out" / "bin" / f"dict.{side}.txt").read_bytes() for side in ("article", "summary")]
    assert dictionaries[0] == dictionaries[1]


def test_articles_are_cut_after_1000_subwords(tmp_path, capsys):
    name = cnn_dm.story_name(urls("test", 1)[0])
    source = write_sources(tmp_path / "source", {name: "qxz " * 900 + "\n\n@highlight\n\nLong\n"})
    assert prepare(source, capsys)[0] == 0
    (line,) = [line for line in read_lines(tmp_path / "out" / "bpe" / "test.article") if line.startswith("q")]
    assert len(line.split()) == 1000
    (line,) = [line for line in read_lines(tmp_path / "out" / "raw" / "test.article") if line.startswith("q")]
    assert len(line.split()) == 900, "the raw text stays whole"


def test_empty_stories_are_left_out(tmp_path, capsys, caplog):
    first, second = (cnn_dm.story_name(url) for url in urls("train", 2))
    source = write_sources(tmp_path / "source", {first: "Article alone.\n", second: "\n@highlight\n\nNo article\n"})
    with caplog.at_level("INFO"):
        code, out, _ = prepare(source, capsys)
    assert code == 0 and "train 10, valid 3, test 3" in out
    assert "2 stories left out: no article or no highlights" in caplog.text


def damage(source, how):
    test_urls = source / "all_test.txt"
    archive = source / "dailymail_stories.tgz"
    if how == "missing list":
        test_urls.unlink()
    elif how == "html":
        test_urls.write_text("<!DOCTYPE html><title>404</title>\n", encoding="utf-8")
    elif how == "no url":
        test_urls.write_text("http://a.b/c\nodd\n", encoding="utf-8")
    elif how == "two lists":
        test_urls.write_text(urls("train", 1)[0], encoding="utf-8")
    elif how == "other url":
        test_urls.write_text("http://a.b/c\n", encoding="utf-8")
    elif how == "truncated":
        archive.write_bytes(archive.read_bytes()[:-50])
    elif how == "outside":
        write_archive(archive, {"../" + "a" * 40 + ".story": "x"})
    elif how == "encoding":
        write_archive(archive, {cnn_dm.story_name(url): b"caf\xe9\n" for url in urls("test", 3)})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing list", "missing all_test.txt. Fetch all_test.txt from https://raw.githubusercontent.com/abisee"),
        ("html", "all_test.txt: an HTML page ('404') instead of all_test.txt"),
        ("no url", "all_test.txt, line 2: no url ('odd')"),
        ("two lists", "cnn.com/train/0.html is in the list of train too"),
        ("other url", "1 of 16 listed stories are not in cnn_stories.tgz and dailymail_stories.tgz (for example "),
        ("truncated", "dailymail_stories.tgz: truncated or damaged"),
        ("outside", "points outside"),
        ("encoding", ".story, line 1: not UTF-8 (byte 0xe9"),
    ],
)
def test_bad_sources_are_one_line(tmp_path, capsys, how, message):
    source = write_sources(tmp_path / "source")
    damage(source, how)
    code, out, error = prepare(source, capsys)
    assert code == 2 and out == ""
    assert message in error and "\n" not in error
    assert not (tmp_path / "out" / "raw").exists()


def test_archives_cannot_be_downloaded_and_other_direction_is_refused(tmp_path, capsys):
    assert main(["prepare", "cnn_dm", "--dest", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "cnn_stories.tgz cannot be downloaded: the link 'Stories' under CNN at https://cs.nyu.edu" in error
    assert main(["prepare", "cnn_dm", "--dest", str(tmp_path / "out"), "--pair", "summary-article"]) == 2
    assert "has the pair article-summary only, not summary-article" in capsys.readouterr().err
