"""The trial that a search chooses, and what it is trained and exported with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights, SearchRun
from adept_ray.config.validation import read_tokens
from adept_ray.run.question import Question, rerun_command
from adept_ray.search.answers import RELIABLE_TRIALS, Choice
from adept_ray.search.choice import choose_k
from adept_ray.search.edges import find_edges
from adept_ray.search.front import find_front
from adept_ray.search.horizon import Aim
from adept_ray.search.rescoring import rescore
from adept_ray.search.study import rank_hyperparameters
from adept_ray.search.trials import Trial, read_trials
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint
from adept_ray.storage.results import TRIALS, Results


def choose_trial(
    run: SearchRun, question: Question, trials: Sequence[Trial], among: Sequence[Trial] = ()
) -> tuple[Choice, Trial]:
    """What a finished search says, with all that it leaves open; and the chosen trial.

    The trial is chosen `among` some of the trials where the weights of others are gone.
    """
    weights = question.space.weights
    choice = choose_k(trials, weights, make_aim(run, question), among)
    chosen = next(trial for trial in among or trials if trial.name == choice.trial)
    finished = sum(trial.state == "finished" for trial in trials)
    choice = replace(
        choice,
        edges=find_edges(chosen.config, question.space, question.limit, rerun_command(run), run.range),
        hyperparameters=rank_hyperparameters(question.space, trials) if run.strategy == "trials" else {},
        hyperparameters_reliable=finished >= RELIABLE_TRIALS,
        front=find_front(trials, weights) if run.pareto else (),
    )
    return choice, chosen


def make_aim(run: SearchRun, question: Question) -> Aim:
    """What a run chooses k for."""
    depths, rates = (question.space.parameters.get(name) for name in ("k", "base_lr"))
    return Aim(
        price=run.min_gain_per_layer or 0.0,
        tolerance=run.tolerance,
        rates=(min(rates.values), max(rates.values)) if rates else None,
        depths=depths.list_whole() if depths else (),
        tokens=read_tokens(run.for_tokens) if run.for_tokens else None,
        branched=question.base.schedule == "wsd",
    )


def load_trials(results: Results, weights: ScoreWeights, dialled: bool = True) -> list[Trial]:
    """The trials of a search that is over, with the scores that these weights give.

    Where they are `dialled`, each takes the dial that is best by these; else they are as they were trained.
    """
    return rescore(read_trials(results), weights, dialled)


def find_kept_weights(trials: Sequence[Trial], results: Results) -> list[Trial]:
    """The trials with the places of the weights that were kept; finished ones without any don't count.

    Raises :class:`UserError` when no weights are left.
    """
    kept = []
    for trial in trials:
        place = f"{results.ray}/{TRIALS}/{trial.folder}"
        number = NO_STEP if trial.state != "finished" else find_last_checkpoint(place)
        state = "given up" if trial.state == "finished" and number == NO_STEP else trial.state
        saved = None if number == NO_STEP else checkpoint_place(place, number)
        kept.append(replace(trial, state=state, saved=saved))
    if not any(trial.saved for trial in kept):
        raise UserError(
            f"{results.place} has no candidates any more: their weights under ray/trials are gone"
        )
    return kept


def choose_exported_dial(asked: float | str, chosen: Trial) -> float | str:
    """The dial at which a chosen trial is exported: the one `asked` for, or its own.

    Raises :class:`UserError` for a number where there is nothing to turn.
    """
    if asked != "auto":
        if chosen.k == 0 and not isinstance(asked, str):
            raise UserError(
                f"--dial {asked:g}: {chosen.name}, which is picked, copied no layer, so nothing is turned: "
                "leave that flag out"
            )
        return asked
    return "off" if chosen.dial is None else chosen.dial
