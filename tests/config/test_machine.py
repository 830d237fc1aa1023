"""The machine: flat in files and flags, nested in Python, and only what was given of it counts afterwards."""

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import (
    ActivationsRun,
    CompareRun,
    PickRun,
    ProbeRun,
    RunSpec,
    SearchRun,
    TrainRun,
)
from adept_ray.config.validation import apply_changes, validate_spec
from adept_ray.run.flags import parse_flags

RUNS = (RunSpec, ProbeRun, SearchRun, CompareRun)
FOLLOWERS = {
    PickRun: {"results": "x"},
    TrainRun: {"config": "x", "tokens": 9},
    ActivationsRun: {"config": "x"},
}


@pytest.mark.parametrize("spec", RUNS)
def test_a_machine_is_flat_in_a_file_and_nested_in_python(spec):
    """Both ways make the same run, and what is written down is read as the same run again."""
    flat, nested = spec(workers=2, compile="on"), spec(machine=Machine(workers=2, compile="on"))
    assert flat == nested and (flat.machine.workers, flat.machine.compile) == (2, "on")
    assert flat.given == nested.given == {"workers", "compile"}
    for mode in ("python", "json"):
        written = flat.model_dump(mode=mode)
        assert "machine" not in written and written["workers"] == 2
        assert spec(**written) == flat
    assert list(flat.model_dump()) == list(spec.flat_fields())


@pytest.mark.parametrize("spec", RUNS)
def test_the_machine_stands_where_its_flags_always_stood(spec):
    """Between the score and what is printed: so in --help, run.json, best.yaml and every check."""
    names = list(spec.flat_fields())
    first = names.index("score") + 1
    assert names[first : first + len(Machine.model_fields)] == list(Machine.model_fields)
    assert [names[first - 1], names[first + len(Machine.model_fields)]] == ["score", "json_lines"]


def test_a_flat_field_goes_over_a_nested_one():
    """Though both may be given, as where a file's values are changed; the machine's other fields stay."""
    run = RunSpec(machine=Machine(workers=2, micro_batch=4), workers=3)
    assert (run.machine.workers, run.machine.micro_batch) == (3, 4)
    assert run.given == {"workers", "micro_batch"}


def test_a_change_reaches_the_machine_by_the_name_of_its_flag():
    """And what was given stays what somebody gave, whatever it has become since."""
    run = apply_changes(RunSpec(workers=2), {"workers": 4, "precision": "bfloat16"})
    assert (run.machine.workers, run.machine.dtype) == (4, "bfloat16")
    assert run.given == {"workers"}
    assert run.read_field("workers") == 4 and run.read_field("seq_len") == RunSpec().seq_len


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"workrs": 2}, "file: unknown key 'workrs': did you mean workers or min_workers?"),
        ({"gpu_per_worker": 1}, "file: unknown key 'gpu_per_worker': did you mean gpus_per_worker"),
        ({"machine": {"wokers": 1}}, "file: unknown key 'wokers': did you mean workers or min_workers?"),
        ({"workers": 0}, "file: workers: must be at least 1, or auto, not 0"),
        ({"compile": "maybe"}, "file: compile: input should be 'auto', 'on' or 'off', not 'maybe'"),
        ({"machine": 3}, "file: machine: input should be a mapping, not 3"),
        ({"machine": 3, "workers": 2}, "file: machine: input should be a mapping, not 3"),
    ],
)
def test_a_mistake_in_the_machine_is_named_as_if_it_were_the_runs_own(values, sentence):
    """An unknown key beside those of the machine names the nearest of both; no path leads through it."""
    with pytest.raises(UserError) as refusal:
        validate_spec(RunSpec, values, "file")
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(("gpus", "dtype"), [(0, "float32"), (0.5, "bfloat16")])
def test_what_a_machine_says_of_itself(gpus, dtype, tmp_path):
    """Where it computes, in which type, with how many workers at least, and where its caches are."""
    machine = Machine(gpus_per_worker=gpus, workers=3, cache=str(tmp_path))
    assert (machine.on_gpus, machine.dtype, machine.fewest_workers) == (gpus > 0, dtype, 3)
    assert (machine.local_cache, machine.shared_cache) == (tmp_path, "")
    far = Machine(precision="float32", gpus_per_worker=gpus, min_workers=2, workers=3, cache="s3://b/c/")
    assert (far.dtype, far.fewest_workers, far.shared_cache) == ("float32", 2, "s3://b/c")
    assert far.local_cache != "s3://b/c"


