"""What the commands share: settings made definite, the plan of a run, what may change when it is resumed."""

import json
import shlex
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import tiny_model

from adept_ray.commands.pick import override_machine
from adept_ray.commands.tune_k import choose_trial, continue_search, count_trials_left, limit_k, load_space
from adept_ray.config.errors import InterruptedRun, UnfinishedRun, UserError
from adept_ray.config.specs import (
    ActivationsRun,
    PickRun,
    RunSpec,
    ScoreWeights,
    SearchRun,
    TrainingSpec,
    TrainRun,
)
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.engine.job import CrewLost, JobFailed, JobRefused
from adept_ray.engine.memory import Memory
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.run import context as runs
from adept_ray.run import training as training_module
from adept_ray.run.context import open_context
from adept_ray.run.flags import parse_flags
from adept_ray.run.record import has_ended, record_run, show_summary
from adept_ray.run.resuming import (
    check_same_training,
    explain_stops,
    format_resume_command,
    resume_settings,
    resume_training,
)
from adept_ray.run.settings import load_best, overrides_from, resolve_settings
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import choose_compiling, plan_fit
from adept_ray.search.choice import rescore
from adept_ray.search.edges import DepthLimit
from adept_ray.search.trials import describe_trial, write_trials
from adept_ray.storage.results import Results
from adept_ray.training.work import TrainWork

GIB = 2**30
GOING_ON = partial(TrainRun, tokens=1000), ActivationsRun  # what takes a best.yaml


@pytest.fixture
def said():
    """A display that keeps what it says."""
    lines = []
    every = dict.fromkeys(("say", "show", "warn"), lines.append)
    return SimpleNamespace(
        **every, event=lambda *_, **__: None, plan=lambda *args: lines.append(args[-1]), lines=lines
    )


SOURCES = Sources(Backbone("", ""), tiny_model().config, CorpusFiles((), "", "", ""), None)


def test_precision_is_definite_from_the_beginning():
    """A training on GPUs that goes on from a search on CPUs keeps the search's precision."""
    assert resolve_settings(RunSpec()).machine.precision == "float32"
    assert resolve_settings(RunSpec(gpus_per_worker=1)).machine.precision == "bfloat16"
    assert resolve_settings(RunSpec(gpus_per_worker=1, precision="float32")).machine.precision == "float32"


def test_memory_and_compiler_are_asked_for_before_the_crew_takes_the_gpus(monkeypatch, said):
    """The other way round the questions would wait for a GPU for ever; a compiler is for what trains."""
    order = []

    @contextmanager
    def note(name):
        order.append(name)
        yield name

    monkeypatch.setattr(runs.launch, "connect_cluster", lambda run: note("cluster"))
    monkeypatch.setattr(runs.launch, "check_compiler", lambda run: order.append("compiler"))
    monkeypatch.setattr(runs.launch, "measure_worker_memory", lambda run: order.append("memory") or 7)
    monkeypatch.setattr(runs, "start_crews", lambda run, storage, say, memory: note("crew"))
    monkeypatch.setattr(runs, "redirect_output", nullcontext)
    monkeypatch.setattr(runs, "report_stage_times", lambda *_: nullcontext())
    results = SimpleNamespace(place="", ray="")
    with open_context(RunSpec(), results, said) as (board, memory):
        assert (board, memory) == ("crew", 7)
    with open_context(RunSpec(), results, said, trains=False):
        assert order == ["cluster", "compiler", "memory", "crew", "cluster", "memory", "crew"]


def test_a_plan_decides_about_activations(said):
    """Plenty of memory keeps them, too little is refused."""
    spec = TrainingSpec(k=2)
    assert not plan_fit(RunSpec(), SOURCES, spec, GIB, said).recompute
    assert plan_fit(RunSpec(activation_checkpointing="on"), SOURCES, spec, GIB, said).recompute
    with pytest.raises(UserError, match="k = 2 with --micro-batch 8 takes"):
        plan_fit(RunSpec(), SOURCES, spec, 1000, said)
    assert said.lines == ["k = 2", "k = 2"]


