"""Recipes are read strictly, and do to a model's weights what they say."""

import pytest
import torch

from lite_transformer.compression import apply
from lite_transformer.compression.recipes import Pruning, Quantization, Recipe, known_recipes, load_recipe, parse_recipe
from lite_transformer.compression.tensors import Quantized, Raw
from lite_transformer.errors import ConfigError
from tests.helpers.models import tiny_model


def test_known_recipes_are_what_they_say():
    recipes = {name: load_recipe(name) for name in known_recipes()}
    assert list(recipes) == ["int8", "int8+prune50", "paper", "tiny"]
    assert all(recipe.name == name and recipe.description for name, recipe in recipes.items())
    assert recipes["int8"].core == recipes["int8"].embeddings == Quantization("linear", 8)
    assert recipes["int8+prune50"].prune == Pruning("sensitivity", 0.5)
    assert recipes["paper"].core == Quantization("kmeans", 8) and recipes["paper"].prune.method == "sensitivity"
    assert recipes["tiny"].core.bits <= 6 and recipes["tiny"].embeddings.bits <= 4


MINIMAL = {"description": "mine", "core": {"method": "kmeans", "bits": 5}, "embeddings": {"method": "none"}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cores": {}}, r"unknown option 'cores'. Known: description, core, embeddings, prune, rest, min_elements"),
        ({"name": "x"}, "unknown option 'name'"),
        ({"core": {"method": "kmeans", "bit": 5}}, r"unknown option 'core.bit'. Known: method, bits"),
        ({"core": {"method": "magic"}}, r"unknown core.method 'magic'. Known: kmeans, kmeans_rows, linear, none"),
        ({"core": {"method": "linear", "bits": 1}}, "core.bits is 1, and 2 to 8 are possible"),
        ({"core": {"method": "kmeans", "bits": 9}}, "core.bits is 9, and 1 to 8 are possible"),
        ({"core": {"bits": "8"}}, "core.bits is '8', and a int is needed"),
        ({"core": {"bits": True}}, "core.bits is True, and a int is needed"),
        ({"core": 8}, "core is a mapping of options to values"),
        ({"prune": {"sparsity": 1}}, "prune.sparsity is 1, and 0 to below 1 is possible"),
        ({"prune": {"method": "odd"}}, r"unknown prune.method 'odd'. Known: sensitivity, global"),
        ({"prune": {"factors": {"*": 0}}}, "prune.factors is"),
        ({"prune": {"factors": 2}}, "prune.factors is 2"),
        ({"rest": "int4"}, r"unknown rest 'int4'. Known: float16, float32"),
        ({"min_elements": 0}, "min_elements is 0"),
    ],
)
def test_options_that_cannot_be_are_named(change, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_recipe(MINIMAL | change, "mine", "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")


def test_recipe_files_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: mine\ncore: {method: kmeans, bits: 5}\nembeddings: {method: none}\n")
    assert load_recipe(str(path)) == Recipe("mine", "mine", Quantization("kmeans", 5), Quantization("none"))
    path.write_text("core: {method: kmeans, bits: 5}\nembeddings: {method: none}\n")
    with pytest.raises(ConfigError, match="description is missing"):
        load_recipe(str(path))
    path.write_text("description: mine\nembeddings: {method: none}\n")
    with pytest.raises(ConfigError, match="core is missing"):
        load_recipe(str(path))
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match=r"unknown recipe 'tyni'. Known: int8, int8\+prune50, paper, tiny"):
        load_recipe("tyni")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_recipe_changes_matrices_and_leaves_the_rest():
    recipe = Recipe(
        "a", "", Quantization("kmeans", 4), Quantization("linear", 4), Pruning(sparsity=0.5), "float32", 100
    )
    weights = tiny_model(share_all_embeddings=True).state_dict()
    weights["encoder.version"] = torch.tensor([3.0])
    found = apply.compress(weights, recipe)
    assert list(found) == list(weights)
    shared = [name for name in weights if apply.is_embedding(name) and weights[name].dim() == 2]
    assert len(shared) == 3 and len({id(found[name]) for name in shared}) == 1 and found[shared[0]].linear
    zeros, elements = 0, 0
    for name, weight in weights.items():
        if apply.is_embedding(name):
            continue
        if weight.dim() > 1 and weight.numel() >= 100:
            assert isinstance(found[name], Quantized) and found[name].levels.size <= 16 and not found[name].linear
            zeros += int((found[name].dense() == 0).sum())
            elements += weight.numel()
        else:
            assert isinstance(found[name], Raw) and torch.equal(torch.from_numpy(found[name].dense()), weight), name
    assert zeros == round(0.5 * elements) and elements > 4000
    dense = apply.dense(found)
    assert dense[shared[0]].data_ptr() == dense[shared[1]].data_ptr()


def test_factors_of_a_recipe_reach_its_tensors():
    weights = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)}
    recipe = Recipe("x", "", Quantization("kmeans", 4), Quantization("none"), Pruning(factors={"a.*": 0.1}))
    zeros = {name: float((item.dense() == 0).mean()) for name, item in apply.compress(weights, recipe).items()}
    assert zeros["a.weight"] < 0.15 and zeros["b.weight"] > 0.85


def test_equal_weights_of_the_core_are_counted_each():
    weights = {"a.weight": torch.ones(40, 40), "b.weight": torch.ones(40, 40)}
    assert apply.shared_names(weights) == {"a.weight": "a.weight", "b.weight": "b.weight"}


def test_large_values_are_not_cut_to_half_precision():
    weights = {"a.bias": torch.tensor([1e6, 1.0]), "b.bias": torch.tensor([0.1]), "c": torch.tensor([2**40])}
    found = apply.compress(weights, load_recipe("int8"))
    assert [found[name].values.dtype.name for name in weights] == ["float32", "float16", "int64"]


def test_compressing_the_compressed_changes_nothing():
    recipe = load_recipe("paper")
    weights = {"a.weight": torch.randn(64, 64), "decoder.embed_tokens.weight": torch.randn(64, 64)}
    once = apply.dense(apply.compress(weights, recipe))
    twice = apply.dense(apply.compress(once, recipe))
    assert torch.equal(once["a.weight"], twice["a.weight"])
