"""`lite-transformer translate --model`: by name alone; the list; files; a pipe that answers at once; a conversation."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import threading
import time

import pytest

from lite_transformer.cli import translate
from lite_transformer.cli.main import main
from lite_transformer.released import folder as folders
from tests.helpers import commands
from tests.released.conftest import release
from tests.released.echo import Echo

TEXT = "Der Hund läuft heute nicht.\n\nDas Haus\n"


@pytest.fixture
def here(released, monkeypatch, tmp_path):
    """A working folder with released models."""
    monkeypatch.setattr(folders, "_PACKAGE_DIR", tmp_path / "package")
    monkeypatch.chdir(released.parent.parent)
    return released.parent


def run(monkeypatch, capsys, text, *argv):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    code = main(["translate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_a_name_is_enough_and_gives_what_checkpoint_and_data_give(here, released, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, TEXT, "--model", "tiny_de_en", "--cpu")
    assert code == 0 and out.count("\n") == 3
    first, empty, second = out.splitlines()
    assert first and second and not empty
    options = ("--checkpoint", released / "model.pt", "--data", released, "--beam", 2, "--cpu")
    assert run(monkeypatch, capsys, TEXT, *options)[:2] == (0, out)


def test_the_search_is_the_card_s_unless_given(here, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(translate, "Translator", lambda *arguments: seen.append(arguments) or Echo())
    for words in ((), ("--beam", 7), ("--lenpen", 0)):
        assert run(monkeypatch, capsys, "a\n", "--model", "tiny_de_en", *words)[:2] == (0, "A\n")
    assert [arguments[2:4] for arguments in seen] == [(2, 1.0), (7, 1.0), (2, 0.0)]


def test_text_is_utf8_whatever_the_locale(here, monkeypatch):
    monkeypatch.setattr(translate, "Translator", Echo)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("über ≤\n".encode()), encoding="latin-1"))
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="latin-1"))
    assert main(["translate", "--model", "tiny_de_en"]) == 0
    sys.stdout.flush()
    assert output.getvalue().decode() == "ÜBER ≤\n"


def test_no_input_at_all(here, monkeypatch, capsys):
    monkeypatch.setattr(translate, "Translator", Echo)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["translate", "--model", "tiny_de_en"]) == 2
    assert "standard input is closed. Give text in a pipe, or by --input FILE." in capsys.readouterr().err


def test_the_list(trained, here, other_record, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["translate", "--list"]) == 0
    assert capsys.readouterr().out.startswith("No released model is installed: they lie in checkpoints/ of the")
    shutil.copytree(here / "tiny_de_en", tmp_path / "checkpoints" / "old")
    assert release(trained, tmp_path / "checkpoints" / "new", "--record", other_record("one.json"), "--beam", 1) == 0
    capsys.readouterr()
    assert main(["translate", "--list"]) == 0
    out, err = capsys.readouterr()
    head, new, old = ([cell for cell in line.split("  ") if cell] for line in out.splitlines())
    assert head[0] == "NAME" and err == ""
    assert [*map(str.strip, new)][:3] == ["new", "German", "English"]
    assert new[3].strip().endswith("M") and new[4].strip() == "0.0 MB"
    assert new[5] == "sacrebleu 31.50, chrf 52.25", "of the test set alone"
    assert old[0].strip() == "old" and old[5] == "not scored"
    (tmp_path / "checkpoints" / "old" / "card.json").write_text("{", encoding="utf-8")
    assert main(["translate", "--list"]) == 2
    out, err = capsys.readouterr()
    assert "new " in out and "old" not in out and err.count("\n") == 1 and "old/card.json: cannot be read" in err


def test_which_model_is_asked_for_clearly(here, capsys):
    for words, message in (
        ((), "no model given: --model NAME, or --checkpoint PT --data BIN. Released models: tiny_de_en; or"),
        (("--model",), "--model needs a name or a folder. Released models: tiny_de_en; or"),
        (("--model", "tiny_en_de"), "unknown model 'tiny_en_de'. Did you mean tiny_de_en? Released models: tiny"),
        (("--checkpoint", "x.pt"), "--data is missing; or --model NAME. Released models: tiny_de_en"),
        (("--data", "x"), "--checkpoint is missing; or --model NAME. Released"),
        (("--model", "tiny_de_en", "--data", "x"), "--model brings its own data: leave out --checkpoint and --data"),
    ):
        assert main(["translate", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_from_file_to_file_whole_or_not_at_all(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(translate, "Translator", Echo)
    text, output = tmp_path / "text.de", tmp_path / "text.en"
    text.write_text(TEXT * 50, encoding="utf-8")
    argv = ["translate", "--model", "tiny_de_en", "--input", str(text), "--output"]
    assert main([*argv, str(output)]) == 0
    assert capsys.readouterr().out == "" and output.read_text(encoding="utf-8") == (TEXT * 50).upper()
    text.write_bytes(TEXT.encode() + b"\xff\n")
    assert main([*argv, str(output)]) == 2
    assert "text.de, line 4: not UTF-8 (byte 0xff" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == (TEXT * 50).upper(), "the older file is kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.de", "text.en"]
    for path, message in (
        (tmp_path, "a folder"),
        (tmp_path / "none" / "text.en", "its folder does not exist"),
        (tmp_path / "." / "text.de", "is the --input: the text would be lost"),
    ):
        assert main([*argv, str(path)]) == 2
        assert message in capsys.readouterr().err


def test_a_pipe_answers_a_line_before_the_next_comes():
    source, source_end = os.pipe()
    answer, answer_end = os.pipe()
    stream, output = os.fdopen(source, "rb"), os.fdopen(answer_end, "w", encoding="utf-8")
    thread = threading.Thread(target=translate._translate_stream, args=(Echo(), stream, "pipe", output), daemon=True)
    thread.start()
    with os.fdopen(source_end, "wb", buffering=0) as asked, os.fdopen(answer, encoding="utf-8") as answered:
        for line in ("eins\n", "\n", "zwei drei\n"):
            asked.write(line.encode())
            assert answered.readline() == line.upper()
        asked.write(b"vi")
        asked.write(b"er\nf\n")
        assert [answered.readline(), answered.readline()] == ["VIER\n", "F\n"]
        asked.write(b"no end")
        asked.close()
        assert answered.readline() == "NO END\n"
        thread.join(60)
        output.close()
        assert answered.readline() == ""
    stream.close()


CONVERSATION = """
import sys
from lite_transformer.cli import main, translate
from tests.released.echo import Echo
translate.Translator = Echo
sys.exit(main.main(["translate", "--model", sys.argv[1], *sys.argv[2:]]))
"""


def converse(steps, model, *words, stdout=None):
    """What a terminal shows while ``steps``, (what to wait for, what to type), are gone through; and the exit code."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERSATION, str(model), *words],
        stdin=other_end, stdout=stdout or other_end, stderr=other_end, cwd=commands.ROOT, start_new_session=True,
        env=commands.environment(TERM="dumb", INPUTRC="/dev/null"), preexec_fn=lambda: take_terminal(other_end),
    )  # fmt: skip
    os.close(other_end)
    shown, seen, typed = b"", 0, b""
    for awaited, following in steps:
        while awaited not in shown[seen:]:
            if typed == b"\x03" and not select.select([terminal], [], [], 3)[0]:
                os.write(terminal, typed)  # the first came too early
                continue
            shown += os.read(terminal, 1 << 16)
        typed = following
        seen = len(shown)
        if typed == b"\x03":
            time.sleep(0.3)  # Python notices it only while it waits for a key, not while it takes one in
        os.write(terminal, typed)
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:
        pass  # Linux says EIO when the other end is closed
    os.close(terminal)
    return shown.decode(errors="replace").replace("\r\n", "\n"), process.wait(60)


