"""The settings of a search that begins, is resumed, is extended or is picked from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import SearchSpace, load_search_space
from adept_ray.config.specs import PickRun, SearchRun
from adept_ray.config.validation import apply_changes, read_tokens, refuse_flags, validate_spec
from adept_ray.run.context import Session, open_session
from adept_ray.run.record import has_ended
from adept_ray.run.resuming import resume_settings
from adept_ray.run.settings import check_trust, resolve_settings
from adept_ray.run.terminal import Display
from adept_ray.search.ranges import override_ranges
from adept_ray.search.study import open_study
from adept_ray.search.trials import UNTOUCHED
from adept_ray.storage.records import RunRecord
from adept_ray.storage.results import Results
from adept_ray.tracking.libraries import check_trackers

Say = Callable[[str], None]


def open_search(run: SearchRun) -> Session[SearchRun]:
    """The session of a search that begins, is resumed or is extended; what can't be is refused here.

    Raises :class:`UserError`.
    """
    if run.strategy == "grow":
        reason = "is for independent trials: leave it out with --strategy grow"
        refuse_flags(run, ("trials", "reports"), reason)
    if run.for_tokens and read_tokens(run.for_tokens) < run.tokens_per_trial:
        raise UserError(
            f"--for-tokens {run.for_tokens} is less than a trial's {run.tokens_per_trial:,} tokens: give at "
            "least as many, or lower --tokens-per-trial"
        )
    continues = run.resume or run.more_trials > 0
    session = open_session(resolve_settings(run), continues)
    if continues:
        session = replace(session, run=continue_search(session.run, session.results))
    open_study(session.run.study)
    check_trackers(session.run.track)
    return session


def check_name(run: SearchRun) -> None:
    """Refuse a --name that a run has already. Raises :class:`UserError`."""
    results = Results(run.storage, run.name)
    if results.exists():
        raise UserError(
            f"{results.place} exists: choose another --name, or continue it with tune_k.py --resume"
        )


def continue_search(run: SearchRun, results: Results) -> SearchRun:
    """The settings of a search that is resumed, or of a finished one that is extended.

    Raises :class:`UserError` for flags that contradict them, and for more trials of an unfinished search.
    """
    about = results.read_record()
    begun = resume_settings(run, about["run"])
    if not run.more_trials:
        return begun
    if not has_ended(about):
        raise UserError(
            f"--more-trials {run.more_trials}: the search '{run.name}' isn't finished, so go on with "
            "--resume first"
        )
    rows = json.loads((results.folder / "trials.json").read_text(encoding="utf-8"))["trials"]
    over = sum(row["state"] != UNTOUCHED for row in rows)  # --max-hours may have ended the search early
    changes = {"resume": True, "more_trials": 0, "trials": over + run.more_trials}
    return apply_changes(begun, changes, where=f"--more-trials {run.more_trials}")


def load_space(run: SearchRun, about: RunRecord, say: Say = lambda text: None) -> SearchSpace:
    """The space that a search began with, or, where run.json keeps none, its file's with the run's ranges.

    `about` is the run.json. `say` hears of a file that has changed since. Raises :class:`UserError` for a
    file that is needed and can't be used.
    """
    if "space" not in about:
        return override_ranges(load_search_space(run.search_space), run.range)
    kept = validate_spec(SearchSpace, about["space"], "run.json: space")
    try:
        same = kept == override_ranges(load_search_space(run.search_space), run.range)
    except UserError:
        same = False
    if not same:
        say(
            f"{run.search_space} isn't what the search '{run.name}' began with any more: the search goes on "
            "with what it was, and another --name begins one with what it is now"
        )
    return kept


def open_finished(args: PickRun) -> tuple[SearchRun, Session[SearchRun]]:
    """A finished search with its own settings, and the session in which it is picked from.

    Raises :class:`UserError` for anything else.
    """
    storage, _, name = args.results.rpartition("/")
    results = Results(storage or ".", name)
    if not results.exists():
        raise UserError(f"{args.results} holds no search: give a results folder, such as results/NAME")
    results.open(resume=True)
    about = results.read_record()
    if "seconds" not in about or not (results.folder / "trials.json").exists():
        raise UserError(
            f"{args.results} holds no finished search to choose from: finish it with tune_k.py --resume"
        )
    run = validate_spec(SearchRun, about["run"], f"{args.results}/run.json")
    check_trust(args.trust_remote_code, about["run"], args.results)
    here = {"storage": storage or ".", "name": name, "min_gain_per_layer": args.min_gain_per_layer}
    searched = apply_changes(run, here)
    return searched, Session(override_machine(searched, args), results, Display(args.json_lines))


def override_machine(run: SearchRun, args: PickRun) -> SearchRun:
    """The settings of a search with the machine of pick.py: no trial is run, so one crew is enough."""
    return apply_changes(run, args.list_overrides() | {"concurrent": 1, "min_workers": 0})
