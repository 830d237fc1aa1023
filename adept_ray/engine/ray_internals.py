"""What is asked of Ray for which it has no public function; a new Ray has to be read against this file.

Read in Ray 2.60.0. Nothing here keeps anything.

- What is free on a node: ``ray.available_resources()`` knows sums over nodes alone, and the state API what a
  node has. Ray's own libraries ask as it is done here.
- How large a cluster may grow, whether something starts nodes for it, and whether that something has called a
  placement group impossible: ``ray.autoscaler.sdk`` only asks for nodes, and the status that
  ``ray.autoscaler.v2.sdk`` puts together leaves out what is impossible.
- Whether a cluster lets this process in: ``ray.init`` is the public way, which tries for half a minute where
  nobody answers, and ends the process where a token is missing.
- That Ray Train starts no process that hands out shares of datasets: it does so for every worker group, even
  where there are none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.util.placement_group import PlacementGroup


def list_free_resources() -> Mapping[str, Mapping[str, float]]:
    """Id of a node → what is free there, by Ray's names. Needs a running Ray."""
    from ray._private.state import state

    return state.available_resources_per_node()


def read_largest_size() -> Mapping[str, float]:
    """What the cluster may have at most, by Ray's names; empty where its service doesn't say that."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}


def has_autoscaler() -> bool:
    """Whether something starts nodes for this cluster that says what it can't start."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


def cannot_grow(group: PlacementGroup) -> bool:
    """Whether Ray's autoscaler says that no node which it may start has room for a placement group.

    Without one it says so of what is there. It has a few seconds' delay.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    reply = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status())
    waiting = reply.autoscaling_state.infeasible_gang_resource_requests
    return any(group.id.hex() in request.details for request in waiting)


def find_head(address: str) -> str:
    """``host:port`` of the head that ``RAY_ADDRESS`` means, empty if there is none; a URI stays as it is."""
    from ray._private.services import canonicalize_bootstrap_address

    return address if "://" in address else canonicalize_bootstrap_address(address) or ""


def check_token(head: str, found: bool) -> None:
    """Raise Ray's AuthenticationError if the cluster whose head is there wants a token, or another one.

    Where the head was `found` by Ray, a token that is there is used without being asked for, as Ray does.
    """
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    if found:
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)  # else the next line ends the process
    try:
        # It prints the refusal that becomes a sentence, with its own stack.
        with open(os.devnull, "w") as nowhere, redirect_native_code(nowhere):
            GcsClient(address=head)
    except AuthenticationError:
        raise
    except RayError:  # a head that is slow: Ray gives it more time
        return


@contextmanager
def redirect_native_code(place: TextIO) -> Iterator[None]:
    """Within this, what C++ of this process writes to its standard error goes to the file `place`."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(place.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def leave_out_datasets(trainer: TorchTrainer) -> TorchTrainer:
    """`trainer`, whose workers can't ask Ray Train for shares of datasets.

    So each worker group starts with a process less, which would import for seconds. Where a later Ray has
    other insides, it starts with it.
    """
    try:
        from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

        build_all = trainer._create_default_callbacks  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        return trainer

    def build_callbacks() -> list[object]:
        return [each for each in build_all() if not isinstance(each, DatasetsCallback)]

    trainer._create_default_callbacks = build_callbacks  # type: ignore[attr-defined]
    return trainer