def test_workers_without_work_are_warned_of(said):
    """A step of two blocks gives the third worker nothing to do."""
    spec = TrainingSpec(k=1, tokens_per_step=256)
    plan_fit(RunSpec(workers=3), SOURCES, spec, GIB, said)
    assert "has 2 blocks, so 1 of 3 workers have nothing to train on" in said.lines[0]
    plan_fit(RunSpec(workers=2), SOURCES, spec, GIB, said)
    assert len(said.lines) == 3


def test_what_cannot_be_planned_goes_on_without(monkeypatch, said):
    """A plan is advice: an architecture that needs data to run is trained all the same."""

    def fails(*_):
        raise RuntimeError("data-dependent\nbranch")

    monkeypatch.setattr(training_module, "plan_memory", fails)
    assert plan_fit(RunSpec(), SOURCES, TrainingSpec(), GIB, said) == PLAIN
    every = RunSpec(activation_checkpointing="on", sharding="on", compile="on", workers=2)
    assert plan_fit(every, SOURCES, TrainingSpec(tokens_per_step=256), GIB, said) == Fit(True, True, True)
    assert said.lines == 2 * ["k = 4: what it will take can't be said beforehand (data-dependent)"]


@pytest.mark.parametrize("asked", ["on", "off"])
def test_layers_are_compiled_where_that_was_asked_for(said, asked):
    """By the flag of a search, and of what goes on from its best.yaml; without that, as the search had."""
    assert plan_fit(RunSpec(compile=asked), SOURCES, TrainingSpec(), GIB, said).compiled == (asked == "on")
    for args in GOING_ON:
        assert overrides_from(args(config="best.yaml", compile=asked))["compile"] == asked
        assert "compile" not in overrides_from(args(config="best.yaml"))


JOB = TrainWork(
    Backbone("", ""), TrainingSpec(k=1), (3,), {}, {}, ScoreWeights(), 8, 1, 0, fit=Fit(recompute=True)
)
TIMES = {"fault": "", "plain": 0.5, "compiled": 0.4, "compiling": 60.0, "peak_gib": 1.0}


def paced_by(monkeypatch, said, answer, steps=1000, work=JOB, **settings):
    """How a run is compiled whose workers answer that to the question whether it is faster."""

    def do(board, job):
        assert (job.kind, job.work, job.blocks) == ("time_compiling", work, "blocks")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(training_module, "run_job", do)
    monkeypatch.setattr(training_module, "store_blocks", lambda blocks: blocks)
    monkeypatch.setattr(training_module, "show_jobs", lambda *_: nullcontext())
    return choose_compiling(
        RunSpec(**settings), work, steps, SimpleNamespace(blocks="blocks"), said, None
    ).fit


@pytest.mark.parametrize(
    ("answer", "compiled", "words"),
    [
        (TIMES, True, "0.5 s, by torch.compile 0.4 s, which took 60 s; 1,000 steps: trained with it"),
        (TIMES | {"compiled": 0.49}, False, "trained without it"),
        ({"fault": "InductorError: no C"}, False, "which a worker can't use: InductorError: no C"),
        (JobFailed("Traceback\nOutOfMemoryError: out"), False, "timing it failed (OutOfMemoryError: out)"),
    ],
)
def test_layers_are_compiled_where_that_pays(monkeypatch, said, answer, compiled, words):
    assert paced_by(monkeypatch, said, answer) == Fit(recompute=True, compiled=compiled)
    assert words in said.lines[-1]


def test_what_is_decided_or_not_worth_the_question_is_not_asked(monkeypatch, said):
    """Nor is it an answer when the workers are gone, or a person has to do something."""
    unasked, untrained = AssertionError("asked"), replace(JOB, layers=())
    for settings in ({"steps": 999}, {"compile": "off"}, {"compile": "on"}, {"work": untrained}):
        assert paced_by(monkeypatch, said, unasked, **settings) == JOB.fit
    for problem in (CrewLost("nobody is there"), JobRefused("no such folder")):
        with pytest.raises(type(problem)):
            paced_by(monkeypatch, said, problem)


@pytest.mark.parametrize(
    ("settings", "over", "crews", "each"),
    [
        ({}, None, 1, 8),
        ({"concurrent": "auto"}, None, 5, 2),
        ({"resume": True}, 6, 1, 2),
        ({"strategy": "grow"}, None, 1, 1),
    ],
)
def test_what_is_over_is_not_to_come(monkeypatch, tmp_path, settings, over, crews, each):
    """Of the rest each of the crews that there really are has its share."""
    results = Results(str(tmp_path), "x")
    if over:
        rows = [{"state": state} for state in ("untouched", *["finished"] * over)]
        results.write_json("trials.json", {"trials": rows})
    board = SimpleNamespace(count_crews=lambda: crews)
    assert count_trials_left(SearchRun(name="x", **settings), results, board) == each


