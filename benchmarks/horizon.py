"""How good the k and the rate for a longer training are that a search names, by readings that came later.

python scripts/tune_k.py --name far --schedule wsd --reports 5 --tokens-per-trial 24576 --trials 12 \\
    --search-space benchmarks/horizon.yaml
python benchmarks/horizon.py results/far                       # or a table of readings: results/….csv
python benchmarks/horizon.py results/far --check results/full  # the prediction against one training

Each time some of the trials are taken for a search, with their readings of up to a share of the tokens.
What a model of these says of the longest readings is held against them: how often they lie in its 80 %
intervals, and how much score its k and rate lose against the best, by a model of all readings of all trials.
Rivals get the same readings: the best trial (its k and rate), k = 4 and the largest k (at the middle rate).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import yaml

from adept_ray.report.records import check_record
from adept_ray.search.answers import Horizon, find_horizon
from adept_ray.search.choice import EVEN, list_readings
from adept_ray.search.horizon import Aim, answer, draw_depths
from adept_ray.search.score_model import ScoreModel, ScoreReading, fit_scores
from adept_ray.search.trials import read_trials
from adept_ray.storage.results import Results

INTERVAL = (0.1, 0.9)
COLUMNS = tuple(each.name for each in fields(ScoreReading) if each.name != "pulls")


@dataclass(frozen=True)
class World:
    """All readings of a corpus, and what they say of the longest trainings."""

    readings: list[ScoreReading]
    longest: int
    truth: ScoreModel
    """By all readings of all trials, the longest ones among them."""
    rates: tuple[float, float]
    depths: tuple[int, ...]
    beyond: int
    """How many times as long as what a search reads the trainings are that it is asked about."""

    @classmethod
    def of(cls, readings: list[ScoreReading], beyond: int) -> World:
        """The world that these readings are of."""
        depths = tuple(range(1, max(each.k for each in readings) + 1))
        rates = [each.rate for each in readings]
        longest = max(each.tokens for each in readings)
        truth = fit_scores(readings, depths)
        return cls(readings, longest, truth, (min(rates), max(rates)), depths, beyond)

    def search(self, names: Collection[str]) -> list[ScoreReading]:
        """What a search of those trials reads before anybody trains longer."""
        most = self.longest // self.beyond
        return [each for each in self.readings if each.trial in names and each.tokens <= most]

    def score(self, k: int, rate: float) -> float:
        """What the longest training of that k and rate scores."""
        return float(self.truth.predict(k, self.longest, rate).mean())

    @property
    def best(self) -> float:
        """What the longest training of the best k and rate scores."""
        drawn = draw_depths(self.truth, Aim(rates=self.rates), self.depths, self.longest)
        return float(drawn.scores.mean(axis=1).max())


def follow_model(world: World, readings: list[ScoreReading]) -> tuple[int, float]:
    """k and rate that a model of the readings names for the longest training."""
    aim = Aim(rates=world.rates)
    found = answer(draw_depths(fit_scores(readings, world.depths), aim, world.depths, world.longest), aim)
    return found.k, found.rate


def follow_best_trial(world: World, readings: list[ScoreReading]) -> tuple[int, float]:
    """k and rate of the trial that scored best."""
    most = max(each.tokens for each in readings)
    best = max((each for each in readings if each.tokens == most), key=lambda each: each.score)
    return best.k, best.rate


def take_four(world: World, readings: list[ScoreReading]) -> tuple[int, float]:
    """The paper's k at the middle rate."""
    return 4, float(np.sqrt(world.rates[0] * world.rates[1]))


def take_most(world: World, readings: list[ScoreReading]) -> tuple[int, float]:
    """The largest k at the middle rate."""
    return world.depths[-1], float(np.sqrt(world.rates[0] * world.rates[1]))


RULES: dict[str, Callable[[World, list[ScoreReading]], tuple[int, float]]] = {
    "the model": follow_model,
    "the best trial": follow_best_trial,
    "k = 4": take_four,
    "the largest k": take_most,
}


