"""A run that is resumed: what stays as it was, what may change, and the command that resumes it."""

import errno
import shlex

import pytest

from adept_ray.config.errors import UnfinishedRun, UserError
from adept_ray.config.specs import RunSpec, SearchRun, TrainingSpec, TrainRun
from adept_ray.engine.job import DiskFault
from adept_ray.run.context import Session, open_session
from adept_ray.run.flags import parse_flags
from adept_ray.run.resuming import (
    check_same_training,
    explain_stops,
    format_resume_command,
    resume_settings,
    resume_training,
)
from adept_ray.run.settings import list_run_overrides, resolve_settings
from adept_ray.run.terminal import Display
from adept_ray.storage.results import Results


def test_a_training_of_an_earlier_version_can_be_resumed():
    """Settings that its run.json doesn't know had their defaults; others are compared."""
    begun = TrainingSpec(k=3).model_dump(mode="json")
    del begun["layers"], begun["placement"]
    check_same_training(TrainingSpec(k=3), begun)
    with pytest.raises(
        UserError, match="placement is uniform, but the training to be resumed began with guided"
    ):
        check_same_training(TrainingSpec(k=3, placement="uniform"), begun)


def test_a_resumed_search_may_save_memory():
    """On a smaller machine activations may have to be computed again: no result depends on that."""
    begun = SearchRun(name="x", seq_len=64).model_dump(mode="json")
    asked = SearchRun(name="x", resume=True, activation_checkpointing="on", micro_batch=1)
    resumed = resume_settings(asked, begun)
    assert (resumed.seq_len, resumed.machine.activation_checkpointing, resumed.machine.micro_batch) == (
        64,
        "on",
        1,
    )
    with pytest.raises(UserError, match="--trials 9: the run 'x' began with 8"):
        resume_settings(SearchRun(name="x", resume=True, trials=9), begun)


def test_a_search_begun_before_there_were_dials_goes_on_without():
    """Its other trials would be of another kind than those that it has."""
    begun = SearchRun(name="x").model_dump(mode="json")
    assert resume_settings(SearchRun(name="x", resume=True), begun).dial == "auto"
    del begun["dial"]
    assert resume_settings(SearchRun(name="x", resume=True), begun).dial == "off"


def test_a_run_on_gpus_is_resumed_without_saying_so_again():
    """The command that --resume prints names no precision and no budget: all that stays as it was."""
    asked = SearchRun(name="x", gpus_per_worker=1, min_gain_per_layer=0.5, max_hours=2, cache="s3://b/c/")
    begun = resolve_settings(asked).model_dump(mode="json")
    resumed = resume_settings(resolve_settings(SearchRun(name="x", resume=True)), begun)
    assert (resumed.machine.dtype, resumed.machine.gpus_per_worker) == ("bfloat16", 1)
    assert (resumed.min_gain_per_layer, resumed.max_hours, resumed.machine.cache) == (0.5, 2, "s3://b/c")


def test_a_resumed_search_may_have_other_workers():
    """A smaller cluster can end what a larger one began; without a flag it is as wide as before."""
    begun = SearchRun(name="x", workers=4, min_workers=2, concurrent=3).model_dump(mode="json")
    same = resume_settings(SearchRun(name="x", resume=True), begun)
    assert (same.machine.workers, same.machine.min_workers, same.concurrent) == (4, 2, 3)
    other = resume_settings(SearchRun(name="x", resume=True, workers=2, concurrent="auto"), begun)
    assert (other.machine.workers, other.machine.min_workers, other.concurrent) == (2, 2, "auto")


def test_a_resumed_run_may_be_narrowed_to_the_defaults():
    """One worker, one trial at a time, no fewest number: what is given holds, at its usual value too."""
    begun = SearchRun(name="x", workers=4, min_workers=2, concurrent=3).model_dump(mode="json")
    asked = SearchRun(name="x", resume=True, workers=1, min_workers=0, concurrent=1)
    narrow = resume_settings(resolve_settings(asked), begun)
    assert (narrow.machine.workers, narrow.machine.min_workers, narrow.concurrent) == (1, 0, 1)
    with pytest.raises(UserError, match="resuming 'x': --min-workers 2 is more than --workers 1"):
        resume_settings(SearchRun(name="x", resume=True, workers=1), begun)


def test_a_study_that_contradicts_is_named_without_its_password():
    """Neither that of the run nor the one that was given."""
    begun = SearchRun(name="x", study="postgresql://me:secret@host/one").model_dump(mode="json")
    with pytest.raises(UserError) as refused:
        resume_settings(SearchRun(name="x", resume=True, study="postgresql://me:secret2@host/two"), begun)
    assert str(refused.value) == (
        "--study postgresql://me:***@host/two: the run 'x' began with postgresql://me:***@host/one, "
        "so leave that flag out"
    )