def take_terminal(descriptor):
    """Makes it the terminal of the process, so that control characters become signals, and lets Ctrl-C through.

    A shell's background job, and all that it starts, ignores Ctrl-C.
    """
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@pytest.mark.timeout(120)
def test_a_conversation_survives_every_line(released):
    steps = [
        (b"de> ", b"eins\r"),
        (b"de> ", b"caf\xff\r"),  # not UTF-8
        (b"de> ", b"heavy\r"),  # fails
        (b"de> ", b"\r"),  # empty
        (b"de> ", b"half"),
        (b"half", b"\x03"),  # Ctrl-C
        (b"de> ", b"\x10" * 3 + b"\r"),  # Ctrl-P thrice: not the empty line, but heavy, caf\xff and eins
        (b"de> ", "zwölf\r".encode()),
        (b"de> ", b"\x04"),  # Ctrl-D
    ]
    shown, code = converse(steps, released)
    assert code == 0, shown
    assert shown.startswith("Type a line of German and press return; Ctrl-D ends.\nde> eins\nen> EINS\nde> ")
    assert "\nThis line is not UTF-8; type it again.\nde> heavy\n" in shown
    assert "\nThis line cannot be translated: out of memory\nde> \nen> \nde> " in shown
    assert "HALF" not in shown
    assert shown.count("en> EINS\n") == 2, "the history holds the first line"
    assert "de> zwölf\nen> ZWÖLF\nde> " in shown