def judge(world: World, trials: int, times: int, seed: int = 0) -> tuple[dict[str, list[float]], list[bool]]:
    """Points that each rule loses, search by search, and whether readings lay in the model's intervals.

    The readings are those at the longest length of trials that the search hadn't.
    """
    names = sorted({each.trial for each in world.readings})
    generator = np.random.default_rng(seed)
    lost: dict[str, list[float]] = {rule: [] for rule in RULES}
    held = []
    for _ in range(times):
        own = set(generator.choice(names, trials, replace=False).tolist())
        readings = world.search(own)
        for rule, choose in RULES.items():
            lost[rule].append(world.best - world.score(*choose(world, readings)))
        model = fit_scores(readings, world.depths)
        for each in world.readings:
            if each.tokens == world.longest and each.trial not in own:
                low, high = np.quantile(model.predict(each.k, each.tokens, each.rate), INTERVAL)
                held.append(bool(low <= each.score <= high))
    return lost, held


def read_readings(place: Path) -> list[ScoreReading]:
    """The readings of a results folder of a search by wsd, or of a table of :func:`write_readings`."""
    if place.is_dir():
        trials = read_trials(Results(str(place.parent), place.name))
        return list_readings(trials, EVEN, branched=True)
    with place.open() as file:
        return [
            ScoreReading(
                row["trial"],
                int(row["k"]),
                float(row["rate"]),
                int(row["tokens"]),
                float(row["score"]),
                row["variant"],
            )
            for row in csv.DictReader(file)
        ]


def write_readings(readings: Sequence[ScoreReading], file: Path) -> None:
    """The readings as a table."""
    with file.open("w") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(each) for each in readings)


def check_training(search: Path, training: Path) -> str:
    """A sentence: what a search's best.yaml says of a training's length, and what that training scored."""
    choice = yaml.safe_load((search / "best.yaml").read_text())["choice"]
    trained = yaml.safe_load((training / "best.yaml").read_text())["training"]
    score = read_last_score(training / "curves.jsonl")
    horizons = tuple(check_record(Horizon, row, str(search)) for row in choice["horizons"])
    found = find_horizon(horizons, trained["tokens"])
    far = abs(score - found.score) / found.error
    return (
        f"{trained['tokens']:,} tokens at k = {trained['k']}: {score:.2f} on validation; the search said "
        f"{found.score:.2f} ± {found.error:.2f} for k = {found.k}, {far:.1f} standard errors off"
    )


def read_last_score(file: Path) -> float:
    """The score of the last reading of a training."""
    return float(json.loads(file.read_text().splitlines()[-1])["score"])


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("places", type=Path, nargs="+", help="results folders, or tables of readings")
    flags.add_argument("--beyond", type=int, default=16, help="times as long as what a search reads")
    flags.add_argument("--trials", type=int, default=8, help="of a search")
    flags.add_argument("--times", type=int, default=40, help="searches, each of other trials")
    flags.add_argument("--write", type=Path, help="table of the first one's readings to write")
    flags.add_argument("--check", type=Path, help="results folder of train.py to hold the first one against")
    args = flags.parse_args()
    if args.check:
        print(check_training(args.places[0], args.check))
        return
    if args.write:
        write_readings(read_readings(args.places[0]), args.write)
    for place in args.places:
        world = World.of(read_readings(place), args.beyond)
        count = len({each.trial for each in world.readings})
        lost, held = judge(world, min(args.trials, count - 1), args.times)
        print(
            f"{place}: {count} trials of up to {world.longest:,} tokens; searches of {args.trials} read up "
            f"to {world.longest // args.beyond:,}"
        )
        for rule, points in lost.items():
            spread = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0
            print(f"  {rule:16} loses {statistics.mean(points):5.2f} ± {spread:.2f} points")
        print(f"  of the longest readings {statistics.mean(held):.0%} lie in the 80 % intervals")


if __name__ == "__main__":
    main()
