"""Recipes: what is pruned and how many bits the rest takes, as YAML files read strictly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lite_transformer.compression.pruning import PRUNING_METHODS
from lite_transformer.compression.quantization import METHODS
from lite_transformer.errors import ConfigError

FOLDER = Path(__file__).parent / "recipes"
_KEEP = ("float16", "float32")


@dataclass(frozen=True)
class Pruning:
    """Which weights are left out; see `pruning.masks`.

    Attributes:
        method: sensitivity or global.
        sparsity: the part of all prunable weights that is left out.
        embeddings: prune embeddings and output matrix, too, as far as they are quantized.
        factors: of the thresholds of tensors by patterns of their names, such as {"*.out_proj.weight": 0.8}; of
            sensitivity alone.
    """

    method: str = "sensitivity"
    sparsity: float = 0.5
    embeddings: bool = False
    factors: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Quantization:
    """How weights become codes; see `quantization`.

    Attributes:
        method: kmeans, kmeans_rows or linear; "none" keeps them in half precision.
        bits: of a code.
    """

    method: str = "linear"
    bits: int = 8


@dataclass(frozen=True)
class Recipe:
    """What compression does to a model.

    Attributes:
        core: every matrix of the model but those of ``embeddings``: embeddings, learned positions, output matrix.
        prune: None prunes nothing.
        rest: float16 or float32, for biases, norms, and whatever has fewer than ``min_elements`` elements.
    """

    name: str
    description: str
    core: Quantization
    embeddings: Quantization
    prune: Pruning | None = None
    rest: str = "float16"
    min_elements: int = 1024

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def known_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a YAML file.

    Raises: ConfigError that lists the known recipes, or names the option that cannot be.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = known_recipes()
        if name not in known:
            raise ConfigError(f"unknown recipe '{name}'. Known: {', '.join(known)}; or give the path of a YAML file")
        path = known[name]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe {path} is no YAML: {' '.join(str(error).split())}") from None
    return parse_recipe(content, path.stem, str(path))


def parse_recipe(content: Any, name: str, where: str) -> Recipe:
    """A recipe from plain data. Raises: ConfigError that names ``where`` and the option that cannot be."""
    options = _options(content, Recipe, where, "", given={"name": name})
    parts: dict[str, Any] = {}
    for key, kind in (("core", Quantization), ("embeddings", Quantization), ("prune", Pruning)):
        if options.get(key) is None and key == "prune":
            continue
        if key not in options:
            raise ConfigError(f"{where}: {key} is missing, such as {key}: {{method: linear, bits: 8}}")
        parts[key] = kind(**_options(options[key], kind, where, f"{key}."))
    if "description" not in options:
        raise ConfigError(f"{where}: description is missing, one line of text")
    recipe = Recipe(**(options | parts))
    _check(recipe, where)
    return recipe


def _options(content: Any, kind: type, where: str, prefix: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'a recipe'} is a mapping of options to values")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}
    for key, value in content.items():
        if key not in fields or key in (given or {}):
            known = ", ".join(item for item in fields if item not in (given or {}))
            raise ConfigError(f"{where}: unknown option '{prefix}{key}'. Known: {known}")
        wanted = types.get(str(fields[key].type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            raise ConfigError(f"{where}: {prefix}{key} is {value!r}, and a {fields[key].type} is needed")
    return {str(key): value for key, value in content.items()} | (given or {})


def _check(recipe: Recipe, where: str) -> None:
    for key, part in (("core", recipe.core), ("embeddings", recipe.embeddings)):
        if part.method not in (*METHODS, "none"):
            raise ConfigError(f"{where}: unknown {key}.method '{part.method}'. Known: {', '.join(METHODS)}, none")
        lowest = 2 if part.method == "linear" or recipe.prune else 1
        if not lowest <= part.bits <= 8:
            raise ConfigError(f"{where}: {key}.bits is {part.bits}, and {lowest} to 8 are possible")
    if recipe.prune:
        if recipe.prune.method not in PRUNING_METHODS:
            known = ", ".join(PRUNING_METHODS)
            raise ConfigError(f"{where}: unknown prune.method '{recipe.prune.method}'. Known: {known}")
        factors: Any = recipe.prune.factors
        if not isinstance(factors, dict) or not all(
            isinstance(name, str) and isinstance(number, (int, float)) and number > 0
            for name, number in factors.items()
        ):
            raise ConfigError(f"{where}: prune.factors is {factors!r}, and names with numbers above 0 are needed")
        if not 0 <= recipe.prune.sparsity < 1:
            raise ConfigError(f"{where}: prune.sparsity is {recipe.prune.sparsity}, and 0 to below 1 is possible")
    if recipe.rest not in _KEEP:
        raise ConfigError(f"{where}: unknown rest '{recipe.rest}'. Known: {', '.join(_KEEP)}")
    if recipe.min_elements < 1:
        raise ConfigError(f"{where}: min_elements is {recipe.min_elements}, and at least 1 is needed")
