"""From what nodes say to faults: each made on purpose is named, with its node and what mends it."""

from dataclasses import replace

import pytest

from adept_ray.config.machine import Machine
from adept_ray.data.hub_files import HubFiles
from adept_ray.engine.nodes import Answers, Disk, Gpu, Node, NodeFacts
from adept_ray.run.checks import (
    check_answers,
    check_backbone_folder,
    check_disks,
    check_gpus,
    check_hub,
    check_places,
    check_versions,
    format_size,
)
from adept_ray.run.disk_needs import DiskNeeds, count_disk_needs

GB = 10**9
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cu130", "transformers": "5.23.0"}
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30)
L4 = Gpu("NVIDIA L4", 24 * 2**30)
GOOD = NodeFacts(
    VERSIONS, "c0de", (H100, H100), "570.1", "CUDA 13.0", disks={"temporary": Disk("/tmp", 1, 100 * GB)}
)
NODES = [Node("0", "head", 8, 2, here=True), Node("1", "other", 64, 2, here=False)]
ON_GPUS = Machine(gpus_per_worker=1, workers=4)
STORED = {"storage": Disk("/results", 2, 100 * GB), "temporary": Disk("/tmp", 1, 100 * GB)}
NEEDS = DiskNeeds(checkpoint=10 * GB, kept=5 * GB, model=20 * GB)


def heard(**changes):
    """A good node named head, and another one that says something else of itself."""
    return Answers({"head": GOOD, "other": replace(GOOD, **changes)})


def test_nodes_that_are_alike_have_no_fault():
    """Two nodes with the same packages and cards, for a run on GPUs."""
    checks = [
        check_answers(NODES, heard()),
        check_versions(heard(), GOOD),
        check_gpus(NODES, heard(), ON_GPUS),
    ]
    assert not [fault for check in checks for fault in check.faults]
    assert checks[1].found.endswith("alike on 2 nodes") and "4 × NVIDIA H100" in checks[2].found


def test_a_silent_node_is_a_fault_and_the_others_count():
    """Whatever the reason is, it is said of that node."""
    check = check_answers(NODES, Answers({"head": GOOD}, {"other": "it didn't answer within 60 s"}))
    (fault,) = check.faults
    assert check.found.startswith("1 of 2 answered")
    assert fault.startswith("node other: it didn't answer within 60 s: see whether it is alive")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformers": "5.1.0"}, "node other has transformers 5.1.0 where the command has 5.23.0"),
        (
            {"ray": "2.59.0", "torch": "2.12.0"},
            "has ray 2.59.0, torch 2.12.0 where the command has 2.60.0, 2",
        ),
        ({"python": "3.12.7"}, "node other has python 3.12.7 where the command has 3.11.7: install the same"),
        ({"python": "3.11.2", "torch": "2.13.0+cpu"}, None),
    ],
)
def test_other_versions_are_named_with_both_numbers(changes, words):
    """Those that may differ aren't: Python's last number, and torch's build, which GPUs are asked about."""
    faults = check_versions(heard(versions=VERSIONS | changes), GOOD).faults
    assert [words in fault for fault in faults] == ([True] if words else [])


def test_a_package_that_is_missing_is_another_version():
    """On a node that doesn't know it."""
    versions = {name: version for name, version in VERSIONS.items() if name != "torch"}
    (fault,) = check_versions(heard(versions=versions), GOOD).faults
    assert "node other has torch not installed where the command has 2.13.0" in fault


def test_other_code_of_the_same_version_is_a_fault():
    """As after `git pull` on one of two machines."""
    (fault,) = check_versions(heard(code="01d"), GOOD).faults
    assert "node other has other code of adept_ray" in fault and "same commit" in fault


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"built_for": ""}, "torch 2.13.0+cu130, built for CPUs alone: install the build for its CUDA"),
        (
            {"cuda_fault": "The NVIDIA driver on your system is too old", "driver": "470.57"},
            "for CUDA 13.0 can't use its GPUs under driver 470.57 (The NVIDIA driver on your system is too",
        ),
        ({"gpus": (L4, L4)}, "of 2 kinds, NVIDIA H100 80GB HBM3 of 80 GiB and NVIDIA L4 of 24 GiB"),
    ],
)
def test_what_keeps_torch_from_the_gpus_is_said(changes, words):
    """A build for CPUs, a driver that is too old, cards that differ; not of a run on CPUs."""
    (fault,) = check_gpus(NODES, heard(**changes), ON_GPUS).faults
    assert words in fault
    idle = check_gpus(NODES, heard(**changes), Machine())
    assert not idle.faults and "not used" in idle.found


def test_cards_that_ray_does_not_count_are_nobodys_fault():
    """A node that was started without its GPUs trains nothing, so its driver may be as it is."""
    nodes = [NODES[0], replace(NODES[1], gpus=0)]
    found = heard(gpus=(L4,), built_for="", cuda_fault="old")
    assert not check_gpus(nodes, found, Machine(gpus_per_worker=1, workers=2)).faults
    (fault,) = check_gpus(nodes, found, ON_GPUS).faults
    assert "the workers need 4 GPUs and Ray counts 2" in fault


