"""Specifications: closed, frozen, and every mistake is one readable sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from adept_ray.config.errors import UserError
from adept_ray.config.places import SEARCH_SPACES, find_search_space
from adept_ray.config.search_space import SearchSpace, load_search_space
from adept_ray.config.specs import RunSpec, SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes, fingerprint, load_yaml, validate_spec
from adept_ray.search.ranges import check_space, put_paper_first

SPACES = sorted(SEARCH_SPACES.glob("*.yaml"))


def space(text, tmp_path):
    """Load a search space from YAML text, so that YAML's own reading of numbers is part of the test."""
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_search_space(path)


def refused(action, *words):
    """The message of the UserError that `action` raises: one line that holds all `words`."""
    with pytest.raises(UserError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message and "pydantic" not in message
    assert all(word in message for word in words), message
    return message


def test_the_search_spaces_that_are_shipped():
    """Those that the README names."""
    assert [path.stem for path in SPACES] == ["default", "paper", "placement", "quick", "qwen3-8b", "rates"]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_search_space_loads(path):
    """Each is valid for 30 layers, and its first settings are whole trainings inside its ranges."""
    loaded = load_search_space(path)
    check_space(loaded, 30, TrainingSpec())
    ready = put_paper_first(loaded)
    assert ready.first[0]["k"] == 4 and all(setting in ready.first for setting in loaded.first)
    for setting in ready.first:
        apply_changes(TrainingSpec(), setting)
        assert list(loaded.list_active(setting)) == [name for name in loaded.parameters if name in setting]
        for name, value in setting.items():
            searched = loaded.parameters[name]
            if searched.kind in ("choice", "fixed"):
                assert value in searched.values
            else:
                assert searched.values[0] <= value <= searched.values[1]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_search_space_that_ships_goes_by_its_name(path, tmp_path, monkeypatch):
    """From any folder, even one with a file of that name; a path is a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.stem).mkdir()
    assert find_search_space(path.stem) == path and find_search_space(path) == path
    assert load_search_space(Path(path.stem)) == load_search_space(path)
    assert find_search_space(f"./{path.stem}") == Path(path.stem)


def test_an_unknown_search_space_is_refused_with_the_nearest(tmp_path, monkeypatch):
    """Whether somebody types a name that doesn't ship, or a file's name where it isn't."""
    monkeypatch.chdir(tmp_path)
    for name in ("quik", "quick.yaml"):
        refused(lambda name=name: find_search_space(name), f"'{name}'", "did you mean quick", "a path")
    (tmp_path / "quick.yaml").touch()
    assert find_search_space("quick.yaml") == Path("quick.yaml")


def test_numbers_of_workers_that_make_no_sense_are_refused():
    """More at least than at most, and no trial at a time; as the command line gives them."""
    refused(
        lambda: validate_spec(RunSpec, {"workers": 2, "min_workers": 3}, "run"),
        "--min-workers 3",
        "--workers 2",
    )
    for wrong in (0, "many"):
        refused(lambda value=wrong: validate_spec(SearchRun, {"concurrent": value}, "run"), "concurrent")
    assert validate_spec(SearchRun, {"concurrent": "auto"}, "run").crews == 1


def test_specs_are_frozen():
    """A spec can't be changed in place."""
    with pytest.raises(ValidationError):
        TrainingSpec().k = 3  # type: ignore[misc]


def test_an_unknown_key_names_the_nearest():
    """A misspelt key is an error that says where it is and offers the right one."""
    refused(lambda: validate_spec(TrainingSpec, {"base_rl": 1}, "a.yaml"), "a.yaml", "'base_rl'", "base_lr")
    refused(lambda: apply_changes(RunSpec(), {"seqlen": 8}), "'seqlen'", "did you mean seq_len")
    refused(
        lambda: apply_changes(RunSpec(), {"zzzz": 8}), "'zzzz'", "known: activation_checkpointing, backbone"
    )


def test_an_unknown_key_inside_names_its_neighbours(tmp_path):
    """Deeper down the offered names are those of that place, not of the top level."""
    top = "parameters: {k: {int: [1, 2]}}\n"
    refused(lambda: space(f"{top}score: {{genral: 1}}", tmp_path), "score.genral", "did you mean general")
    refused(lambda: space("parameters: {k: {integer: [1, 2]}}", tmp_path), "parameters.k.integer", "int")


def test_a_key_called_machine_is_unknown_where_there_is_none(tmp_path):
    """In a search space it is a key like any other, with its line, wherever it stands."""
    top = "parameters: {k: {int: [1, 2]}}\n"
    refused(lambda: space(f"{top}machine: 1", tmp_path), "line 2", "unknown key 'machine'", "known: first")
    refused(lambda: space(f"{top}score: {{machine: 1}}", tmp_path), "line 2", "'score.machine'")
    refused(lambda: space("parameters: {machine: {integer: 1}}", tmp_path), "'parameters.machine.integer'")


def test_a_change_makes_a_new_validated_copy(tmp_path):
    """A change, dotted or not, leaves the original alone; the copy is checked like any other spec."""
    spec = TrainingSpec()
    assert apply_changes(spec, {"k": 2}).k == 2 and spec.k == TrainingSpec().k
    assert apply_changes(spec, {}) == spec
    refused(lambda: apply_changes(spec, {"k": -1}), "k", "greater than or equal to 0", "-1")
    whole = space("parameters: {k: {int: [1, 2]}, base_lr: {log: [0.001, 0.01]}}", tmp_path)
    changed = apply_changes(whole, {"score.general": 0.7})
    assert changed.score.general == 0.7 and changed.parameters == whole.parameters
    refused(lambda: apply_changes(whole, {"score.genral": 0.7}), "'score.genral'", "general")
    refused(lambda: apply_changes(spec, {"k.deeper": 1}), "'k.deeper'")


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("k: {int: [5, 2]}", ["[5, 2]", "empty"]),
        ("base_lr: {log: [1e-5, 1e-3]}", ["'1e-5' is a string", "0.00001"]),
        ("base_lr: {choice: ['0.001', 0.01]}", ["'0.001' is a string", "write 0.001"]),
        ("base_rate: {log: [0.001, 0.01]}", ["unknown parameter 'base_rate'"]),
        ("base_l: {log: [0.001, 0.01]}", ["unknown parameter 'base_l'", "did you mean base_lr"]),
        ("tokens: {int: [1, 2]}", ["unknown parameter 'tokens'"]),
        ("base_lr: {log: [0.001, 0.01], fixed: 1}", ["exactly one of"]),
        ("base_lr: {}", ["exactly one of"]),
        ("base_lr: {log: [0.0, 0.01]}", ["log", "above 0"]),
        ("base_lr: {log: [-1, 0.01]}", ["log", "above 0"]),
        ("base_lr: {float: [.nan, 1]}", ["finite"]),
        ("base_lr: {float: [0.1, .inf]}", ["finite"]),
        ("k: {int: [true, 2]}", ["int", "True"]),
        ("k: {fixed: true}", ["True"]),
        ("base_lr: {choice: [true, 0.1]}", ["True"]),
        ("k: {int: [1.0, 2]}", ["int", "1.0"]),
        ("k: {int: [1]}", ["int", "two"]),
        ("k: {int: 3}", ["int", "3"]),
        ("k: {choice: []}", ["no values"]),
        ("k: {fixed: null}", ["exactly one of"]),
        ("k: {float: [1, 8]}", ["k", "int"]),
        ("recompute_every: {log: [1, 64]}", ["recompute_every", "int"]),
        ("k: {int: [-1, 4]}", ["k", "greater than or equal to 0"]),
        ("warmup: {float: [0.0, 1.5]}", ["warmup", "less than 1"]),
        ("normalization: {choice: [rank, softmax]}", ["normalization", "softmax"]),
    ],
)
def test_a_wrong_range_is_refused_in_one_sentence(parameter, words, tmp_path):
    """Every mistake in a range names the file, the parameter and what would be right."""
    name = parameter.partition(":")[0]
    k = "" if name == "k" else "k: {int: [1, 4]}, "
    refused(lambda: space(f"parameters: {{{k}{parameter}}}", tmp_path), "space.yaml", name, *words)


