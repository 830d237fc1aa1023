"""Bad input on the command line: one clear sentence on stderr, status 2, nothing expensive started."""

import gzip
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from common import save_backbone_with_code, save_tiny_backbone, write_corpus

from adept_ray.commands import probe, train, tune_k
from adept_ray.config.errors import UserError
from adept_ray.config.search_space import load_search_space
from adept_ray.config.specs import CompareRun, PickRun, ProbeRun, RunSpec, SearchRun, TrainRun
from adept_ray.data.backbones import ON_GPUS, PRESETS
from adept_ray.data.corpus_texts import BOOLQ
from adept_ray.report.rerun import format_flags
from adept_ray.run import full_training, search_settings
from adept_ray.run.flags import parse_flags, run_command
from adept_ray.run.settings import resolve_settings
from adept_ray.storage.files import write_text

COMMANDS = {"find_k": SearchRun, "probe_layers": ProbeRun, "train_model": TrainRun}
MODULES = {"find_k": tune_k, "probe_layers": probe, "train_model": train}
RESOLVING = (search_settings, probe, full_training)  # where a command's settings are made definite


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a tiny backbone of four layers and two corpora."""
    folder = tmp_path_factory.mktemp("room")
    save_tiny_backbone(folder / "backbone")
    write_corpus(folder / "general.jsonl", seed=1)
    write_corpus(folder / "domain.jsonl", seed=2, domain="medical")
    return folder


@pytest.fixture
def refusal(room, tmp_path, monkeypatch, capsys):
    """A function that runs a command with flags and returns the one sentence with which it refuses."""

    def run(command="find_k", **flags):
        given = {"cache": tmp_path / "cache", "storage": tmp_path / "results"}
        if command != "train_model":
            given |= {
                "backbone": room / "backbone",
                "general": room / "general.jsonl",
                "domain": room / "domain.jsonl",
            }
        given |= flags
        argv = [command]
        for name, value in given.items():
            flag = "--" + name.replace("_", "-")
            argv += [flag] if value is True else [flag, str(value)]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
        monkeypatch.setattr(
            "adept_ray.data.assets._download_wheel", lambda *_: pytest.fail("something was fetched")
        )
        with pytest.raises(SystemExit) as exit_:
            run_command(COMMANDS[command], f"{MODULES[command].__name__.rpartition('.')[2]}.{command}", "")
        printed = capsys.readouterr().err.strip()
        assert exit_.value.code == 2
        assert printed.startswith("error: ") and "Traceback" not in printed
        return printed.splitlines()[-1].removeprefix("error: ")

    return run


def space_file(folder, text):
    """A search-space file with the given parameters."""
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"backbone": "smolm2-135m"}, ["smolm2-135m", "did you mean smollm2-135m"]),
        ({"domain": "medicla"}, ["medicla", "did you mean medical"]),
        ({"general": "/no/such/file.jsonl"}, ["/no/such/file.jsonl", "no such file"]),
        ({"text_column": "body"}, ["no column 'body'", "text"]),
        ({"workers": 4000}, ["--workers 4000", "CPUs"]),
        ({"gpus_per_worker": 64}, ["--gpus-per-worker 64", "--gpus-per-worker 0"]),
        ({"trials": 0}, ["--trials: ", "greater than or equal to 1"]),
        ({"domain_tasks": "/no/such/task.yaml"}, ["task /no/such/task.yaml", "no such file"]),
        ({"seq_len": 2}, ["--seq-len: ", "greater than or equal to 8"]),
        ({"seq_len": 100_000}, ["--seq-len 100000", "takes at most"]),
        ({"storage": "/proc/nowhere"}, ["/proc/nowhere", "can't be written"]),
        ({"cache": "/proc/nowhere"}, ["/proc/nowhere", "no such file or folder", "--cache takes another"]),
        ({"storage": "nosuchscheme://bucket"}, ["nosuchscheme://bucket", "not a URI"]),
        ({"storage": "s3://me:passed@bucket"}, ["--storage: ", "leave it to the environment"]),
        ({"cache": "s3://me:pas/sed@bucket/cache?region=x"}, ["--cache: ", "leave it to the environment"]),
        ({"study": "nosuch://host/name"}, ["--study nosuch://host/name can't be opened", "sqlite:///FILE"]),
        ({"range": "k=4:1"}, ["--range k=4:1", "empty"]),
        ({"max_new_params": "many"}, ["--max-new-params many", "10%"]),
        ({"max_new_params": "10"}, ["--max-new-params 10: k = 1, the smallest", "adds"]),
        ({"max_hours": 0}, ["--max-hours: ", "greater than 0"]),
        ({"more_trials": 3, "name": "unknown"}, ["holds no run to resume"]),
        ({"search_space": "/no/such/space.yaml"}, ["/no/such/space.yaml", "no such file"]),
        ({"search_space": "quik"}, ["unknown search space 'quik'", "did you mean quick"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_flag_is_named_with_what_would_be_right(refusal, flags, parts):
    """The sentence names the flag's value and the remedy."""
    sentence = refusal(**flags)
    assert all(part in sentence for part in parts) and "sed@" not in sentence, sentence


