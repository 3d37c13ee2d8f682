"""The paper's models as packaged settings: they load, and differ only where the paper says."""

import pytest
import yaml

from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings import files
from spanbert_ext.settings.build import as_flat_dict, build, flatten, options
from spanbert_ext.settings.files import read_yaml
from spanbert_ext.training.config import PretrainConfig

# (model, its neighbour, what differs: setting -> (neighbour's, its own)). Sections 5 and 6 of the
# paper: each model takes one step from the one before it, from the published settings to BERT.
STEPS = [
    ("spanbert", None, {"preset": ("base", "large")}),
    ("spanbert-no-sbo", "spanbert", {"loss.sbo_weight": (1.0, 0.0)}),
    ("bert-1seq", "spanbert-no-sbo", {"masking.scheme": ("span", "piece")}),
    ("our-bert", "bert-1seq", {"batch.pairs": (False, True)}),
    ("scheme-piece", "our-bert", {"steps": (2_400_000, 1_200_000)}),
    ("scheme-word", "scheme-piece", {"masking.scheme": ("piece", "word")}),
    ("scheme-entity", "scheme-word", {"masking.scheme": ("word", "entity")}),
    ("scheme-phrase", "scheme-entity", {"masking.scheme": ("entity", "phrase")}),
    ("scheme-span", "scheme-phrase", {"masking.scheme": ("phrase", "span")}),
]


def settings_of(name: str | None) -> dict:
    """Every setting of a packaged model, or of no file."""
    return as_flat_dict(build(PretrainConfig, {"corpus": "c"} | given_by(name)))


def given_by(name: str | None) -> dict:
    """What a packaged file states."""
    groups = {option.name.rpartition(".")[0] for option in options(PretrainConfig)}
    return {} if name is None else read_yaml(files.config_file(name), groups)


@pytest.mark.parametrize(("name", "neighbour", "wanted"), STEPS, ids=[step[0] for step in STEPS])
def test_a_model_differs_where_the_paper_says(name, neighbour, wanted):
    own, other = settings_of(name), settings_of(neighbour)
    assert own.keys() == other.keys()
    assert {k: (other[k], own[k]) for k in own if own[k] != other[k]} == wanted


def test_these_are_all_models():
    assert files.config_names() == sorted(step[0] for step in STEPS)


def test_a_file_states_only_what_is_no_default():
    defaults = settings_of(None)
    for name in files.config_names():
        given, own = given_by(name), settings_of(name)
        assert given
        for setting in given:
            assert own[setting] != defaults[setting], f"{name}: {setting}"


def test_a_name_works_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--config", "our-bert", "--corpus", "c", "--seed=7", "--print_config"])
    assert left.value.code == 0
    found = flatten(yaml.safe_load(capsys.readouterr().out))
    assert found == settings_of("our-bert") | {"seed": 7}


def test_files_go_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spanbert").mkdir()  # a run's directory of that name is in nobody's way
    assert files.config_file("spanbert").endswith("configs/spanbert.yaml")
    (tmp_path / "our-bert").write_text("seed: 3")
    assert read_yaml(files.config_file("our-bert")) == {"seed": "3"}
    assert files.config_file("spanbert.yaml") == "spanbert.yaml"
    assert files.config_file("./spanbert") == "./spanbert"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="--config bert: .* no settings of this name .*our-bert"):
        files.config_file("bert")
    assert main(["pretrain", "--config", "bert"]) == 2