def test_a_resumed_run_may_continue_with_fewer_of_the_workers_that_it_began_with():
    """How many those are is known from the run alone, and too many are still refused."""
    begun = SearchRun(name="x", workers=4).model_dump(mode="json")
    for further in ({"resume": True}, {"more_trials": 2}):
        elastic = resume_settings(SearchRun(name="x", min_workers=2, **further), begun)
        assert (elastic.machine.workers, elastic.machine.min_workers) == (4, 2)
        with pytest.raises(UserError, match="resuming 'x': --min-workers 5 is more than --workers 4"):
            resume_settings(SearchRun(name="x", min_workers=5, **further), begun)


def test_a_flag_of_its_usual_value_can_contradict_a_run():
    """It is refused like any other, though it looks as if it had not been given."""
    begun = SearchRun(name="x", seq_len=64).model_dump(mode="json")
    with pytest.raises(UserError, match="--seq-len 128: the run 'x' began with 64"):
        resume_settings(resolve_settings(SearchRun(name="x", resume=True, seq_len=128)), begun)


def test_trust_is_said_on_every_command_line():
    """A run is resumed with the trust that it began with, and never because a file says so."""
    for trusted, words in (
        (True, "with --trust-remote-code: give it again"),
        (False, "without .*leave it out"),
    ):
        begun = SearchRun(name="x", trust_remote_code=trusted).model_dump(mode="json")
        with pytest.raises(UserError, match=f"the run 'x' was made {words}"):
            resume_settings(SearchRun(name="x", resume=True, trust_remote_code=not trusted), begun)
        again = SearchRun(name="x", resume=True, trust_remote_code=trusted)
        assert resume_settings(again, begun).trust_remote_code is trusted
        assert ("--trust-remote-code" in format_resume_command("tune-k", again)) is trusted


@pytest.mark.slow  # a process waits to say the last word of a run
def test_every_sentence_names_the_command_that_continues(small):
    """One sentence: what is wrong, what to do, the command; other errors stay what they are."""
    run = SearchRun(name="x", storage=str(small))
    session = Session(run, Results(run.storage, run.name), Display())
    with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
        session.results.write_json("importance.json", {"layers": list(range(100_000))})
    assert str(refusal.value) == (
        f"no space left for {small}/x/importance.json: make room and go on with "
        f"python scripts/tune_k.py --name x --resume --storage {small}"
    )
    with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
        raise UnfinishedRun("its workers are gone")
    assert str(refusal.value) == (
        "its workers are gone; what is finished is kept: go on with "
        f"python scripts/tune_k.py --name x --resume --storage {small}"
    )
    with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
        raise UserError("Ray can't be started on this machine: it is overloaded.")
    assert str(refusal.value) == (
        "Ray can't be started on this machine: it is overloaded; then go on with "
        f"python scripts/tune_k.py --name x --resume --storage {small}"
    )
    with pytest.raises(OSError, match="another fault"), explain_stops(session, "tune-k"):
        raise OSError("another fault")


@pytest.mark.slow  # a process waits to say the last word of a run
@pytest.mark.parametrize("kind", [UnfinishedRun, DiskFault])
def test_a_fault_of_the_cache_under_a_worker_names_the_flag_too(tmp_path, kind):
    """By the sentence that comes from there; a folder whose name only begins like the cache's is none."""
    run = SearchRun(name="x", storage=str(tmp_path), cache=str(tmp_path / "cache"))
    session = Session(run, Results(run.storage, run.name), Display())
    for place, is_inside in (
        (f"{tmp_path}/cache/a", True),
        (f"{tmp_path}/cache", True),
        (f"{tmp_path}/cache2", False),
    ):
        with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
            raise kind(f"{place}: its disk fails")
        assert ("--cache takes another one" in str(refusal.value)) is is_inside


@pytest.mark.slow  # a process waits to say the last word of a run
def test_a_fault_of_the_cache_names_the_cache_and_its_flag(tmp_path):
    """Whether it is full or closed; of other places there is nothing to be said."""
    run = SearchRun(name="x", storage=str(tmp_path), cache=str(tmp_path / "cache"))
    session = Session(run, Results(run.storage, run.name), Display())
    note = rf" \(the cache is {run.machine.cache}; --cache takes another one\)"
    for number, said in ((errno.EACCES, ": there is no permission .*"), (errno.ENOSPC, "")):
        words = f"cache/blocks/a{said}{note}.* go on with python"
        with pytest.raises(UserError, match=words), explain_stops(session, "tune-k"):
            raise OSError(number, "words", f"{run.machine.cache}/blocks/a")
        with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
            raise OSError(number, "words", "/elsewhere")
        assert "--cache" not in str(refusal.value)