def bad_corpus(folder, kind):
    """Write a corpus with a fault; returns its path."""
    path = folder / {"truncated": "text.jsonl.gz"}.get(kind, "text.jsonl")
    rows = "".join(json.dumps({"text": f"a line of text, number {i}"}) + "\n" for i in range(50))
    content = {
        "empty": b"",
        "latin-1": rows.encode() + b'{"text": "caf\xe9"}\n',
        "truncated": gzip.compress(rows.encode())[:-20],
        "cut": (rows + '{"text": "half').encode(),
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "part"),
    [("empty", "empty"), ("latin-1", "not UTF-8"), ("truncated", "truncated"), ("cut", "line 51")],
)
def test_a_damaged_corpus_is_named_with_its_fault(refusal, tmp_path, kind, part):
    """The sentence names the file and what is wrong with it."""
    path = bad_corpus(tmp_path, kind)
    sentence = refusal(domain=path)
    assert path.name in sentence and part in sentence


def test_a_folder_without_config_is_no_backbone(refusal, tmp_path):
    """A folder without config.json is refused by name."""
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(backbone=tmp_path / "empty")


def test_a_type_that_cannot_be_expanded_is_refused_with_the_reason(refusal, room, tmp_path):
    """What it is made of is found by the config alone, before any weight is loaded."""
    folder = Path(shutil.copytree(room / "backbone", tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    sentence = refusal(backbone=folder)
    assert "models of type 'bert' can't be expanded: a layer ends in a norm" in sentence


def test_a_backbone_with_its_own_code_is_refused_without_trust(refusal, tmp_path, capsys):
    """Before anything is loaded, and without a question on the terminal."""
    folder = save_backbone_with_code(tmp_path / "own", tmp_path / "marker")
    capsys.readouterr()  # what saving said
    sentence = refusal(backbone=folder)
    assert str(folder) in sentence and "--trust-remote-code" in sentence
    assert not (tmp_path / "marker").exists()


def test_no_file_can_ask_for_trust(refusal, tmp_path, monkeypatch, capsys):
    """A best.yaml or a results folder of somebody else can name a backbone; only the flag runs its code."""
    path = tmp_path / "best.yaml"
    path.write_text("{run: {trust_remote_code: true}, training: {}, layers: [], score: {}, k_max: 1}")
    assert "was made with --trust-remote-code" in refusal("train_model", config=path, tokens=1000)
    (tmp_path / "run.json").write_text('{"run": {"trust_remote_code": true}, "seconds": {}}')
    (tmp_path / "trials.json").write_text('{"trials": []}')
    monkeypatch.setattr(sys, "argv", ["pick.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        run_command(PickRun, "pick.pick_trial", "")
    assert "was made with --trust-remote-code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("parameters: {k: {int: [1, 9]}}", ["k is 9", "4"]),
        ("parameters: {k: {int: [-1, 2]}}", ["k", "-1"]),
        ("parameters: {k: {int: [3, 1]}}", ["[3, 1]", "empty"]),
        ("parameters: {k: {int: [1, 2]}, base_lr: {log: [1e-5, 1e-3]}}", ["base_lr", "'1e-5' is a string"]),
        ("parameters: {k: {int: [1, 2]}, bse_lr: {log: [0.1, 1.0]}}", ["bse_lr", "did you mean base_lr"]),
        ("parameters: {base_lr: {log: [0.1, 1.0]}}", ["'k' is missing"]),
        ("parameters: [", ["YAML"]),
    ],
)
def test_a_wrong_search_space_is_refused(refusal, tmp_path, text, parts):
    """The sentence names the file's parameter and its fault."""
    sentence = refusal(search_space=space_file(tmp_path, text))
    assert all(part in sentence for part in parts), sentence


def test_a_name_that_exists_is_not_overwritten(refusal, tmp_path):
    """Without --resume an existing results folder is left alone."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert "exists" in refusal(name="mine") and "--resume" in refusal(name="mine")
    assert (folder / "run.json").read_text() == "{}"


def test_more_trials_are_for_a_finished_search(refusal, tmp_path, room):
    """An unfinished one goes on first; what an extended or resumed search was for can't be changed."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    begun = {"backbone": str(room / "backbone"), "name": "mine", "precision": "float32"}
    begun |= {side: str(room / f"{side}.jsonl") for side in ("general", "domain")}
    (folder / "run.json").write_text(json.dumps({"run": begun}))
    assert "isn't finished, so go on with --resume" in refusal(name="mine", more_trials=2)
    assert "--pareto True: the run 'mine' began with False" in refusal(name="mine", resume=True, pareto=True)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no search"),
        ({"run.json": {"run": {}}}, "holds no finished search"),
        ({"run.json": {"run": {}, "seconds": {}}}, "holds no finished search"),
        ({"run.json": {"run": {}, "seconds": {}}, "trials.json": {"trials": []}}, "no candidates any more"),
    ],
)
def test_there_is_nothing_to_pick_from(tmp_path, monkeypatch, capsys, files, words):
    """Nothing there, an unfinished run, an older one, one whose weights are gone: a sentence each."""
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "best.yaml").write_text("{run: {}, training: {}, layers: [], score: {}, k_max: 1}")
    monkeypatch.setattr(sys, "argv", ["pick.py", str(tmp_path), "--general", "0.7"])
    with pytest.raises(SystemExit) as exit_:
        run_command(PickRun, "pick.pick_trial", "")
    assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(small, monkeypatch, capsys):
    """A command that nothing goes on from names the file and asks for room."""
    monkeypatch.setattr(probe, "probe_layers", lambda run: write_text(small / "run.json", 200_000 * "x"))
    monkeypatch.setattr(sys, "argv", ["probe.py"])
    with pytest.raises(SystemExit) as exit_:
        run_command(RunSpec, "probe.probe_layers", "")
    said = f"error: no space left for {small}/run.json: make room and give the command again\n"
    assert exit_.value.code == 2 and capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("find_k", "--strategy grow --trials 8", "--trials is for independent trials: leave it out with"),
        ("find_k", "--name x --report-only --min-gain-per-layer 0.5", "--min-gain-per-layer is for a search"),
        ("find_k", "--name x --report-only --pareto", "--pareto is for a search: leave it out with --report"),
        ("find_k", "--name x --report-only --resume", "--resume is for a search"),
        ("probe_layers", "--score bpb", "--score is for models that are trained: there is none in a probe"),
        ("probe_layers", "--domain-tasks offline_piqa", "--domain-tasks is for models that are trained"),
        ("probe_layers", "--task-items 200", "--task-items is for"),
        ("probe_layers", "--test-tokens 4096", "--test-tokens is for"),
        ("probe_layers", "--remeasure-tokens 64", "--remeasure-tokens is for"),
        ("probe_layers", "--domain medical", "--domain is for"),
        ("probe_layers", "--compile on", "--compile is for"),
    ],
)
def test_a_flag_that_nothing_goes_by_is_refused(monkeypatch, command, words, sentence):
    """Though it may be at its usual value: who gives it expects something of it."""
    for module in RESOLVING:
        monkeypatch.setattr(module, "resolve_settings", lambda *_: pytest.fail("it was taken"))
    with pytest.raises(UserError, match=sentence):
        getattr(MODULES[command], command)(parse_flags(COMMANDS[command], "", words.split()))


