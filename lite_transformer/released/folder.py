"""Where released models lie, and whether a folder is whole: nothing of it is loaded before its checksums are right."""

from __future__ import annotations

import difflib
from pathlib import Path

from data_prep.io import sha256
from data_prep.pipeline import RECORD_FILE, load_pipelines
from lite_transformer.errors import CheckpointError, ConfigError, DataError
from lite_transformer.file_list import check_files
from lite_transformer.released.card import CARD_FILE, PAGE_FILE, Card, read_card

FOLDER = "checkpoints"

_PACKAGE_DIR = Path(__file__).parent.parent
_AGAIN = "Get the folder again from where you have it"


def model_folders() -> list[Path]:
    """Where released models are looked for: a wheel brings them inside the package, a checkout beside it."""
    return [_PACKAGE_DIR / FOLDER, _PACKAGE_DIR.parent / FOLDER, Path.cwd() / FOLDER]


def known_models() -> dict[str, Path]:
    """The folders of the released models by name; those of the working folder come before the program's own."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        found |= {card.parent.name: card.parent for card in folder.glob(f"[!.]*/{CARD_FILE}")}
    return dict(sorted(found.items()))


def find_model(name: str) -> Path:
    """The folder of a released model, by its name or path. Raises: ConfigError that lists the known ones."""
    known = known_models()
    if name in known:
        return known[name]
    if name and Path(name).is_dir():
        return Path(name)
    what = f"unknown model '{name}'." if name else "--model needs a name or a folder."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{what}{hint} {describe_known(known)}")


def describe_known(known: dict[str, Path]) -> str:
    """The names in a sentence, or where to look if there is none."""
    if known:
        return f"Released models: {', '.join(known)}; or give the path of a model's folder"
    return (
        f"No released model is installed: they lie in {FOLDER}/ of the project's repository. Copy a model's folder "
        f"to ./{FOLDER}, or give its path: --model DIR"
    )


def check_folder(folder: Path) -> Card:
    """The card of a released model whose files are all there, and are what the card says.

    Raises: CheckpointError or DataError naming the file that is missing, damaged, or not part of the model.
    """
    card = read_card(folder)
    needed = [card.weights, RECORD_FILE, *(f"dict.{code}.txt" for code in (card.source_language, card.target_language))]
    for name in needed:
        if name not in card.files:
            raise CheckpointError(f"{folder / CARD_FILE}: it lists no {name}. {_AGAIN}")
    check_files(folder, card.files, (CARD_FILE, PAGE_FILE), _AGAIN)
    _check_text(folder, card)
    return card


def _check_text(folder: Path, card: Card) -> None:
    """The text settings are for the model's languages, and read no file that was not checked."""
    pipelines = load_pipelines(folder)
    for code in (card.source_language, card.target_language):
        if code not in pipelines:
            raise DataError(f"{folder / RECORD_FILE} is not for {code}, a language of the model. {_AGAIN}")
        for name in pipelines[code].files:
            if name not in card.files:
                raise CheckpointError(f"{folder / CARD_FILE}: it lists no {name}. {_AGAIN}")


def check_dictionaries(card: Card, folder: Path, data: Path) -> None:
    """Raises: DataError if a dictionary of a data folder is another than the model's: words would be other words."""
    for code in (card.source_language, card.target_language):
        path = data / f"dict.{code}.txt"
        if path.is_file() and sha256(path) != card.files[path.name].sha256:
            raise DataError(
                f"{path} is not the dictionary of {folder}, so the data is not the model's. Made for it: "
                f"{card.data.command}"
            )