@pytest.mark.parametrize("text", ["1e-5", "3e-4", "2E-3"])
def test_the_proposed_number_is_one(text, tmp_path):
    """Written as the message proposes, a number that YAML read as a string is read as a number."""
    message = refused(lambda: space(f"parameters: {{base_lr: {{log: [{text}, 1]}}}}", tmp_path))
    proposed = message.partition("write ")[2].split()[0]
    assert yaml.safe_load(proposed) == float(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parameters: {base_lr: {log: [0.001, 0.01]}}", ["'k' is missing"]),
        ("score: {general: 0.5}", ["parameters"]),
        ("parameters: {k: {int: [1, 2]}}\nscore: {general: 0, domain: 0}", ["score", "above 0"]),
        ("parameters: {k: {int: [1, 2]}}\nfirst: [{k: 1, base_lr: 0.1}]", ["first", "exactly k"]),
        ("parameters: {k: {int: [1, 2]}}\nfirst: [{k: -1}]", ["k", "-1"]),
        ("parameters: {k: {int: [1, 2]}}\nfirst: [{k: 7}]", ["first", "k", "7"]),
        ("- 1", ["mapping", "list"]),
        ("a: [", ["YAML"]),
        ("", ["mapping"]),
    ],
)
def test_a_wrong_search_space_is_refused_in_one_sentence(text, words, tmp_path):
    """Every mistake in the file as a whole names the file and what is wrong."""
    refused(lambda: space(text, tmp_path), "space.yaml", *words)