def test_what_a_preset_or_a_search_space_brings_is_not_given(monkeypatch):
    """So a growth takes a space that says how many trials, and a probe a preset with its sizes."""
    for module in RESOLVING:
        monkeypatch.setattr(module, "resolve_settings", lambda *_: (_ for _ in ()).throw(InterruptedError))
    for command, words in (
        ("find_k", "--strategy grow --search-space quick"),
        ("probe_layers", "--backbone qwen3-8b"),
    ):
        with pytest.raises(InterruptedError):
            getattr(MODULES[command], command)(parse_flags(COMMANDS[command], "", words.split()))
    assert parse_flags(SearchRun, "", ["--backbone", "qwen3-8b"]).given == {"backbone"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SearchRun, "--workers 0"),
        (SearchRun, "--concurrent 0"),
        (SearchRun, "--min-workers 3 --workers 2"),
        (SearchRun, "--gpus-per-worker 1.5"),
        (SearchRun, "--near-duplicates 2"),
        (SearchRun, "--general a=x"),
        (CompareRun, "--replay 1"),
        (PickRun, "--general 2 RESULTS"),
    ],
)
def test_a_value_is_refused_by_the_name_of_its_flag(spec, words):
    """Not by that of a field, which files have: the sentence begins with what was typed."""
    with pytest.raises(UserError, match=rf"^{words.split()[0]}[ :]"):
        parse_flags(spec, "", words.split())


