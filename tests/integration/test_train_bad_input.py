"""What a user can get wrong with `lite-transformer train`: one line that says what to type, and exit code 2."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lite_transformer import training
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from tests.helpers import commands

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command adds handlers to the root logger; a process of its own would end with them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs `lite-transformer train ...`, which must fail with exit code 2, and gives its one line."""

    def run(*words: Any, config: str = commands.EXPERIMENT) -> str:
        arguments = [str(word) for word in words]
        if "--save-dir" not in arguments:
            arguments += ["--save-dir", str(tmp_path / "save")]
        code = main(["train", config, "--cpu", *arguments])
        text = capsys.readouterr().err
        assert code == 2, text
        assert text.startswith("lite-transformer train: ")
        assert text.count("\n") == 1
        assert not (tmp_path / "save").exists(), "a refused training leaves nothing behind"
        return text

    return run


MODEL_MISTAKES = [
    ("model.encoder_branch_dims=[100,40]", "branch widths 100 + 40 = 140 do not add up to --encoder-embed-dim 160"),
    ("model.encoder_branch_heads=[3,4]", "3 heads do not divide the attention branch of 80 channels"),
    ("model.encoder_kernel_sizes=[3,7]", "--encoder-kernel-sizes has 2 entries for --encoder-layers 6"),
    ("model.encoder_kernel_sizes=[4]", "4 is even; the encoder's convolution is centred and needs odd sizes"),
    ("model.cross_attention_heads=7", "--cross-attention-heads 7 does not divide --decoder-embed-dim 160"),
    ("model.dropout=1.5", "--dropout 1.5 is not a probability"),
]


@pytest.mark.parametrize(("override", "text"), MODEL_MISTAKES)
def test_a_model_that_does_not_fit_together(refuse: Refuse, tiny_data: Path, override: str, text: str):
    assert text in refuse("--data", tiny_data, override)


def test_a_dry_run_checks_the_model_too(refuse: Refuse):
    override, text = MODEL_MISTAKES[0]
    assert text in refuse("--data", "not/made/yet", override, "--dry-run")


OPTION_MISTAKES = [
    ("optimization.max_updates=5", "unknown option 'optimization.max_updates' (the command line). Did you mean "
     "optimization.max_update"),
    ("model.encoder_layer=5", "unknown option 'model.encoder_layer' (the command line). Did you mean model."),
    ("lr_scheduler.warmup=5", "unknown option 'lr_scheduler.warmup'"),
    ("optimisation.max_update=5", "unknown option 'optimisation.max_update'. Did you mean optimization?"),
    ("model.dropout=much", "option 'model.dropout': Value 'much' of type 'str' could not be converted to Float"),
    ("optimization.max_update=many", "option 'optimization.max_update=many': Value 'many'"),
    ("optimizer=adamm", "unknown optimizer 'adamm'. Did you mean adam"),
    ("bpe.codes=x", "option 'bpe.codes' has no group to belong to"),
    ("model._name=lite_transformer_wmt", "unknown architecture 'lite_transformer_wmt'. Did you mean lite_transformer"),
    ("~model.dropout", "'~model.dropout' is not an override: write group.option=value"),
    ("model.dropout=[", "override 'model.dropout=[' cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "text"), OPTION_MISTAKES)
def test_an_option_that_does_not_exist_or_cannot_be(refuse: Refuse, tiny_data: Path, override: str, text: str):
    assert text in refuse("--data", tiny_data, override)


def test_an_unknown_architecture_lists_the_known_ones(refuse: Refuse, tiny_data: Path):
    text = refuse("--data", tiny_data, "model._name=tranformer")

    assert "Known: lite_transformer, lite_transformer_iwslt_de_en," in text
    assert "transformer_cnn_dm_2g" in text


def test_an_unknown_experiment_lists_the_known_ones(refuse: Refuse, tiny_data: Path):
    text = refuse("--data", tiny_data, config="iwslt14")

    assert "unknown experiment 'iwslt14'. Known: cnn_dm_lite_496," in text
    assert "iwslt14_de_en_lite_160" in text
    assert "there is no experiment file no/where.yaml" in refuse("--data", tiny_data, config="no/where.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: {_name: translation", "bad.yaml: "),
        ("optimization: {max_updat: 4}", "unknown option 'optimization.max_updat' ("),
        ("optimization: {max_update: many}", "Value 'many'"),
        ("optimisation: {max_update: 4}", "unknown group 'optimisation' ("),
        ("- task", "an experiment is a mapping of groups"),
        ("task: {_name: translation}", "model._name is missing"),
        ("task: {_name: translation, dat: x}\nmodel: {_name: lite_transformer}\ncriterion: {_name: cross_entropy}\n"
         "optimizer: {_name: adam}\nlr_scheduler: {_name: fixed}", "unknown option 'task.dat' ("),
    ],
)  # fmt: skip
def test_an_experiment_file_with_a_mistake(refuse: Refuse, tiny_data: Path, tmp_path: Path, text: str, expected: str):
    (tmp_path / "bad.yaml").write_text(text + "\n", encoding="utf-8")

    assert expected in refuse("--data", tiny_data, config=str(tmp_path / "bad.yaml"))


