"""What is typed and what stands in YAML files: one meaning, every fault at once, no traceback."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.cli.arguments import Verb, parse_settings
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.values import Name, convert


@dataclasses.dataclass(frozen=True)
class Group:
    """A group.

    Args:
        rate: a rate of something.
        genres: names of something.
    """

    rate: float = 0.5
    genres: list[Name] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of every kind.

    Args:
        files: paths of something.
        train: paths of something else.
        steps: how many of something.
        most: how many at most.
        flag: whether something is.
        text: a text of something.
        choice: one of something.
        report_to: several of something.
        batch: the group.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    train: list[str] = dataclasses.field(default_factory=list)
    steps: int = 1
    most: int | None = 7
    flag: bool = False
    text: str = "t"
    choice: Literal["on", "off", "auto"] = "auto"
    report_to: list[Literal["a", "b"]] = dataclasses.field(default_factory=list)
    batch: Group = dataclasses.field(default_factory=Group)

    def validate(self) -> None:
        """Nothing is impossible."""


BARE = Verb("v", "v", "", print, lambda: Settings)
WITH_FILES = dataclasses.replace(BARE, positional="files")


def parsed(*words, verb=BARE):
    return parse_settings(verb, words)


def message_of(*words, verb=BARE):
    with pytest.raises(ConfigError) as caught:
        parse_settings(verb, words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        *(("1e3", 1000), ("1E3", 1000), ("1_000", 1000), ("+5", 5), (" 5 ", 5), ("-1", -1)),
        *(("1.5e3", 1500), ("2.0", 2), ("٣", 3), ("007", 7), ("-0", 0)),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_whole_numbers(written, steps, tmp_path):
    """On a command line and in a file alike."""
    (tmp_path / "c.yaml").write_text(f"steps: {written}\n", "utf-8")
    for words in ([f"--steps={written}"], ["--steps", written], [f"--config={tmp_path}/c.yaml"]):
        found = parsed(*words).steps
        assert found == steps and type(found) is int


@pytest.mark.parametrize(
    "written",
    ["10k", "1e400", "1e-1", "nan", "inf", "-inf", "0x10", "1.5", "1__0", "1,000", "²", "1:30"],
)
def test_what_is_no_whole_number(written, tmp_path):
    (tmp_path / "c.yaml").write_text(f"steps: {written}\n", "utf-8")
    for words in ([f"--steps={written}"], [f"--config={tmp_path}/c.yaml"]):
        assert message_of(*words) == f"steps: must be a whole number; got {written!r}"


@pytest.mark.parametrize("written", ["nan", "inf", "1e400", "x", ""])
def test_what_is_no_number(written):
    assert message_of(f"--batch.rate={written}") == f"batch.rate: must be a number; got {written!r}"


def test_numbers_of_python_that_are_none():
    for value in (float("nan"), float("inf"), True, [1], {"a": 1}, None):
        with pytest.raises(ValueError, match="must be a number; got"):
            convert(value, float)


@given(st.integers(-(10**18), 10**18))
def test_whole_numbers_keep_all_digits(number):
    assert convert(str(number), int) == convert(f"{number:_}", int) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_those_of_python(number):
    assert convert(repr(number), float) == number


@given(st.text() | st.none() | st.lists(st.text()) | st.floats() | st.booleans())
def test_nothing_but_a_value_error(value):
    for kind in (int, float, bool, str, list[str], list[Name], int | None, Literal["on", "x"]):
        try:
            convert(value, kind)
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "1", "YES"])
def test_booleans(word, tmp_path):
    (tmp_path / "c.yaml").write_text(f"flag: {word}\nchoice: {word}\n")
    for words in ([f"--flag={word}", f"--choice={word}"], [f"--config={tmp_path}/c.yaml"]):
        found = parsed(*words)
        assert found.flag is True and found.choice == "on"
    no = {"true": "false", "yes": "no", "on": "off", "1": "0"}[word.lower()]
    assert parsed("--flag", f"--flag={no}").flag is False


def test_a_boolean_alone_is_true():
    assert parsed("--flag").flag is True
    assert parsed("--flag", "--steps", "3") == Settings(flag=True, steps=3)
    assert parsed("--flag", "false").flag is False
    assert message_of("--flag", "maybe") == "flag: must be true or false; got 'maybe'"
    found = parsed("--flag", "a.txt", "--flag", "off", "b.txt", verb=WITH_FILES)
    assert found == Settings(files=["a.txt", "b.txt"])


def test_null_and_none():
    for word in ("null", "none", "None"):
        assert parsed("--most", word, f"--batch.genres={word}") == Settings(most=None)
        assert message_of("--steps", word) == f"steps: must be a whole number; got {word!r}"


def test_values_that_are_missing():
    message = message_of("--text", "--steps", "--most=", "--choice=x", "--train")
    for line in (
        "--text: a value is required (a text of something.)",
        "--steps: a value is required",
        "most: must be a whole number; got ''",
        "choice: must be one of on, off, auto; got 'x'",
        "--train: a value is required",
    ):
        assert f"  - {line}" in message
    assert message_of("--text=") == "text: must not be empty"


def test_all_faults_of_words_and_values_at_once(tmp_path):
    (tmp_path / "c.yaml").write_text("stepz: 3\nbatch:\n  rat: 1\n")
    message = message_of(f"--config={tmp_path}/c.yaml", "-o", "x", "--lr", "1", "word", "--steps=k")
    assert message.startswith("6 settings cannot be used")
    for part in ("-o: no such option", "stepz: no such", "batch.rat: no such", "lr: no such"):
        assert f"  - {part}" in message
    assert "unexpected argument 'word'" in message


def test_a_list_takes_words_options_and_brackets():
    wanted = Settings(train=["a", "b,c", "d"])
    assert parsed("--train", "a", "b,c", "d") == wanted
    assert parsed("--train=a", "--train", "b,c", "d") == wanted
    assert parsed("--train=a", "--steps=1", "--train=b,c", "--train=d") == wanted
    assert parsed('--train=[a, "b,c", d]') == wanted
    assert parsed("--train=[a]", "--train", "b,c", "[d]") == wanted
    assert parsed("--train", "a", "--flag") == Settings(train=["a"], flag=True)
    assert parsed("--train", "[]") == Settings()
    assert parsed("--train", "./[a]", "--train=[b") == Settings(train=["./[a]", "[b"])
    assert message_of('--train=["a]').startswith("train: must be a list, [a, b]; got ")


def test_commas_separate_what_are_no_paths():
    wanted = Settings(batch=Group(genres=["bc", "bn"]), report_to=["a", "b"])
    assert parsed("--batch.genres", "bc,bn", "--report_to=a,b") == wanted
    assert parsed("--batch.genres", "bc", "bn", "--report_to", "a", "--report_to=b") == wanted
    assert parsed("--batch.genres", "[bc, bn]", "--report_to", "[a,b]") == wanted
    assert message_of("--report_to=a,c") == "report_to: must be one of a, b; got 'c'"


def test_lists_leave_bare_words_alone():
    words = ["--train", "t", "in", "out", "--train=u", "--batch.genres=bc,bn"]
    wanted = Settings(files=["in", "out"], train=["t", "u"], batch=Group(genres=["bc", "bn"]))
    assert parsed(*words, verb=WITH_FILES) == wanted
    assert parsed("--files", "a", "b", "--steps=3", verb=WITH_FILES).files == ["a", "b"]


def test_bare_words_are_taken_as_they_are():
    found = parsed("[MASK] and [MASK]", "-", "--steps=2", "--", "--x", "-h", verb=WITH_FILES)
    assert found == Settings(files=["[MASK] and [MASK]", "-", "--x", "-h"], steps=2)


def test_lists_of_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("train: [a.x, 'b,c', no, 05]\nbatch: {genres: [no, bc]}\n")
    found = parsed(f"--config={tmp_path}/c.yaml")
    assert found.train == ["a.x", "b,c", "no", "05"]
    assert found.batch.genres == ["no", "bc"]
    assert parsed(f"--config={tmp_path}/c.yaml", "--train", "z").train == ["z"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps: 1\nsteps: 2\n", "steps is set twice (line 2, column 1)"),
        ("batch:\n  rate: 1\n  rate: 2\n", "rate is set twice (line 3, column 3)"),
        ("batch:\n  rate: 1\nbatch.rate: 2\n", "batch.rate is set twice"),
        ("- a\n- b\n", "expected `name: value` lines, got a list"),
        ("word\n", "expected `name: value` lines, got one value"),
        ("batch:\n\trate: 1\n", "a tab; lines are indented with spaces (line 2, column 1)"),
        ("batch: 5\n", "batch: is a group of settings, did you mean batch.rate? Got '5'"),
        ("batch: [1]\n", "batch: is a group of settings"),
        ("bath:\n  rate: 1\n", "bath: no such setting, did you mean batch?"),
        ("steps: {a: 1}\n", "steps: must be a whole number; got {'a': '1'}"),
        ("steps: [1]\n", "steps: must be a whole number; got ['1']"),
        ("steps:\n", "steps: must be a whole number; got null"),
        ("train: [[a]]\n", "train: must be text; got ['a']"),
        ("1: 2\n", "1: no such setting"),
        ("null: 2\n", "no such setting"),
        ("[a]: 2\n", "not a YAML file"),
        ("steps: !!python/object:os.system 3\n", "not a YAML file"),
        ("a: 1\n---\nb: 2\n", "not a YAML file: but found another document"),
        ("steps: 'a\n", "not a YAML file"),
        ("a: " + "[" * 5000, "brackets inside brackets"),
        ("steps: \x00\n", "not a YAML file"),
        ('text: "\\0"\n', "text: must not hold a null character"),
        ("a: &a [*a]\n", "a: no such setting"),
        ("steps: &a [*a]\n", "steps: must be a whole number; got"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, part):
    (tmp_path / "c.yaml").write_text(text)
    message = message_of(f"--config={tmp_path}/c.yaml")
    assert part in message and "\n" not in message and len(message) < 400


def test_anchors_that_grow_are_not_followed(tmp_path):
    lines = ["a0: &a0 {x: y, z: w}"]
    for number in range(1, 40):
        lines.append(f"a{number}: &a{number} {{x: *a{number - 1}, z: *a{number - 1}}}")
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "steps: *a39", "batch: *a39"]))
    message = message_of(f"--config={tmp_path}/c.yaml")
    assert "steps: must be a whole number; got {" in message and len(message) < 20_000
    (tmp_path / "d.yaml").write_text("batch: &b {rate: 0.25}\nsteps: &s 3\nmost: *s\n")
    assert parsed(f"--config={tmp_path}/d.yaml") == Settings(batch=Group(0.25), steps=3, most=3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "c.yaml").write_text("text: Bücher\nbatch:\n", encoding)
    assert parsed(f"--config={tmp_path}/c.yaml").text == "Bücher"


@pytest.mark.parametrize(("encoding", "byte"), [("latin-1", 7), ("utf-16", 0)])
def test_other_encodings_are_refused(tmp_path, encoding, byte):
    (tmp_path / "c.yaml").write_text("text: Bücher\n", encoding)
    message = message_of(f"--config={tmp_path}/c.yaml")
    assert "c.yaml: not in UTF-8: " in message and message.endswith(f"at byte {byte}")


def test_the_last_of_several_values_counts(tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 5\ntext: c\n")
    (tmp_path / "d.yaml").write_text("steps: 6\n")
    words = [
        f"--config={tmp_path}/c.yaml",
        "--most",
        "1",
        "--most=2",
        f"--config={tmp_path}/d.yaml",
    ]
    assert parsed(*words) == Settings(steps=6, text="c", most=2)


def test_names_are_written_with_dashes_too():
    assert parsed("--report-to", "a").report_to == ["a"]
