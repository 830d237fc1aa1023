"""The console command: it equals the scripts, answers at once, and says in its own words how to go on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adept_ray
from adept_ray.commands import main as console
from adept_ray.commands.main import COMMANDS, call_command, main
from adept_ray.config import calls
from adept_ray.config.calls import format_command, format_own_call
from adept_ray.config.errors import InterruptedRun

ROOT = Path(__file__).parents[2]
SCRIPTS = {path.stem.replace("_", "-"): path for path in sorted((ROOT / "scripts").glob("*.py"))}


def run_console(*words):
    """The console command as a process of its own."""
    command = [sys.executable, "-m", "adept_ray.commands.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_script_is_a_command_and_every_command_a_script():
    """The two ways to call the project offer the same."""
    assert set(SCRIPTS) == set(COMMANDS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_calls_its_command(name):
    """A script only calls the command of its name, and its docstring begins with that one's purpose."""
    text = SCRIPTS[name].read_text()
    assert text.endswith(f'if __name__ == "__main__":\n    call_command("{name}")\n')
    assert ast.get_docstring(ast.parse(text)).partition("\n\n")[0] == COMMANDS[name].purpose


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_what_the_registry_names(name, monkeypatch):
    """The function is there, and gets the flags as its specification."""
    module, _, function = COMMANDS[name].function.partition(".")
    given = []
    monkeypatch.setattr(f"adept_ray.commands.{module}.{function}", given.append)
    needed = {"train": ["--config", "best.yaml", "--tokens", "9"], "activations": ["--config", "best.yaml"]}
    words = needed.get(name, ["folder"] if name in ("pick", "evaluate", "chat") else [])
    monkeypatch.setattr(sys, "argv", ["adept-ray", name, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and [type(each) for each in given] == [COMMANDS[name].spec]


def test_the_command_and_its_script_give_the_same_help(monkeypatch, capsys):
    """But for the name in the first line."""
    helps = {}
    for program, words in (("adept-ray", ["probe"]), ("scripts/probe.py", [])):
        monkeypatch.setattr(sys, "argv", [program, *words, "--help"])
        with pytest.raises(SystemExit):
            main() if words else call_command("probe")
        helps[program] = capsys.readouterr().out
    assert "usage: adept-ray probe [-h]" in helps["adept-ray"]
    assert helps["adept-ray"].replace("adept-ray probe", "scripts/probe.py") == helps["scripts/probe.py"]


@pytest.mark.slow
def test_the_help_names_every_command():
    """Each with what it is for; without a word the same goes to stderr, since nothing was done."""
    asked, bare = run_console("--help"), run_console()
    assert (asked.returncode, bare.returncode) == (0, 2) and asked.stdout == bare.stderr
    assert all(name in asked.stdout and COMMANDS[name].purpose in asked.stdout for name in COMMANDS)


@pytest.mark.slow
def test_the_version_is_that_of_the_package():
    """As in ``adept_ray.__version__``."""
    assert run_console("--version").stdout == f"adept-ray {adept_ray.__version__}\n"


@pytest.mark.slow
def test_an_unknown_command_is_refused_with_the_nearest():
    """In one sentence, with status 2."""
    done = run_console("tune_k", "--trials", "2")
    said = "error: unknown command 'tune_k': did you mean tune-k?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.slow
def test_the_console_command_answers_without_torch_and_ray():
    """Importing it and the parser of flags loads nothing that takes seconds."""
    code = "import sys, adept_ray.commands.main, adept_ray.run.flags; "
    code += "sys.exit(bool({'torch', 'ray', 'transformers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_is_printed_to_go_on_can_be_typed(monkeypatch, capsys):
    """A script names itself, and the console command names itself."""

    def stop(run):
        raise InterruptedRun(format_command(f"tune-k --name {run.name} --resume"))

    monkeypatch.setattr("adept_ray.commands.tune_k.find_k", stop)
    for call, argv in ((main, ["bin/adept-ray", "tune-k"]), (lambda: call_command("tune-k"), ["tune_k.py"])):
        monkeypatch.setattr(sys, "argv", [*argv, "--name", "x"])
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == 130
    typed = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert typed == ["adept-ray tune-k --name x --resume", "python scripts/tune_k.py --name x --resume"]


def test_a_command_is_written_as_another_one_was():
    """So a page repeats a run in the form in which it was called."""
    assert format_command("pick r", "adept-ray tune-k --trials 2") == "adept-ray pick r"
    assert format_command("tune-k", "python scripts/pick.py r") == "python scripts/tune_k.py"


def test_without_a_checkout_only_the_console_command_is_named(tmp_path, monkeypatch):
    """A wheel brings no scripts, so nothing tells its user to call one."""
    monkeypatch.setattr(calls, "SCRIPTS", tmp_path / "scripts")
    assert format_command("tune-k --resume", "python scripts/pick.py r") == "adept-ray tune-k --resume"


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (["adept-ray tune-k", "--name", "a b"], "adept-ray tune-k --name 'a b'"),
        (["scripts/tune_k.py", "--trials", "2"], "python scripts/tune_k.py --trials 2"),
    ],
)
def test_a_run_records_how_it_was_called(argv, call, monkeypatch):
    """A line that can be typed again."""
    monkeypatch.setattr(sys, "argv", argv)
    assert format_own_call() == call


def test_the_entry_point_is_the_one_that_is_tested():
    """pyproject.toml installs this function as ``adept-ray``."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {calls.PROGRAM: f"{console.__name__}:main"}
