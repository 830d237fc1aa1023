"""What a command waits for on a cluster that others share: with a word, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adept_ray.config.errors import UserError
from adept_ray.engine.ray_internals import cannot_grow

if TYPE_CHECKING:
    from ray import ObjectRef

Say = Callable[[str], None]
SAY_AFTER_S = 10
GIVE_UP_S = 1800  # a cloud takes minutes to start a node, and an image of some GB as long again
LOOK_EVERY_S = 2


def wait_for_task(task: ObjectRef, what: str, say: Say) -> Any:
    """What a task of Ray's returns; `what` names what it waits for, as in "a GPU, to try torch.compile on".

    `say` hears of it when that takes long. Raises :class:`UserError` after half an hour.
    """
    import ray

    done, _ = ray.wait([task], timeout=SAY_AFTER_S)
    if not done:
        say(f"waiting for {what} (`ray status` says what is in use)")
        done, _ = ray.wait([task], timeout=GIVE_UP_S - SAY_AFTER_S)
    if not done:
        ray.cancel(task, force=True)
        raise UserError(
            f"waited {GIVE_UP_S // 60} minutes for {what}: free it, or give the command again when `ray "
            "status` shows it as free"
        )
    return ray.get(task)


def wait_for_room(bundles: Sequence[dict[str, float]], refusal: str, say: Say) -> None:
    """Let a cluster that starts nodes by itself start those on which `bundles` of resources fit.

    Raises :class:`UserError` with `refusal` as soon as the cluster says that it can't have them, and with
    a word more when they haven't come in time.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(list(bundles))
    started = time.monotonic()
    said = False
    try:
        while not group.wait(LOOK_EVERY_S):
            waited = time.monotonic() - started
            if cannot_grow(group):
                raise UserError(refusal)
            if waited > GIVE_UP_S:
                raise UserError(
                    f"{refusal}; it was to start more nodes, and didn't in {GIVE_UP_S // 60} minutes"
                )
            if waited > SAY_AFTER_S and not said:
                said = True
                say("waiting for the cluster to start nodes for the workers (`ray status` shows them)")
    finally:
        remove_placement_group(group)