def test_a_missing_data_folder_names_the_command_that_makes_it(refuse: Refuse, tmp_path: Path):
    text = refuse("--data", tmp_path / "none" / "bin")

    assert f"no binarized data in {tmp_path}/none/bin (no such folder)." in text
    assert f"Run: lite-transformer prepare parallel --source FOLDER_OF_TEXT --pair de-en --dest {tmp_path}/none" in text
    assert "no data folder given: --data DIR" in refuse()


def test_a_half_binarized_folder_is_refused(refuse: Refuse, tiny_data: Path, tmp_path: Path):
    shutil.copytree(tiny_data, tmp_path / "bin")
    (tmp_path / "bin" / "train.de-en.en.idx").unlink()

    assert (
        f"no complete binarized data in {tmp_path}/bin (train.de-en.en.idx is missing). "
        f"Run: lite-transformer prepare parallel --source FOLDER_OF_TEXT --pair de-en --dest {tmp_path}\n"
    ) in refuse("--data", tmp_path / "bin")


@pytest.fixture(scope="module")
def experiment(tiny_data: Path) -> Any:
    return training.load_config(training.find_config(commands.EXPERIMENT), [f"task.data={tiny_data}"])


@pytest.mark.parametrize("name", ["dict.en.txt", "train.de-en.de.bin", "train.de-en.en.idx", "valid.de-en.en.bin"])
def test_every_damaged_file_of_a_data_folder_is_named(experiment: Any, tiny_data: Path, tmp_path: Path, name: str):
    folder = tmp_path / "bin"
    shutil.copytree(tiny_data, folder)
    config = deepcopy(experiment)
    config.task.data = str(folder)
    training.check_data(config, commands.EXPERIMENT)
    content = (folder / name).read_bytes()

    def text() -> str:
        with pytest.raises(DataError) as caught:
            training.check_data(config, commands.EXPERIMENT)
        return str(caught.value)

    (folder / name).write_bytes(b"")
    assert f"({name} is empty)" in text()
    if name != "dict.en.txt":
        (folder / name).write_bytes(content[: len(content) // 2])
        assert f"({name} is cut off)" in text() or f"({name} has {len(content) // 2} bytes, its index says" in text()
    (folder / name).unlink()
    assert f"({name} is missing)" in text()


def test_embedded_and_multi30k_experiments_name_their_own_preparation(refuse: Refuse, tmp_path: Path):
    folder = tmp_path / "bin"

    assert f"prepare embedded --pair de-en --dest {tmp_path}" in refuse("--data", folder, config="embedded_de_en")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--processes", "2"], "the batch cannot be kept on 2 processes: optimization.update_freq 1 x 1 does not "
         "divide by 2. Take another number of processes, or cut it finer: dataset.max_tokens=2048 "
         "optimization.update_freq=[2]"),
        (["--processes", "0"], "--processes 0: at least 1 is needed"),
        (["--gpus", "2"], "--gpus and --cpu exclude each other"),
    ],
)  # fmt: skip
def test_processes_that_cannot_be(refuse: Refuse, tiny_data: Path, words: list[str], text: str):
    assert text in refuse("--data", tiny_data, *words)


def test_under_torchrun_another_number_of_processes_is_refused(
    refuse: Refuse, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)

    assert "torchrun started 2 processes but the command asks for 3" in refuse("--data", tiny_data, "--processes", "3")


def test_a_save_folder_of_another_model_is_refused(
    refuse: Refuse, tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    folder = tmp_path / "used"
    folder.mkdir()
    shutil.copyfile(tiny_checkpoint, folder / "checkpoint_last.pt")
    config = {"model": {"_name": "lite_transformer_iwslt_de_en", "encoder_embed_dim": 16}}
    (folder / "train.json").write_text(json.dumps({"config": config}), encoding="utf-8")

    text = refuse("--data", tiny_data, "--save-dir", folder)

    assert "holds checkpoints of another model" in text
    assert "model.encoder_embed_dim is 160, was 16" in text


def test_a_checkpoint_of_another_model_without_a_record_is_refused_too(
    capsys: pytest.CaptureFixture[str], tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    folder = tmp_path / "used"
    folder.mkdir()
    shutil.copyfile(tiny_checkpoint, folder / "checkpoint_last.pt")

    code = main(["train", commands.EXPERIMENT, "--cpu", "--data", str(tiny_data), "--save-dir", str(folder),
                 *commands.overrides(**{"model.encoder_embed_dim": 24})])  # fmt: skip

    assert code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"lite-transformer train: {folder} holds checkpoints of another model: give another --save-dir"


@pytest.mark.slow
def test_the_real_command_prints_no_traceback(tiny_data: Path, tmp_path: Path):
    output = commands.run(
        "lite-transformer", "train", commands.EXPERIMENT, "--data", tiny_data, "model.encoder_branch_dims=[1,2]",
        "--save-dir", tmp_path / "save", code=2,
    )  # fmt: skip

    assert output.startswith("lite-transformer train: branch widths 1 + 2 = 3 do not add up to --encoder-embed-dim 160")
    assert output.count("\n") == 1
