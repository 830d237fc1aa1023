"""What is said on a field: each list that a command goes by is what it was when it was kept by hand."""

import pytest

from adept_ray.config.fields import Mark, list_fields, read_extra, setting
from adept_ray.config.search_space import SEARCHABLE, SIZES
from adept_ray.config.specs import CompareRun, PickRun, ProbeRun, RunSpec, SearchRun, TrainingSpec, TrainRun
from adept_ray.config.validation import Spec
from adept_ray.report.rerun import CALL, ELSEWHERE

# Lists as they were before the marks; a new mark on a field must be written down here, too.
CHANGEABLE = (
    "micro_batch workers min_workers activation_checkpointing sharding compile dashboard cache max_hours "
    "concurrent for_tokens tolerance track"
)
OF_SEARCHES = {"max_hours", "concurrent", "for_tokens", "tolerance", "track"}
FITTING = "micro_batch workers min_workers gpus_per_worker activation_checkpointing sharding compile"
UNPROBED = (
    "domain domain_column domain_filter remeasure_tokens test_tokens general_tasks domain_tasks task_items "
    "score compile"  # by probe.py
)
SIZE = "seq_len probe_tokens remeasure_tokens validation_tokens test_tokens trials tokens_per_trial reports"
UNSEARCHED = "tunes layers lora_rank text tokens schedule warmup_tokens reports dial"
COMMAND = "json_lines resume more_trials report_only comparison"


@pytest.mark.parametrize(
    ("spec", "mark", "names"),
    [
        (SearchRun, Mark.CHANGEABLE, CHANGEABLE),
        (RunSpec, Mark.FITTING, FITTING),
        (RunSpec, Mark.UNPROBED, UNPROBED),
        (SearchRun, Mark.SIZE, SIZE),
        (SearchRun, Mark.COMMAND, COMMAND),
        (SearchRun, Mark.RESULTS, "storage name"),
        (SearchRun, Mark.REPORT, "json_lines storage name report_only comparison"),
        (SearchRun, Mark.TRIALS, "max_hours schedule concurrent pareto study more_trials"),
        (SearchRun, Mark.PLACE, "cache storage study"),
        (TrainingSpec, Mark.UNSEARCHED, UNSEARCHED),
        (PickRun, Mark.PICK, "general min_gain_per_layer dial"),
    ],
    ids=str,
)
def test_a_mark_is_on_the_fields_of_its_list(spec, mark, names):
    """Those of the machine among them, in the order of the flags."""
    assert list_fields(spec, mark) == tuple(names.split())


@pytest.mark.parametrize("spec", [RunSpec, ProbeRun, CompareRun, SearchRun])
def test_every_run_may_change_the_same_of_its_machine(spec):
    """What one command may have anew when it is resumed, another may, too."""
    machine = set(CHANGEABLE.split()) - OF_SEARCHES
    assert set(list_fields(spec, Mark.CHANGEABLE)) - OF_SEARCHES == machine


def test_what_follows_from_several_marks():
    """What a resuming command has of its own, what a report's command leaves out, what a space may say."""
    assert set(list_fields(SearchRun, Mark.COMMAND, Mark.RESULTS)) == {*COMMAND.split(), "storage", "name"}
    of_training = {"storage", "name", "resume", "json_lines"}
    assert set(list_fields(TrainRun, Mark.COMMAND, Mark.RESULTS)) == of_training
    call = {"name", "resume", "more_trials", "report_only", "comparison", "json_lines"}
    assert set(CALL) == call
    assert set(ELSEWHERE) == call | {"storage", "cache", "study", "track"}
    assert set(SIZES) == set(SIZE.split())
    assert set(SEARCHABLE) == set(TrainingSpec.model_fields) - set(UNSEARCHED.split())


def test_a_field_without_marks_has_none():
    """Nor does it say anything else of itself."""

    class Plain(Spec):
        one: int = 1
        two: int = setting(2, Mark.PLACE, flag="deux", ge=1)

    assert list_fields(Plain, *Mark) == ("two",)
    fields = Plain.flat_fields()
    assert (read_extra(fields["one"], "flag"), read_extra(fields["two"], "flag")) == (None, "deux")