def test_places_are_the_same_from_every_folder(tmp_path):
    """A cluster's workers are in others. A cache that isn't given stays as the run began with it."""
    home, here = str(Path("~").expanduser()), str(Path().absolute())
    for run in (RunSpec, partial(PickRun, results="x")):
        assert run(cache="not/there").machine.cache == f"{here}/not/there"
    assert RunSpec(cache="s3://b/c").machine.cache == "s3://b/c"
    assert (
        resume_settings(
            resolve_settings(SearchRun(name="x", resume=True)), {"cache": "/elsewhere"}
        ).machine.cache
        == "/elsewhere"
    )
    homely = RunSpec(storage="~/results/", cache="~/cache", general_tasks=["~/task.yaml"])
    assert (homely.storage, homely.machine.cache) == (f"{home}/results", f"{home}/cache")
    assert homely.general_tasks == (f"{home}/task.yaml",)
    for study, kept in (
        ("study.db", f"{here}/study.db"),
        ("sqlite:///study.db", f"sqlite:///{here}/study.db"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://me@host/name", "postgresql://me@host/name"),
    ):
        assert resolve_settings(SearchRun(study=study)).study == kept


def test_an_address_of_another_form_is_no_secret():
    place = "hdfs://namenode:8020/user/me@example.org/results"
    assert RunSpec(storage=place).storage == place


def test_trust_is_taken_from_the_command_line_alone():
    """What goes on from a best.yaml always says it, so that the file never does."""
    for trusted in (True, False):
        for args in GOING_ON:
            assert (
                overrides_from(args(config="best.yaml", trust_remote_code=trusted))["trust_remote_code"]
                is trusted
            )


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


def test_a_budget_that_ends_k_comes_with_the_command_of_twice_that():
    """Which is the same search but for that flag; without a budget the backbone alone ends k."""
    asked = SearchRun(backbone="smollm2-135m", max_new_params="7.5%", trials=9, range=("k=1:3",))
    sources = SimpleNamespace(layers=30)
    found = limit_k(asked, sources, 2)
    assert (found.layers, found.most, found.budget) == (30, 2, "--max-new-params 7.5%")
    script, *flags = shlex.split(found.dearer)[1:]
    assert script == "scripts/tune_k.py"
    again = parse_flags(SearchRun, "", flags)
    assert (again.max_new_params, again.trials, again.range) == ("15%", 9, ())
    assert limit_k(SearchRun(), sources, 30) == DepthLimit(30, 30)


@pytest.mark.parametrize(
    ("advised", "head"),
    [(None, "k = 2   layers"), (2, "k = 2   layers"), (0, "advice: k = 0   exported: k = 2   layers")],
)
def test_the_summary_begins_with_the_k_that_is_advised(tmp_path, capsys, advised, head):
    """Where that isn't the exported one both are named."""
    side = {"before_bpb": 1.0, "after_bpb": 0.9, "delta": 10.0, "standard_error": 0.1}
    work = SimpleNamespace(training=TrainingSpec(k=2), layers=(1, 3))
    made = SimpleNamespace(importance={"layers": []})
    test = {"general": side, "domain": side}
    show_summary(Display(), "Because.", test, work, made, Results(str(tmp_path), "run"), advised)
    assert capsys.readouterr().out.startswith(f"\n{head} copied: 1 3\nBecause.\n")


def test_a_resumed_run_may_be_narrowed_to_the_defaults():
    """One worker, one trial at a time, no fewest number: what is given holds, at its usual value too."""
    begun = SearchRun(name="x", workers=4, min_workers=2, concurrent=3).model_dump(mode="json")
    asked = SearchRun(name="x", resume=True, workers=1, min_workers=0, concurrent=1)
    narrow = resume_settings(resolve_settings(asked), begun)
    assert (narrow.machine.workers, narrow.machine.min_workers, narrow.concurrent) == (1, 0, 1)
    with pytest.raises(UserError, match="resuming 'x': min_workers is 2, more than workers, 1"):
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


def test_a_resumed_run_may_go_on_with_fewer_of_the_workers_that_it_began_with():
    """How many those are is known from the run alone, and too many are still refused."""
    begun = SearchRun(name="x", workers=4).model_dump(mode="json")
    for further in ({"resume": True}, {"more_trials": 2}):
        elastic = resume_settings(SearchRun(name="x", min_workers=2, **further), begun)
        assert (elastic.machine.workers, elastic.machine.min_workers) == (4, 2)
        with pytest.raises(UserError, match="resuming 'x': min_workers is 5, more than workers, 4"):
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


def test_what_was_found_is_read_from_a_bucket(s3, tmp_path):
    """As the summary names it; one that isn't there is a sentence."""
    s3.create_bucket(Bucket="found")
    parts = {"run": {}, "training": {}, "layers": [1], "score": {}, "k_max": 2}
    s3.put_object(Bucket="found", Key="mine/best.yaml", Body=json.dumps(parts).encode())
    (tmp_path / "best.yaml").write_text(json.dumps(parts))
    assert load_best("s3://found/mine/best.yaml") == load_best(tmp_path / "best.yaml") == parts
    with pytest.raises(UserError, match=r"s3://found/other/best.yaml: can't be read: "):
        load_best("s3://found/other/best.yaml")


def test_a_full_disk_says_how_to_go_on(small):
    """One sentence: which file, what to do, the command; other errors stay what they are."""
    run = SearchRun(name="x", storage=str(small))
    results = Results(run.storage, run.name)
    with pytest.raises(UserError) as told, explain_stops("tune-k", run, results, Display()):
        results.write_json("importance.json", {"layers": list(range(100_000))})
    assert str(told.value) == (
        f"no space left for {small}/x/importance.json: make room and go on with "
        f"python scripts/tune_k.py --name x --resume --storage {small}"
    )
    with pytest.raises(UserError) as told, explain_stops("tune-k", run, results, Display()):
        raise UnfinishedRun("its workers are gone")
    assert str(told.value) == (
        "its workers are gone; what is finished is kept: go on with "
        f"python scripts/tune_k.py --name x --resume --storage {small}"
    )
    with (
        pytest.raises(OSError, match="another fault"),
        explain_stops("tune-k", run, results, Display()),
    ):
        raise OSError("another fault")


def at(seconds, **stages):
    """A display at so many seconds of a command."""
    return SimpleNamespace(seconds=stages, total=lambda: seconds)


MADE_UP = SimpleNamespace(
    backbone=SimpleNamespace(name="tiny", note="ours"),
    general=SimpleNamespace(name="boolq", note="CC"),
    fingerprints={"backbone": "0123"},
    domain=None,
)
MADE = SimpleNamespace(fingerprints={"backbone": "0123"})


def test_what_the_commands_of_a_run_spent_adds_up(tmp_path, monkeypatch):
    """One that was stopped, one that came to the end, one that extended it; and the most memory of all."""
    run, results = SearchRun(name="x", storage=str(tmp_path)), Results(str(tmp_path), "x")
    peaks = iter([3.0, 5.0, 2.0])
    monkeypatch.setattr(Memory, "peak_gib", lambda: next(peaks))
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py", "--trials", "2"])
    record_run(results, run, at(1), MADE_UP)
    with pytest.raises(InterruptedRun), explain_stops("", run, results, at(20, probe=10, search=5)):
        raise KeyboardInterrupt
    assert not has_ended(results.read_record())
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py", "--resume"])
    record_run(results, run, at(1), MADE_UP)
    record_run(results, run, at(7, search=4.5, test=1), MADE_UP, MADE)
    ended = results.read_record()
    assert ended["seconds"] == {"probe": 10, "search": 9.5, "test": 1, "total": 27}
    assert ended["peak_memory_gib"] == 5 and "spent" not in ended and has_ended(ended)
    assert ended["command"] == "python scripts/tune_k.py --trials 2"
    record_run(results, run, at(1), MADE_UP)
    record_run(results, run, at(3, search=2), MADE_UP, MADE)
    assert results.read_record()["seconds"] == {"probe": 10, "search": 11.5, "test": 1, "total": 30}
    assert results.read_record()["peak_memory_gib"] == 5


def test_results_stay_whole_while_a_search_is_extended(tmp_path):
    """Cut off, it has what it was finished with, and is to be resumed first; at its end no pick holds."""
    run, results = SearchRun(name="x", storage=str(tmp_path)), Results(str(tmp_path), "x")
    record_run(results, run, at(9, search=8), MADE_UP, MADE)
    results.write_json("run.json", results.read_record() | {"pick": {"general": 0.7}})
    whole = results.read_record()
    asked = SearchRun(name="x", storage=str(tmp_path), more_trials=2)
    results.write_json("trials.json", {"trials": [{"state": "finished"}] * 8})
    longer = continue_search(asked, results)
    assert longer.trials == 10
    record_run(results, longer, at(1), MADE_UP)
    assert {**results.read_record(), "run": whole["run"], "ended": True} == whole
    with pytest.raises(UserError, match="isn't finished"):
        continue_search(asked, results)
    record_run(results, longer, at(2, search=1), MADE_UP, MADE)
    assert "pick" not in results.read_record() and continue_search(asked, results).trials == 10


SPACE = "parameters: {k: {int: [1, 3]}, base_lr: {log: [0.001, 0.1]}}\nfirst: [{k: 2, base_lr: 0.02}]\n"


def test_a_search_goes_on_with_the_space_that_it_began_with(tmp_path, said):
    """An edited file, or one that is gone, is told of; one that only has another comment isn't."""
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    run = SearchRun(name="x", storage=str(tmp_path), search_space=file, range=("k=1:4",))
    begun, results = load_space(run, {}), Results(str(tmp_path), "x")
    record_run(results, run, at(1), MADE_UP, space=begun)
    file.write_text(f"# the same\n{SPACE}")
    assert load_space(run, results.read_record(), said.say) == begun and not said.lines
    file.write_text(SPACE.replace("[1, 3]", "[1, 2]").replace("0.001", "0.01"))
    assert load_space(run, results.read_record(), said.say) == begun
    assert "space.yaml isn't what the search 'x' began with any more" in said.lines[0]
    file.unlink()
    assert load_space(run, results.read_record(), said.say) == begun and len(said.lines) == 2
    with pytest.raises(UserError, match="no such file"):
        load_space(run, {"run": {}})  # an older folder keeps none


# --- a training at full length that goes on -----------------------------------------------------------

FOUND = {
    "run": resolve_settings(RunSpec(seq_len=64)).model_dump(mode="json"),
    "training": TrainingSpec(k=2, base_lr=0.002).model_dump(mode="json"),
}


def going(text="--tokens 1000 --workers 8 --micro-batch 2 --cache /c --reports 20", name="full"):
    """What run.json of a training that began with these flags holds."""
    args = parse_flags(TrainRun, "", ["--config", "best.yaml", "--name", name, *text.split()])
    run = resolve_settings(RunSpec(**{**FOUND["run"], **overrides_from(args)}))
    training = {**FOUND["training"], "tokens": args.tokens, "reports": args.reports}
    return {"run": run.model_dump(mode="json"), "training": training}


def resumed(begun, *words, best=FOUND):
    """The settings of the command that a training prints when it is interrupted, with more `words`."""
    printed = format_resume_command("train --config best.yaml --tokens 1000", RunSpec(**begun["run"]))
    return resume_training(parse_flags(TrainRun, "", [*shlex.split(printed)[2:], *words]), best, begun)


def test_the_printed_command_goes_on_with_the_training_that_was_interrupted():
    """With all that it was given then; what no loss depends on may be given anew."""
    begun = going("--tokens 1000 --workers 8 --min-workers 2 --precision bfloat16 --cache /c --reports 20")
    run, training = resumed(begun)
    assert run.model_dump(mode="json") == begun["run"] and training == TrainingSpec(**begun["training"])
    assert (run.machine.workers, run.machine.precision, run.machine.cache, training.reports) == (
        8,
        "bfloat16",
        "/c",
        20,
    )
    fewer, _ = resumed(begun, "--workers", "3", "--cache", "/d", "--json")
    assert (fewer.machine.workers, fewer.machine.min_workers, fewer.machine.cache, fewer.json_lines) == (
        3,
        2,
        "/d",
        True,
    )
    wide, _ = resumed(begun, "--min-workers", "5")
    assert (wide.machine.workers, wide.machine.min_workers) == (8, 5)


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
        resumed(going(), *words.split())


def test_a_training_goes_on_with_its_own_best_yaml():
    """Another one's is refused, whether other settings were searched or on other text; so is a search."""
    for best, sentence in (
        ({**FOUND, "training": {**FOUND["training"], "k": 3}}, "k is 3, but the training .* began with 2"),
        ({**FOUND, "run": {**FOUND["run"], "domain": "math"}}, "best.yaml: domain is math, but .* medical"),
    ):
        with pytest.raises(UserError, match=sentence):
            resumed(going(), best=best)
    begun = going()
    del begun["training"]
    with pytest.raises(UserError, match="'full' is no training at full length"):
        resumed(begun)


# --- picking ------------------------------------------------------------------------------------------


def test_what_goes_on_from_a_search_has_its_cache():
    """Unless another one is given: of a search with a cache of its own nothing is measured twice."""
    assert "cache" not in overrides_from(
        parse_flags(TrainRun, "", ["--config", "best.yaml", "--tokens", "9"])
    )
    assert "cache" not in overrides_from(parse_flags(ActivationsRun, "", ["--config", "best.yaml"]))
    searched = SearchRun(cache="s3://b/c", workers=2, min_workers=1, concurrent=3)
    same = override_machine(searched, parse_flags(PickRun, "", ["results/x"]))
    assert (same.machine.cache, same.machine.workers, same.machine.min_workers, same.concurrent) == (
        "s3://b/c",
        2,
        0,
        1,
    )
    other = override_machine(
        searched, parse_flags(PickRun, "", ["results/x", "--cache", "/d/", "--workers", "1"])
    )
    assert (other.machine.cache, other.machine.workers) == ("/d", 1)


def test_what_is_picked_has_its_edges_and_all_trials_have_their_say(tmp_path):
    """Though it is chosen among those alone whose weights were kept."""
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    run = SearchRun(search_space=file, pareto=True)
    rows = [
        {
            "trial": f"trial-{number}",
            "k": 1 + number % 3,
            "base_lr": 0.001 * 2**number,
            "state": "finished",
            "score": float(number),
            "score_se": 0.1,
            "general_delta": float(-number),
            "domain_delta": 3.0 * number,
            "tokens": 4096,
            "pulls": {"general": [0.0, 0.1], "domain": [0.1 * number, 0.0]},
        }
        for number in range(6)
    ]
    kept = [{**row, "state": row["state"] if row["trial"] == "trial-2" else "given up"} for row in rows]
    space = load_space(run, {})
    choice, row = choose_trial(run, space, rows, DepthLimit(6, 6), kept)
    assert choice.trial == row["trial"] == "trial-2" and choice.k == 3
    assert [edge.parameter for edge in choice.edges] == ["k"]
    assert set(choice.hyperparameters) == {"k", "base_lr"} and len(choice.front) == 6
    assert choose_trial(run, space, rows, DepthLimit(6, 6))[0].trial != "trial-2"


def test_the_curves_are_those_of_the_table(tmp_path):
    """Written with it, so by the same weights: a trial's last reading has the score of its row."""
    deltas = {"general_delta": -1.0, "domain_delta": 4.0}
    ends = {"step": 8, "tokens": 512, "score": 1.5, "loss": 3.0, **deltas}
    pulls = {"general": [0.1, -0.1], "domain": [0.0, 0.0]}
    metrics = {**ends, "score_se": 0.1, "pulls": pulls, "curve": [{**ends, "step": 4, "tokens": 256}, ends]}
    trial = describe_trial("trial-001", {"k": 1}, metrics, "finished", (2,))
    results = Results(str(tmp_path), "picked")
    results.open(resume=False)
    for weights, score in ((ScoreWeights(), 1.5), (ScoreWeights(general=1, domain=0), -1.0)):
        write_trials(results, rescore([trial], weights))
        readings = [json.loads(line) for line in (results.folder / "curves.jsonl").read_text().splitlines()]
        (table,) = json.loads((results.folder / "trials.json").read_text())["trials"]
        assert [(each["tokens"], each["score"]) for each in readings] == [(256, score), (512, score)]
        assert table["score"] == score and readings == [{"trial": "trial-001", **r} for r in table["curve"]]
