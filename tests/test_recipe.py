"""Recipes: the embedded one loads, unknown keys fail with a hint, and what is written is read back."""

from pathlib import Path

import pytest
import yaml

from quasitile import InputError, Recipe, load_recipe
from quasitile.recipe import resolve

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_the_embedded_recipe_is_the_demonstration():
    recipe = load_recipe()
    assert recipe.name == "demonstration"
    assert recipe.compress.tiling.name == "fibonacci"
    assert recipe.compress.spectrum.transform == "dct"
    assert recipe.compress.size == "25%"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_load(path):
    assert load_recipe(path).name


def test_what_is_written_is_read_back(tmp_path):
    recipe = load_recipe(None, ["compress.size=7B", "seed=3"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_seed_goes_to_every_stage_that_has_none_of_its_own():
    recipe = load_recipe(None, ["seed=5", "align.seed=2"])
    assert (recipe.compress.seed, recipe.align.seed, recipe.adapt.seed, recipe.read.seed) == (5, 2, 5, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compress.sise=10%", r"unknown key compress\.sise; did you mean size\?"),
        ("zzz=1", "unknown key zzz; known keys are name, model"),
        ("compress.tiling.name=hexagon", r"compress\.tiling\.name='hexagon'"),
        ("align.num_steps=-1", r"align\.num_steps=-1.*greater than or equal to 0"),
        ("compress.size.x=1", "size is a value"),
        ("compress", "write KEY=VALUE"),
    ],
)
def test_a_bad_change_is_one_line(change, message):
    with pytest.raises(InputError, match=message) as error:
        load_recipe(None, [change])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [("a: [", "not valid YAML"), ("- 1", "must be a mapping")])
def test_a_bad_file_is_one_line(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_recipe(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a recipe file"):
        load_recipe(tmp_path / "none.yaml")


def test_locations(monkeypatch, tmp_path):
    assert Path(resolve("embedded:papers")).is_dir()
    with pytest.raises(InputError, match="not among what the package carries"):
        resolve("embedded:nothing")
    monkeypatch.setenv("QT_TEST_DATA", str(tmp_path))
    assert resolve("$QT_TEST_DATA/x") == str(tmp_path / "x")
    monkeypatch.delenv("QT_TEST_DATA")
    with pytest.raises(InputError, match="needs the environment variable QT_TEST_DATA"):
        resolve("${QT_TEST_DATA}/x")


def test_recipes_compare_by_content():
    assert Recipe() == Recipe()
    assert Recipe(seed=1) != Recipe()