@pytest.mark.parametrize("workers", [{"workers": 2}, {"workers": 2, "min_workers": 1}])
def test_workers_that_train_together_have_a_gpu_each(workers):
    """NCCL refuses two ranks on one card; trials side by side, each of one worker, may share one."""
    with pytest.raises(UserError, match=r"^file: --gpus-per-worker 0\.5: .* --workers 1 "):
        validate_spec(SearchRun, {"gpus_per_worker": 0.5, **workers}, "file")
    shared = validate_spec(SearchRun, {"gpus_per_worker": 0.5, "concurrent": 2}, "file")
    assert shared.machine.workers == 1 and shared.crews == 2
    with pytest.raises(UserError, match=r"changed: --gpus-per-worker 0\.5: 2 workers"):
        apply_changes(shared, {"workers": 2}, "changed")
    for gpus in (0, 1, 2):
        validate_spec(SearchRun, {"gpus_per_worker": gpus, **workers}, "file")


def test_a_worker_has_whole_gpus_or_a_part_of_one():
    """Ray refuses one and a half, after a traceback."""
    with pytest.raises(UserError, match=r"^file: --gpus-per-worker 1\.5: Ray gives out whole GPUs"):
        validate_spec(RunSpec, {"gpus_per_worker": 1.5}, "file")


# --- commands that continue from a search ---------------------------------------------------------


@pytest.mark.parametrize("spec", FOLLOWERS)
def test_only_what_is_given_of_the_machine_counts(spec):
    """Though it may be at its usual value; a command that is given nothing changes nothing."""
    assert spec(**FOLLOWERS[spec]).list_overrides() == {}
    given = spec(**FOLLOWERS[spec], workers=1, cache="/c")
    assert given.list_overrides() == {"workers": 1, "cache": "/c"}
    assert spec(**FOLLOWERS[spec], machine=Machine(workers=1)).list_overrides() == {"workers": 1}


@pytest.mark.parametrize(
    ("spec", "lacks"),
    [
        (TrainRun, {"dashboard"}),
        (ActivationsRun, {"dashboard", "min_workers"}),
        (PickRun, set(Machine.model_fields) - {"workers", "gpus_per_worker", "micro_batch", "cache"}),
    ],
)
def test_a_command_takes_no_other_field_of_the_machine(spec, lacks):
    """Whether flat, where it is as unknown as any other key, or nested."""
    assert {name for name in Machine.model_fields if name not in spec.flat_fields()} == lacks
    for name in lacks:
        value = getattr(Machine(), name)
        with pytest.raises(UserError, match=f"unknown key '{name}'"):
            validate_spec(spec, {**FOLLOWERS[spec], name: value}, "file")
        with pytest.raises(UserError, match=f"machine.{name} can't be given here"):
            validate_spec(spec, {**FOLLOWERS[spec], "machine": {name: value}}, "file")


@pytest.mark.parametrize("spec", FOLLOWERS)
def test_none_is_as_the_search_had_it(spec):
    """The help shows None as the default, so it may be given, too."""
    words = ["x"] if spec is PickRun else ["--config", "x"] + ["--tokens", "9"] * (spec is TrainRun)
    args = parse_flags(spec, "", [*words, "--workers", "None", "--micro-batch", "2"])
    assert args.list_overrides() == {"micro_batch": 2} and "workers" not in args.given


@pytest.mark.parametrize("spec", FOLLOWERS)
def test_the_help_says_where_a_default_comes_from(spec, capsys, monkeypatch):
    """Of each field of the machine, and of nothing that has a default of its own."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        parse_flags(spec, "", ["--help"])
    text = capsys.readouterr().out
    own = spec is ActivationsRun  # its test_tokens has such a default, too
    assert (
        text.count("; default: as the search had. (default: None)") == len(spec.list_machine_fields()) + own
    )
    assert "Ray Train workers; default: as the search had" in text