def test_a_place_that_one_node_has_to_itself_is_a_fault():
    """Each place by its flag; a silent node can't be trusted either."""
    places = {"--storage": "/results", "--cache": "/cache"}
    found = {
        "--storage": Answers({"other": ""}),
        "--cache": Answers({"other": "there is no such place"}, {"third": "it can't be asked: gone"}),
    }
    storage, cache = check_places(places, NODES, found)
    assert not storage.faults and storage.found == "/results, the same on 2 nodes"
    assert [fault.partition(" (")[0] for fault in cache.faults] == [
        "--cache /cache isn't the command's on node other",
        "--cache /cache isn't the command's on node third",
    ]
    assert "(there is no such place): give a folder that all nodes share" in cache.faults[0]


def test_a_search_takes_what_it_writes():
    """Of k 1 and 2 of layers of 5: checkpoints 12 bytes a scalar, kept weights 4, the model 2."""
    needs = count_disk_needs((100, [4, 5]), [1, 2], kept=2, crews=3, itemsize=2)
    assert needs == DiskNeeds(checkpoint=120, kept=4 * (10 + 5), model=2 * 110, crews=3)
    assert (needs.storage, needs.temporary) == (2 * 3 * 120 + 60 + 220, 220)
    far = replace(needs, fetched=True)  # behind a URI: three trials go on at once, or one model is made
    assert (far.storage, far.temporary) == (needs.storage, 3 * 120)
    assert replace(far, crews=1).temporary == 220 + 40
    few = count_disk_needs((100, [5]), [1, 2], kept=1, crews=1, itemsize=4)
    assert few.kept == 4 * 10 and few.temporary == few.model == 4 * 110
    assert count_disk_needs((100, [5]), [1, 2], kept=4, crews=1, itemsize=4).kept == 4 * (10 + 5 + 10 + 10)


def test_folders_of_one_disk_share_its_room():
    """Each would fit alone; together they don't, and both ways out are named."""
    apart = Answers({"head": replace(GOOD, disks=STORED)})
    room = NEEDS.storage + NEEDS.temporary - 1
    one = {name: Disk(disk.path, 1, room) for name, disk in STORED.items()}
    assert not check_disks(apart, "head", NEEDS).faults
    (fault,) = check_disks(Answers({"head": replace(GOOD, disks=one)}), "head", NEEDS).faults
    assert fault.startswith("node head has 65.0 GB free where up to 65.0 GB are needed (")
    assert "give another --storage" in fault and "set TMPDIR there" in fault
    enough = {name: replace(disk, free=room + 1) for name, disk in one.items()}
    assert not check_disks(Answers({"head": replace(GOOD, disks=enough)}), "head", NEEDS).faults


def test_every_node_needs_room_for_what_it_makes_and_fetches():
    """A small temporary folder on one, a full disk for the hub's files on the other; storage counts once."""
    small = {"temporary": Disk("/tmp", 1, GB), "storage": Disk("/results", 2, 0), "hub": Disk("/hf", 3, GB)}
    full = {**STORED, "hub": Disk("/hf", 3, GB)}
    answers = Answers({"head": replace(GOOD, disks=full), "other": replace(GOOD, disks=small)})
    hub, temporary = check_disks(answers, "head", NEEDS, {"head": 16 * GB}).faults
    assert hub.startswith("node head has 1.0 GB free where up to 16.0 GB are needed (/hf for the backbone's")
    assert "set HF_HOME there" in hub
    assert temporary.startswith("node other has 1.0 GB free where up to 20.0 GB are needed (/tmp for")


def test_kept_streams_leave_a_part_of_a_disk():
    """What else goes to the temporary folder has to fit into that part, and the fault says so."""
    free = NEEDS.temporary * 1.2
    for streams in (False, True):
        disks = {"temporary": Disk("/tmp", 1, int(free))}
        answers, needs = Answers({"head": replace(GOOD, disks=disks)}), replace(NEEDS, streams=streams)
        faults = check_disks(answers, "head", needs).faults
        assert len(faults) == streams
    assert "needed in the 75% of it that kept streams leave (/tmp for" in faults[0]


def test_a_storage_behind_a_uri_has_no_disk_here():
    """Nobody can say how much room a bucket has."""
    only = {"temporary": Disk("/tmp", 1, 100 * GB)}
    assert not check_disks(Answers({"head": replace(GOOD, disks=only)}), "head", NEEDS).faults


def test_a_node_that_the_hub_refuses_is_a_fault():
    """One that has the files needn't ask it, and one that lacks some fetches them."""
    answers = Answers({"head": HubFiles(), "other": HubFiles(16 * GB), "third": HubFiles(fault="no token")})
    check = check_hub("org/model", answers)
    assert check.faults == ("node third: no token",)
    assert check.found == "org/model: 1 of 3 nodes have its files, others lack up to 16.0 GB"


def test_a_backbone_folder_must_be_the_same_everywhere():
    """Missing or other files on a node would be noticed by a worker there, after stage 1 elsewhere."""
    answers = Answers({"head": "a", "other": "a", "third": "", "fourth": "b"}, {"fifth": "gone"})
    faults = check_backbone_folder("/models/x", answers, "head").faults
    assert (
        "isn't there on node third" in faults[0]
        and "other files than the command's on node four" in faults[1]
    )
    assert faults[2:] == ("node fifth: gone",)


@pytest.mark.parametrize(
    ("size", "text"), [(9.26e9, "9.3 GB"), (3.4e8, "340 MB"), (5000, "5 kB"), (7, "7 bytes")]
)
def test_sizes_are_short(size, text):
    """Nothing that matters is shown as zero."""
    assert format_size(size) == text
