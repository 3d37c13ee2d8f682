"""Settings of other versions: younger, renamed and unknown ones."""

import dataclasses

import pytest

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.settings import names
from spanbert_ext.settings.build import added, build, options
from spanbert_ext.settings.stored import completed
from spanbert_ext.training.state import RunState, check_same_run, read_state


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group.

    Args:
        rate: a rate of something.
        exact: whether something is exact.
    """

    rate: float = 0.5
    exact: bool = added(True, before=False)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Args:
        steps: how many of something.
        precision: of something.
        group: the group.
    """

    steps: int = 10
    precision: str = "auto"
    group: Inner = dataclasses.field(default_factory=lambda: Inner(rate=0.25))

    def validate(self) -> None:
        """Nothing is impossible."""


FULL = {"steps": 10, "precision": "fp32", "group.rate": 0.25}


@pytest.fixture
def renaming(monkeypatch):
    monkeypatch.setitem(names.RENAMED, "updates", "steps")
    monkeypatch.setitem(names.RENAMED, "group.speed", "group.rate")


def test_a_younger_setting_has_the_value_that_does_what_was_done():
    assert completed(FULL, Settings, "f") == FULL | {"group.exact": False}
    assert {o.name: o.before for o in options(Settings)} == {
        "steps": 10,
        "precision": "auto",
        "group.rate": 0.25,
        "group.exact": False,
    }
    assert build(Settings, {}).group.exact is True
    assert completed({}, Settings, "f", wanted=["steps", "else"]) == {"steps": 10}


def test_a_renamed_one_is_found(renaming):
    old = {"updates": 7, "precision": "fp32", "group.speed": 0.75}
    assert completed(old, Settings, "f") == {
        "steps": 7,
        "precision": "fp32",
        "group.rate": 0.75,
        "group.exact": False,
    }
    # A command and a YAML file may use the earlier name as well; stored sections lack their own.
    assert build(Settings, {"updates": "7"}).steps == 7
    assert completed({"speed": 0.75}, Inner, "f", section="group.")["rate"] == 0.75


def test_an_unknown_one_names_who_wrote_it():
    with pytest.raises(ConfigError) as caught:
        completed(FULL | {"zeal": 1}, Settings, "state.json", "0.9.0")
    assert str(caught.value) == (
        "state.json: this version of spanbert_ext has no setting zeal; the file was written by "
        "spanbert_ext 0.9.0"
    )
    with pytest.raises(ConfigError, match=r"no setting group.zeal; .* another version"):
        completed({"zeal": 1}, Inner, "f", section="group.")


def current(**more):
    return RunState(settings=FULL | {"group.exact": False} | more)


def test_a_run_of_an_earlier_version_goes_on(tmp_path, renaming):
    old = {"updates": 10, "precision": "fp32", "group.speed": 0.25}
    for settings in (FULL, old):
        check_same_run(RunState(settings=settings), current(), tmp_path, Settings)
    with pytest.raises(ConfigError) as caught:
        check_same_run(RunState(settings=old), current(**{"group.exact": True}), tmp_path, Settings)
    assert "\n  - group.exact was False, is True\nTo continue it, give" in str(caught.value)


def test_what_to_do_with_other_settings(tmp_path):
    start = tmp_path / "run" / "step-0000004"
    with pytest.raises(ConfigError) as caught:
        check_same_run(RunState(settings=FULL), current(steps=20), start, Settings)
    message = str(caught.value)
    assert "steps was 10, is 20 (every step's learning rate depends on it)" in message
    assert f"{tmp_path}/run/config.yaml has the settings" in message
    assert f"name another --output; there, --model {start} begins with its weights" in message


def test_a_run_of_another_kind(tmp_path):
    stored = RunState(settings=FULL | {"task": "ner", "tagging.length": 3})
    with pytest.raises(ConfigError, match="task was ner, is pre-training"):
        check_same_run(stored, current(), tmp_path, Settings)


def test_a_state_of_a_later_version_names_it(tmp_path):
    (tmp_path / "state.json").write_text('{"zeal": 1, "versions": {"spanbert_ext": "0.9.0"}}')
    with pytest.raises(StorageError, match=r"does not know zeal; it was written by .* 0\.9\.0"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(StorageError, match="cannot be read"):
        read_state(tmp_path)