HEAD = """# a comment
parameters:
  k: {int: [1, 4]}
  placement:
    choice: [guided, uniform]
"""


@pytest.mark.parametrize(
    ("rest", "line", "words"),
    [
        ("  base_lr: {log: [0.1, 0.01]}", 6, "empty"),
        ("  base_lr:\n    log:\n      - 0.1\n      - 1e-5", 6, "'1e-5' is a string"),
        ("  base_rl: {log: [0.1, 1]}", 6, "did you mean base_lr"),
        ("  warmup:\n    float: [0.1, 1.5]", 6, "less than 1"),
        ("  base_lr:\n    lgo: [0.1, 1]", 7, "unknown key"),
        ("score:\n  general: 0.5\n  domain: -1", 8, "greater than or equal to 0"),
        ("score:\n  genral: 0.5", 7, "did you mean general"),
        ("score:\n  retain: true", 7, "write 'general: retain'"),
        ("general: loss", 6, "'gain' or 'retain'"),
        ("first:\n  - {k: 1, placement: guided}\n  - {k: 9, placement: guided}", 8, "k 9 lies outside"),
        ("first:\n  - k: 1\n    placement: nowhere", 8, "nowhere"),
        ("first:\n\n  - k: 1", 8, "exactly k, placement"),
        ("first:\n  k: 1", 6, "should be a list"),
        ("first: [1]", 6, "should be a mapping"),
        ("first:\n  - {k: '1', placement: guided}", 7, "first: k: '1' is a string; write 1 without"),
        ("first:\n  - k: 1.0\n    placement: guided", 7, "'int' takes numbers of that kind, not 1.0"),
        ("first:\n  - {k: null, placement: guided}", 7, "not None"),
        ("first:\n  - k: 1\n    placement: no", 8, "'choice' takes no true or false"),
        ("first: [{k: 1, 1: 2}]", 6, "valid string"),
        ("  base_lr: {log: [0.001, 0.1]}\nfirst:\n  - k: 1\n    base_lr: 1e-3", 9, "write 0.001 without"),
        ("  warmup: 0.1", 6, "should be a mapping, not 0.1"),
        ("  1: {int: [1, 2]}", 6, "valid string"),
        ("1: 2", 6, "Keys should be strings, not 1"),
        ("score:\n  1: 2", 7, "Keys should be strings, not 1"),
        ("judge_after: 0", 6, "greater than or equal to 1"),
        ("run:\n  trials: 3\n  workers: 2", 8, "unknown key 'workers'"),
        ("run: {trials: 0}", 6, "greater than or equal to 1"),
        ("run: {trials: few}", 6, "integer"),
        ("  offset: {int: [0, 4], when: {placment: uniform}}", 6, "isn't listed before it: did you mean"),
        ("  offset:\n    int: [0, 4]\n    when: {placement: [deepest]}", 8, "'deepest', which lies outside"),
        ("  offset:\n    int: [0, 4]\n    when: {k: two}", 8, "'when': k: 'int' takes numbers of that kind"),
        ("  offset:\n    int: [0, 4]\n    when: {k: [1, '2']}", 8, "'2' is a string; write 2 without"),
        ("  base_lr: {log: [0.001, 0.1]}\n  offset: {int: [0, 4], when: {base_lr: 1e-3}}", 7, "write 0.001"),
        ("  offset: {int: [0, 4], when: k}", 6, "should be a mapping"),
        ("  k: {int: [1, 2]}", 6, "'k' is there twice"),
        ("  base_lr: {log: [0.1, 1]", 7, "not readable as YAML"),
        ("\tbase_lr: 1", 6, "not readable as YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(rest, line, words, tmp_path):
    """Every sentence about a search space begins with the file and the line to look at."""
    text = f"{HEAD}{rest}\n"
    message = refused(lambda: space(text, tmp_path), words)
    assert message.startswith(f"{tmp_path / 'space.yaml'}, line {line}: "), message


ODD = [
    *("true", "null", "two", "''", "'1'", "1e-3", "1e999", ".nan", "inf", "-1", "1.0", "2020-01-01"),
    *("[]", "[1]", "[null]", "[[1]]", "[1, 1]", "[{1: 2}]", "{}", "{a: 1}", "{1: 2}", "{null: 1}"),
    *("!!binary aGk=", "!!set {a, b}", "1" + 400 * "0"),
]
PLACES = [
    "  base_lr: ?",
    *(f"  base_lr: {{{form}: ?}}" for form in ("int", "float", "log", "choice", "fixed", "when")),
    *(f"  base_lr: {{{form}: [1, ?]}}" for form in ("int", "float", "log", "choice")),
    *(f"  offset: {{int: [0, 4], when: {{{on}: ?}}}}" for on in ("k", "placement")),
    "  ?: {fixed: 1}",
    "first: ?",
    "first: [?]",
    "first: [{k: ?, placement: guided}]",
    "first: [{k: 1, placement: ?}]",
    "first: [{?: 1}]",
    *(f"{name}: ?" for name in ("score", "general", "judge_after", "run")),
    "score: {general: ?}",
    "run: {trials: ?}",
    "?: 2",
]


@pytest.mark.parametrize("place", PLACES)
def test_whatever_stands_in_a_search_space_is_read_or_refused(place, tmp_path):
    """No value of another kind than the one meant ends in anything but one sentence with its line."""
    for value in ODD:
        try:
            space(HEAD + place.replace("?", value), tmp_path)
        except UserError as problem:
            assert "space.yaml, line " in str(problem) and "\n" not in str(problem)


def test_a_day_that_no_month_has_is_no_yaml(tmp_path):
    """YAML's own words, in one sentence."""
    refused(lambda: space(f"{HEAD}judge_after: 2020-13-45", tmp_path), "not readable as YAML: month must be")


def test_a_condition_may_name_one_value_or_several(tmp_path):
    """And it is part of what a first setting has to name."""
    one = space(f"{HEAD}  offset: {{int: [0, 4], when: {{placement: uniform}}}}", tmp_path)
    several = space(f"{HEAD}  offset: {{int: [0, 4], when: {{placement: [uniform]}}}}", tmp_path)
    assert one == several and one.list_active({"placement": "uniform"}) == ["k", "placement", "offset"]
    assert one.list_active({"placement": "guided"}) == ["k", "placement"]
    whole = (
        f"{HEAD}  offset: {{int: [0, 4], when: {{placement: uniform}}}}\nfirst: [{{k: 1, placement: guided}}"
    )
    assert len(space(f"{whole}, {{k: 1, placement: uniform, offset: 2}}]", tmp_path).first) == 2
    refused(
        lambda: space(f"{whole}, {{k: 1, placement: uniform}}]", tmp_path), "exactly k, offset, placement"
    )
    refused(lambda: space("parameters: {k: {int: [1, 2], when: {k: 1}}}", tmp_path), "'k' takes no 'when'")


def test_only_a_loss_counts_where_the_space_says_so(tmp_path):
    """It goes where the weights go."""
    assert space("parameters: {k: {fixed: 1}}\ngeneral: retain", tmp_path).weights.retain
    assert not space("parameters: {k: {fixed: 1}}", tmp_path).weights.retain


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A missing file and a folder are errors with their path."""
    refused(lambda: load_yaml(tmp_path / "none.yaml"), "none.yaml", "no such file")
    refused(lambda: load_yaml(tmp_path), str(tmp_path))


def test_fingerprint_goes_by_content():
    """Dict order makes no difference, any value does; lists keep their order."""
    one = fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert one == fingerprint({"b": {"d": None, "c": [1, 2]}, "a": 1})
    others = [{"a": 1, "b": {"c": [2, 1], "d": None}}, {"a": 1.5, "b": {"c": [1, 2], "d": None}}, {"a": 1}]
    assert len({one, *map(fingerprint, others)}) == 4
    assert fingerprint("a", "b") != fingerprint("ab")
    assert len(one) == 16 and int(one, 16) >= 0


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process():
    """It names files that later runs look for, so it can't depend on the process's hash seed."""
    code = (
        "from adept_ray.config.validation import *; print(fingerprint({'b': 'ü', 'a': [1, 2.5, None]}, 'x'))"
    )
    root = str(Path(__file__).parents[2])
    processes = ({"PYTHONHASHSEED": seed, "PYTHONPATH": root} for seed in ("1", "2"))
    found = {subprocess.check_output([sys.executable, "-c", code], env=env) for env in processes}
    assert found == {fingerprint({"a": [1, 2.5, None], "b": "ü"}, "x").encode() + b"\n"}


def test_two_searches_with_other_ranges_have_other_fingerprints(tmp_path):
    """A dumped search space keeps what its ranges say."""
    dumps = [space(f"parameters: {{k: {{int: [1, {high}]}}}}", tmp_path).model_dump() for high in (2, 3)]
    assert fingerprint(dumps[0]) != fingerprint(dumps[1])
    assert SearchSpace(**dumps[0]).parameters["k"].values == (1, 2)
