"""How the room of made-up clusters is shared out."""

import pytest

from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.engine.layout import Layout, Load, choose_layout, count_room, explain_idle_workers

AUTO = {"workers": "auto", "concurrent": "auto"}


def make_load(blocks=4, trials=8, ranks=1):
    """Trials of so many blocks a step, whose model must be shared out over at least so many ranks."""
    return Load(blocks, trials, lambda machine, memory: machine.fewest_workers >= ranks)


def choose(room, load, **settings):
    run = SearchRun(**settings, trials=load.trials)
    return choose_layout(run, room, load, lambda layout: 0)


@pytest.mark.parametrize(
    ("room", "blocks", "ranks", "layout"),
    [
        ([1], 4, 1, Layout(1, 1)),
        ([8], 4, 1, Layout(4, 2)),
        ([8, 8], 4, 1, Layout(4, 4)),
        ([8, 8], 16, 1, Layout(8, 2)),  # not 16: on one node gradients travel faster
        ([8, 8, 8, 8], 4, 1, Layout(4, 8)),
        ([4, 2], 4, 1, Layout(2, 3)),  # no trial lies on both
        ([2], 2, 1, Layout(2, 1)),
        ([64], 2, 1, Layout(2, 8)),
        ([8], 4, 8, Layout(8, 1)),
        ([8, 8], 4, 4, Layout(4, 4)),
        ([8, 8], 4, 16, Layout(16, 1)),  # whatever the network is like
        ([0], 4, 1, Layout(1, 1)),
    ],
)
def test_a_cluster_is_filled_by_what_has_something_to_do(room, blocks, ranks, layout):
    """As many trials as are as fast, each on as many workers as have a block, and as the model needs."""
    assert choose(room, make_load(blocks, ranks=ranks), **AUTO) == layout


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"workers": 8, "concurrent": "auto"}, Layout(4, 2)),  # four would have nothing to do
        ({"workers": 2, "concurrent": "auto"}, Layout(2, 4)),
        ({"workers": 1, "concurrent": "auto"}, Layout(1, 8)),
        ({"workers": "auto"}, Layout(4, 1)),
        ({"workers": "auto", "concurrent": 4}, Layout(2, 4)),
        ({"workers": "auto", "concurrent": 9}, Layout(1, 8)),
        ({"workers": 8, "min_workers": 6, "concurrent": "auto"}, Layout(6, 1)),
        ({**AUTO, "min_workers": 6}, Layout(6, 1)),
        ({**AUTO, "gpus_per_worker": 0.5}, Layout(1, 8)),  # NCCL takes one rank a card
    ],
)
def test_what_is_a_number_is_kept(settings, layout):
    """Eight cards and four blocks a step: only what is auto is chosen, and workers without a block go."""
    assert choose([8], make_load(), **settings) == layout


def test_what_is_alone_takes_nodes_if_that_more_than_halves_it():
    """One training of 24 blocks a step on three nodes of eight, and of 16 on two."""
    run = RunSpec(workers="auto")
    assert choose_layout(run, [8, 8, 8], make_load(24, 1), lambda _: 0) == Layout(24, 1)
    assert choose_layout(run, [8, 8], make_load(16, 1), lambda _: 0) == Layout(8, 1)


def test_workers_share_a_memory():
    """On CPUs more of them have less each, so fewer are taken where all would be too many."""
    load = Load(4, 8, lambda machine, memory: memory >= 10)
    run = SearchRun(**AUTO)
    assert choose_layout(run, [8], load, lambda each: 40 // (each.workers * each.crews)) == Layout(4, 1)
    assert choose_layout(run, [8], load, lambda each: 1) == Layout(4, 2)  # the plan will refuse it


@pytest.mark.parametrize(
    ("nodes", "gpus", "room"),
    [
        ([(10, 0)], 0, [8]),
        ([(2, 0), (8, 0)], 0, [0, 8]),  # Ray's own are taken where there is least
        ([(64, 8), (64, 8)], 1, [8, 8]),
        ([(64, 3)], 2, [1]),
        ([(4, 1)], 0.5, [2]),
        ([(8, 0), (8, 8)], 1, [0, 8]),
        ([(1, 0)], 0, [0]),
    ],
)
def test_room_is_counted_node_by_node(nodes, gpus, room):
    """A worker is on one node; two CPUs are left to Ray."""
    assert count_room([{"CPU": cpus, "GPU": cards} for cpus, cards in nodes], gpus) == room


@pytest.mark.parametrize(
    ("settings", "load", "words"),
    [
        ({"workers": 8}, make_load(), "give --workers 4 --concurrent 2 (or --workers auto"),
        ({"workers": 8}, make_load(trials=1), "give --workers 4, which is as fast, or raise"),
        ({"workers": 8, "min_workers": 8}, make_load(), "train on: raise tokens_per_step"),
        ({"workers": 8}, make_load(ranks=8), "train on: raise tokens_per_step"),
        ({"workers": 3}, make_load(1), "a step has one block, so 2 of 3 workers"),
    ],
)
def test_workers_without_a_block_are_one_sentence(settings, load, words):
    """It says what would use them, if that is possible."""
    said = explain_idle_workers(SearchRun(**settings), [8], load, lambda layout: 0)
    assert words in said and "have nothing to train on" in said
    assert explain_idle_workers(SearchRun(workers=4), [8], make_load(), lambda layout: 0) == ""


def test_no_more_trials_at_once_than_disks_hold():
    """Where their number is auto; a number that was given stays."""
    room, load = [8], Load(1, 8, at_once=3)
    auto = SearchRun(workers=1, concurrent="auto")
    assert choose_layout(auto, room, load, lambda layout: 1).crews == 3
    given = SearchRun(workers=1, concurrent=4)
    assert choose_layout(given, room, load, lambda layout: 1).crews == 4