@pytest.mark.timeout(120)
def test_translations_alone_go_to_a_file(released, tmp_path):
    steps = [(b"de> ", b"eins\n"), (b"de> ", b"caf\xff\n"), (b"de> ", "zwölf\n".encode()), (b"de> ", b"\x04")]
    with (tmp_path / "out").open("wb") as file:
        shown, code = converse(steps, released, stdout=file)
    assert code == 0 and "This line is not UTF-8" in shown
    assert (tmp_path / "out").read_text(encoding="utf-8") == "EINS\nZWÖLF\n"
    shown, code = converse(steps, released, "--output", str(tmp_path / "file"))
    assert code == 0 and "en> " not in shown
    assert (tmp_path / "file").read_text(encoding="utf-8") == "EINS\nZWÖLF\n"


def test_the_card_of_the_released_model_is_plain_json(released):
    content = json.loads((released / "card.json").read_text(encoding="utf-8"))
    assert content["format"] == 2 and content["cost"]["macs"] > 0 and content["training"]["seed"] == 5


def evaluate(capsys, *words):
    code = main(["evaluate", "--cpu", *map(str, words)])
    return code, *capsys.readouterr()


def test_evaluate_takes_a_released_model(trained, here, released, tmp_path, capsys):
    by_name = ("--model", "tiny_de_en", "--data", trained.data, "--json")
    code, out, err = evaluate(capsys, *by_name)
    assert code == 0, err
    result = json.loads(out)
    assert result["decoding"] == "beam 2, lenpen 1, released model tiny_de_en" and result["sentences"] == 21
    path = ("--checkpoint", released / "model.pt", "--data", trained.data, "--json", "--beam", 2)
    assert json.loads(evaluate(capsys, *path)[1])["scores"] == result["scores"]
    code, out, _ = evaluate(capsys, *by_name, "--beam", 1)
    assert code == 0 and json.loads(out)["decoding"].startswith("beam 1, lenpen 1, released")
    other = shutil.copytree(trained.data, tmp_path / "bin")
    dictionary = (other / "dict.en.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "dict.en.txt").write_text("".join(reversed(dictionary)), encoding="utf-8")
    for words, message in (
        (("--model", "tiny_de_en", "--data", other), "dict.en.txt is not the dictionary of"),
        (("--model", "none", "--data", trained.data), "unknown model 'none'. Released models: tiny_de_en"),
        ((*by_name, "--checkpoint", "x.pt"), "--checkpoint does not go with --model: --model is the checkpoint"),
        ((*by_name, "--record", "x.json"), "--record does not go with --model: it describes a training run"),
    ):
        code, _, err = evaluate(capsys, *words)
        assert code == 2 and message in err and err.count("\n") == 1