def test_every_training_of_a_comparison_needs_a_block():
    """Of its own text, however often it goes through it."""
    with pytest.raises(UserError) as refused:
        parse_flags(CompareRun, "", ["--seq-len", "1024", "--passes", "8"])
    assert str(refused.value) == (
        "--tokens 6144 in --passes 8: 768 distinct tokens don't fill a block of "
        "--seq-len 1024: raise --tokens, or lower one of the others"
    )
    assert parse_flags(CompareRun, "", ["--seq-len", "1024", "--passes", "6"]).passes == 6


def test_nothing_to_resume_is_said(refusal):
    """--resume of a name under which nothing began is refused."""
    assert "holds no run to resume" in refusal(name="unknown", resume=True)


def test_a_tampered_asset_is_refused(refusal, tmp_path):
    """An asset in the cache whose bytes are not the pinned ones is never used."""
    path = tmp_path / "cache" / "assets" / BOOLQ.member_sha256[:16] / Path(BOOLQ.member).name
    path.parent.mkdir(parents=True)
    path.write_text('{"passage": "not the pinned text"}\n')
    sentence = refusal(general="boolq")
    assert str(path) in sentence and "sha256 differs" in sentence


def test_a_configuration_without_its_parts_is_refused(refusal, tmp_path):
    """train.py wants the best.yaml of a search."""
    path = tmp_path / "best.yaml"
    path.write_text("run: {}\n")
    assert "no 'training' in it" in refusal("train_model", config=path, tokens=1000)


# --- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if PRESETS[name].sizes))
def test_a_preset_brings_its_sizes(name):
    """Blocks of 4,096 tokens on a GPU, the paper's interval first; what the command line gives holds."""
    run = parse_flags(SearchRun, "", ["--backbone", name, "--validation-tokens", "8192"])
    assert (run.seq_len, run.machine.gpus_per_worker, run.validation_tokens) == (4096, 1, 8192)
    assert run.machine.dtype == "bfloat16" and run.machine.micro_batch in (1, 2, 4)
    space = load_search_space(run.search_space)
    (first,) = space.first
    assert first["k"] == 4 and first["recompute_every"] == 500
    assert run.tokens_per_trial / first["tokens_per_step"] > 2 * first["recompute_every"]
    assert run.probe_tokens % run.seq_len == run.remeasure_tokens % run.seq_len == 0
    rivals = parse_flags(CompareRun, "", ["--backbone", name])
    assert (rivals.tokens_per_step, rivals.recompute_every) == (16_384, 500)