@pytest.mark.slow  # a process waits to say the last word of a run
@pytest.mark.parametrize("found", ["", "importance.json"])
def test_a_run_that_is_refused_with_nothing_to_go_on_with_is_taken_back(tmp_path, found):
    """Its input may have to be mended, which no resumed run would take: the same command is given again."""
    session = open_session(SearchRun(name="x", storage=str(tmp_path)))
    session.results.write_json("run.json", {})
    if found:
        session.results.write_json(found, {})
    with pytest.raises(UserError) as refusal, explain_stops(session, "tune-k"):
        raise UserError("corpus 'a' is too small: give more")
    assert session.results.exists() is bool(found)
    assert ("; then go on with python" in str(refusal.value)) is bool(found)


@pytest.mark.slow  # a process waits to say the last word of a run
def test_a_resumed_run_is_never_taken_back(tmp_path):
    """However little it has: it isn't this command's."""
    run = SearchRun(name="x", storage=str(tmp_path))
    begun = open_session(run)
    begun.results.write_json("run.json", {})
    begun.results.release()
    session = open_session(run, continues=True)
    with pytest.raises(UserError, match="go on with python"), explain_stops(session, "tune-k"):
        raise UserError("Ray can't be started on this machine: no")
    assert session.results.exists()


# --- a training at full length that goes on -----------------------------------------------------------

FOUND = {
    "run": resolve_settings(RunSpec(seq_len=64, precision="float32")).model_dump(mode="json"),
    "training": TrainingSpec(k=2, base_lr=0.002).model_dump(mode="json"),
}


def begin_training(text="--tokens 1000 --workers 8 --micro-batch 2 --cache /c --reports 20", name="full"):
    """What run.json of a training that began with these flags holds."""
    args = parse_flags(TrainRun, "", ["--config", "best.yaml", "--name", name, *text.split()])
    run = resolve_settings(RunSpec(**{**FOUND["run"], **list_run_overrides(args)}))
    training = {**FOUND["training"], "tokens": args.tokens, "reports": args.reports}
    return {"run": run.model_dump(mode="json"), "training": training}


def resume_printed(begun, *words, best=FOUND):
    """The settings of the command that a training prints when it is interrupted, with more `words`."""
    printed = format_resume_command("train --config best.yaml --tokens 1000", RunSpec(**begun["run"]))
    return resume_training(parse_flags(TrainRun, "", [*shlex.split(printed)[2:], *words]), best, begun)


def test_the_printed_command_continues_the_training_that_was_interrupted():
    """With all that it was given then; what no loss depends on may be given anew."""
    machine = "--workers 8 --min-workers 2 --precision bfloat16 --cache /c"
    begun = begin_training(f"--tokens 1000 {machine} --reports 20")
    run, training = resume_printed(begun)
    assert run.model_dump(mode="json") == begun["run"] and training == TrainingSpec(**begun["training"])
    assert (run.machine.workers, run.machine.precision, run.machine.cache, training.reports) == (
        8,
        "bfloat16",
        "/c",
        20,
    )
    fewer, _ = resume_printed(begun, "--workers", "3", "--cache", "/d", "--json")
    assert (fewer.machine.workers, fewer.machine.min_workers, fewer.machine.cache, fewer.json_lines) == (
        3,
        2,
        "/d",
        True,
    )
    wide, _ = resume_printed(begun, "--min-workers", "5")
    assert (wide.machine.workers, wide.machine.min_workers) == (8, 5)


def test_a_training_begun_before_there_were_dials_goes_on_without():
    """As one does that was begun with --dial off; a given dial that differs is refused."""
    begun = begin_training()
    assert resume_printed(begun)[1].dial == "auto"
    begun["training"]["dial"] = "off"
    assert resume_printed(begun)[1].dial == "off"
    del begun["training"]["dial"]
    assert resume_printed(begun)[1].dial == "off"
    with pytest.raises(UserError, match=r"dial is 0\.5, but the training to be resumed began with off"):
        resume_printed(begun, "--dial", "0.5")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--reports 10", "reports is 10, but the training to be resumed began with 20"),
        ("--tokens 999", "tokens is 999, but the training to be resumed began with 1000"),
        ("--precision bfloat16", "--precision bfloat16: the run 'full' began with float32"),
        ("--trust-remote-code", "was made without --trust-remote-code: leave it out"),
    ],
)
def test_flags_that_contradict_a_training_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        resume_printed(begin_training(), *words.split())


def test_a_training_continues_with_its_own_best_yaml():
    """Another one's is refused, whether other settings were searched or on other text; so is a search."""
    for best, sentence in (
        ({**FOUND, "training": {**FOUND["training"], "k": 3}}, "k is 3, but the training .* began with 2"),
        ({**FOUND, "run": {**FOUND["run"], "domain": "math"}}, "best.yaml: domain is math, but .* medical"),
    ):
        with pytest.raises(UserError, match=sentence):
            resume_printed(begin_training(), best=best)
    begun = begin_training()
    del begun["training"]
    with pytest.raises(UserError, match="'full' is no training at full length"):
        resume_printed(begun)
