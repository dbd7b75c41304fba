"""Recipes: complete, valid, what they claim to cost; the same params as flags and in the file."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.cli.recipe import main
from pipeline.config import ConfigError, load_yaml, validate
from pipeline.dvc_lock import flat
from pipeline.formatting import hydra_value
from pipeline.model.accounting import parameters
from pipeline.model.config import GPT2_VOCAB_SIZE, Architecture, GPTConfig, ModelParams, gpt2_architecture
from pipeline.training.params import TrainParams

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
RELEASED = {"gpt2-124m": "gpt2", "gpt2-medium": "gpt2-medium", "gpt2-large": "gpt2-large", "gpt2-xl": "gpt2-xl"}
GPT2_PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository, the current directory, in which this one's params.yaml and recipes are committed."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    commit()
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *arguments], check=True)


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "begin")


def edit(old: str, new: str) -> None:
    path = Path("params.yaml")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def apply(name: str) -> dict[str, Any]:
    """Applies a recipe; all of params.yaml after it."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(recipes.with_changes(text, recipes.apply_recipe(name).changes), encoding="utf-8")
    return load_yaml(Path("params.yaml"))


def test_there_are_the_recipes_that_the_docs_list() -> None:
    assert set(RELEASED) < set(NAMES)
    listed = re.findall(r"^\| \[([\w-]+)\]", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_obeys_every_rule_of_params_yaml(project: Path, name: str) -> None:
    assert validate(recipes.apply_recipe(name).values)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_only_keys_that_differ_from_params_yaml(name: str) -> None:
    base, recipe = (flat(load_yaml(path)) for path in (ROOT / "params.yaml", ROOT / "recipes" / f"{name}.yaml"))
    assert recipe
    assert not [key for key, value in recipe.items() if value == base[key]]


@pytest.mark.parametrize("name", RELEASED)
def test_a_gpt2_recipe_is_complete_whatever_becomes_the_default(project: Path, name: str) -> None:
    """If this fails after a change of params.yaml, give the recipes the key that has another default now."""
    values = recipes.apply_recipe(name).values
    model = ModelParams(**values["model"])
    architecture = Architecture(**{key: getattr(model, key) for key in Architecture.model_fields})
    assert architecture == gpt2_architecture(RELEASED[name])
    assert (model.init_from, model.vocab_multiple) == ("scratch", 64)
    large = name == "gpt2-xl"
    assert values["train"] == {
        "seed": 1,
        "shuffle": True,
        "document_mask": False,
        "total_batch_size": 2**20 if large else 2**19,
        "max_steps": {"gpt2-large": 29_527, "gpt2-xl": 29_709}.get(name, 19_073),
        "optimizer": "adamw",
        "max_lr": {"gpt2-124m": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}[name],
        "embedding_lr": None,
        "head_lr": None,
        "vector_lr": None,
        "momentum_warmup_steps": 0,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "cautious_decay": False,
        "grad_clip": 1.0,
        "max_skipped_steps": 10,
        "schedule": "cosine",
        "warmup_steps": 358 if large else 715,
        "min_lr_ratio": 0.1,
        "decay_fraction": values["train"]["decay_fraction"],  # of another schedule
        "eval_interval": 250 if large else 500,
        "eval_tokens": 10_485_760,
        "benchmark_interval": 250 if large else 500,
        "benchmark_items": 10_042,
        "sample_interval": 250,
        "keep": "last",
        "patience": None,
    }
    assert values["data"] == {
        "source": "hub",
        "files": [],
        "hub_path": "HuggingFaceFW/fineweb-edu",
        "hub_name": "sample-10BT",
        "hub_split": "train",
        "hub_revision": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        "text_column": "text",
        "val_every": None,
        "max_documents": None,
        "max_bytes": None,
    }
    assert values["benchmarks"] == {"tasks": ["hellaswag"], "directory": None, "items": None}
    assert (values["tokenizer"]["encoding"], values["tokenizer"]["shard_tokens"]) == ("gpt2", 100_000_000)
    assert (values["sample"]["top_k"], values["sample"]["samples_per_prompt"]) == (50, 4)


def test_the_small_recipes_are_nanogpt_s(project: Path) -> None:
    values = recipes.apply_recipe("shakespeare-char").values
    model, train = values["model"], values["train"]
    assert (model["n_layer"], model["n_head"], model["n_embd"], model["block_size"]) == (6, 6, 384, 256)
    assert (model["dropout"], model["bias"], model["position"], model["mlp"]) == (0.2, False, "learned", "gelu")
    assert (train["max_lr"], train["min_lr_ratio"], train["warmup_steps"]) == (1e-3, 0.1, 100)
    assert (train["betas"], train["weight_decay"], train["schedule"]) == ([0.9, 0.99], 0.1, "cosine")
    assert (train["total_batch_size"], train["max_steps"]) == (64 * 256, 5000)
    values = recipes.apply_recipe("finetune-gpt2").values
    assert values["data"]["source"] == "shakespeare"
    assert values["model"]["init_from"] == "gpt2"
    train = values["train"]
    assert (train["max_lr"], train["schedule"], train["total_batch_size"]) == (3e-5, "constant", 32 * 1024)
    assert (train["betas"], train["weight_decay"], values["model"]["dropout"]) == ([0.9, 0.95], 0.1, 0.0)


@pytest.mark.parametrize("name", RELEASED)
def test_a_gpt2_recipe_has_the_published_parameters_and_token_budget(project: Path, name: str) -> None:
    values = recipes.apply_recipe(name).values
    config = GPTConfig.from_params(ModelParams(**values["model"]), GPT2_VOCAB_SIZE)
    assert parameters(config.changed(vocab_size=GPT2_VOCAB_SIZE)).total == GPT2_PARAMETERS[name]
    train = TrainParams(**values["train"])
    tokens = train.max_steps * train.total_batch_size
    assert train.warmup_steps == round(375e6 / train.total_batch_size)
    if name in ("gpt2-124m", "gpt2-medium"):
        assert tokens == 9_999_745_024
    else:
        assert tokens / GPT2_PARAMETERS[name] == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_flags_through_a_shell_and_dvc_give_the_params_that_apply_writes(project: Path, name: str) -> None:
    printed = "\n".join(f"-S {flag}" for flag in recipes.flags(recipes.apply_recipe(name).changes))
    Path("printed").write_text(printed)
    words = subprocess.run(
        ["bash", "-c", r"printf '%s\n' $(cat printed)"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[::2] == ["-S"] * (len(words) // 2)
    shutil.copy("params.yaml", "by_dvc.yaml")
    apply_overrides("by_dvc.yaml", to_path_overrides(words[1::2])["params.yaml"])
    assert load_yaml(Path("by_dvc.yaml")) == apply(name)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_characters="$", exclude_categories=["Cs", "Cc"]), max_size=12)
awkward = st.sampled_from(
    ["null", "True", "nan", "1e3", "0x1F", "it's", "\\'", "a\\", "a,b", "[x]", "k: v", "-1", "a=b", ""]
)


@given(st.recursive(scalars | words | awkward, lambda inner: st.lists(inner, max_size=4), max_leaves=8))
def test_any_value_survives_dvc_s_own_parser(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text("section:\n  key: before\n")
    apply_overrides(path, [f"section.key={hydra_value(value)}"])
    found = load_yaml(path)["section"]["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_value_that_a_shell_would_cut_is_refused_as_a_flag_and_can_be_applied(project: Path) -> None:
    Path("recipes/mine.yaml").write_text('# mine\nsample:\n  prompts: ["O Romeo", null]\n')
    with pytest.raises(ConfigError, match=r"sample\.prompts"):
        recipes.flags(recipes.apply_recipe("mine").changes)
    assert apply("mine")["sample"]["prompts"] == ["O Romeo", None]


def test_applying_nothing_new_changes_no_byte() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert recipes.with_changes(text, {}) == text


def test_applying_keeps_every_comment(project: Path) -> None:
    before = Path("params.yaml").read_text(encoding="utf-8")
    apply("gpt2-124m")
    after = Path("params.yaml").read_text(encoding="utf-8")
    assert re.findall(r"#.*", after) == re.findall(r"#.*", before)
    assert "max_lr: 6.0e-4" in after  # as the recipe spells it


def test_uncommitted_edits_are_reverted_but_for_runtime_and_tracking(project: Path) -> None:
    edit("dropout: 0.0", "dropout: 0.3")
    edit("entity: null", "entity: team")
    edit("n_layer: 4", "n_layer: 5")  # which the recipe sets itself
    overlay = recipes.apply_recipe("gpt2-124m")
    assert overlay.reverted == {"model.dropout": 0.0}
    assert overlay.values["model"]["n_layer"] == 12
    values = apply("gpt2-124m")
    assert (values["model"]["dropout"], values["tracking"]["entity"]) == (0.0, "team")


def test_outside_git_a_recipe_is_laid_over_the_file_as_it_stands(project: Path) -> None:
    shutil.rmtree(".git")
    edit("dropout: 0.0", "dropout: 0.3")
    assert apply("gpt2-124m")["model"]["dropout"] == 0.3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("modle:\n  n_layer: 2\n", r"modle: unknown section"),
        ("model:\n  n_layers: 2\n", r"model\.n_layers: unknown key"),
        ("model:\n  n_embd: 250\n", r"n_embd \(250\)"),
        ("train:\n  total_batch_size: 100\n", r"total_batch_size \(100\)"),
        ("n_layer: 2\n", r"recipes/mine\.yaml"),
        ("model: [\n", r"recipes/mine\.yaml, line 2"),
        ("train:\n  1: 2\n", r"train\.1: unknown key"),
    ],
)
def test_a_recipe_s_mistakes_are_named(project: Path, text: str, complaint: str) -> None:
    Path("recipes/mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        recipes.apply_recipe("mine")


def test_params_without_sections_are_named(project: Path) -> None:
    Path("params.yaml").write_text("model: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml must hold sections"):
        recipes.apply_recipe("gpt2-124m")


def test_the_command_lists_prints_and_refuses(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    main(["gpt2-124m"])
    assert "-S model.n_embd=768\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="gpt3"):
        main(["gpt3"])