def test_a_flag_of_its_usual_value_beats_the_preset():
    """Though it looks as if it had not been given."""
    usual = SearchRun().seq_len
    assert parse_flags(SearchRun, "", ["--backbone", "qwen3-8b", "--seq-len", str(usual)]).seq_len == usual


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], set()),
        (["--workers", "1", "--no-dashboard", "--max-trials=8"], {"workers", "dashboard", "trials"}),
        (["--json", "--range", "k=1:2", "--max-hours", "None"], {"json_lines", "range", "max_hours"}),
        (["--name", "x", "--resume", "--search_space", "a.yaml"], {"name", "resume", "search_space"}),
    ],
)
def test_a_run_knows_which_flags_were_given(words, given):
    """Those at their usual value among them; a run that goes on changes nothing else."""
    run = parse_flags(SearchRun, "", ["--name", "x", "--resume", *words])
    assert run.given == resolve_settings(run).model_fields_set == given | {"name", "resume"}


def test_a_given_place_is_among_them():
    assert parse_flags(PickRun, "", ["results/x"]).given == {"results"}


def test_other_backbones_keep_the_usual_defaults():
    assert parse_flags(SearchRun, "", ["--backbone", "smollm2-135m"]) == SearchRun()
    assert parse_flags(SearchRun, "", ["--backbone", "Qwen/Qwen3-8B-Base"]).seq_len == SearchRun().seq_len
    assert set(ON_GPUS) <= set(SearchRun.flat_fields()) | set(CompareRun.flat_fields())


def test_a_search_space_brings_its_sizes():
    """Over the preset's; a flag holds against both, and what goes on keeps what it began with."""
    quick = ["--search-space", "quick"]
    usual = SearchRun()
    found = parse_flags(SearchRun, "", quick)
    assert (found.trials, found.tokens_per_trial, found.seq_len) == (4, 2048, usual.seq_len)
    assert parse_flags(SearchRun, "", [*quick, "--max-trials", "8"]).trials == 8
    assert parse_flags(SearchRun, "", [*quick, "--backbone", "qwen3-8b"]).probe_tokens == found.probe_tokens
    assert parse_flags(SearchRun, "", [*quick, "--name", "x", "--more-trials", "2"]).trials == usual.trials


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--backbone", "qwen3-8b", "--workers", "2", "--no-dashboard"],
        ["--domain-tasks", "offline_piqa", "medqa", "--max-hours", "1.5", "--pareto", "--seed", "3"],
        ["--precision", "bfloat16", "--max-new-params", "10%", "--study", "sqlite:///a.db"],
    ],
)
def test_a_search_can_say_with_which_flags_it_began(words):
    """They make the same settings again, but for its name."""
    run = resolve_settings(parse_flags(SearchRun, "", words))
    again = resolve_settings(parse_flags(SearchRun, "", shlex.split(format_flags(run))))
    assert again.model_copy(update={"name": run.name}) == run


def test_a_resumed_run_takes_no_sizes_from_the_preset():
    """It has those that it began with: a preset's would contradict them."""
    words = ["--backbone", "qwen3-8b", "--name", "x", "--resume"]
    assert parse_flags(SearchRun, "", words).seq_len == SearchRun().seq_len


def test_help_shows_the_sizes_of_the_preset(capsys):
    with pytest.raises(SystemExit):
        parse_flags(SearchRun, "", ["--backbone", "qwen3-8b", "--help"])
    assert "20971520" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--domain", "a.jsonl=3", "--domain", "hf:owner/name=1"],
        ["--domain", "a.jsonl=3", "hf:owner/name"],
        ["--domain=a.jsonl=3", "--seed", "4", "--domain=hf:owner/name"],
    ],
)
def test_a_flag_takes_several_corpora(words):
    """Given again, or one after the other, they are one list; other flags between them are their own."""
    run = parse_flags(SearchRun, "", [*words, "--trials", "2"])
    assert run.domain == RunSpec(domain=["a.jsonl=3", "hf:owner/name=1"]).domain
    assert str(run.general) == "boolq" and run.trials == 2 and run.seed == (4 if "--seed" in words else 0)
    assert parse_flags(SearchRun, "", shlex.split(format_flags(run))).domain == run.domain


def test_a_flag_without_a_corpus_is_refused():
    """It names none, which is a sentence and not a traceback."""
    with pytest.raises(UserError, match=r"^--domain: names no corpus"):
        parse_flags(SearchRun, "", ["--domain", "--seed", "4"])
