"""Files that all workers of a node need: one of them fetches them, before any waits in a collective.

A collective of NCCL gives up after half an hour. Here workers wait for each other at Ray Train's own barrier,
which waits as long as it takes.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adept_ray.config.errors import first_line
from adept_ray.data.blocks import Blocks
from adept_ray.data.hub_files import fetch_files, look_for_files
from adept_ray.data.loading import Backbone
from adept_ray.engine.voice import JobVoice
from adept_ray.storage.files import fetch_folder, find_local_folder


@contextmanager
def fetch_once_a_node(place: str) -> Iterator[Path]:
    """A folder behind a path or URI as one of this node: itself, or a copy that its workers share.

    Every worker has to come here; the copy is deleted when the one that made it leaves. Nodes may share their
    temporary folder: each has its own copy there.
    """
    import ray.train
    from ray.train.collective import barrier, broadcast_from_rank_zero

    if local := find_local_folder(place):
        yield local
        return
    name = broadcast_from_rank_zero(f"adept_ray-{uuid.uuid4().hex}")
    context = ray.train.get_context()
    folder = Path(tempfile.gettempdir()) / f"{name}-{context.get_node_rank()}"
    fetches = context.get_local_rank() == 0
    try:
        if fetches:
            fetch_folder(place, folder)
        barrier()
        yield folder
    finally:
        if fetches:
            shutil.rmtree(folder, ignore_errors=True)


def fetch_backbone(backbone: Backbone, voice: JobVoice) -> None:
    """Fetch the files of a backbone of the hub to every node that lacks some; every worker has to come here.

    What goes wrong is left to the loading, which says it in a sentence, or finds the files elsewhere.
    """
    import ray.train
    import ray.util
    from ray.train.collective import barrier

    if not backbone.revision or backbone.random:
        return
    if ray.train.get_context().get_local_rank() == 0:
        node, where = ray.util.get_node_ip_address(), (backbone.source, backbone.revision)
        try:
            files = look_for_files(*where)
            if files.fault:
                voice.add_remark(f"{node}: {files.fault}")
            elif files.missing:
                voice.add_remark(
                    f"{node} fetches {backbone.source} from the hub: {files.missing / 1e9:.1f} GB"
                )
                began = time.monotonic()
                for came in fetch_files(*where):
                    if isinstance(came, str):
                        voice.add_remark(f"{node}: {came}")
                voice.add_remark(f"{node} has fetched {backbone.source} in {time.monotonic() - began:.0f} s")
        except Exception as problem:  # the client changes its HTTP library, and so its exceptions
            voice.add_remark(f"{node} could not fetch {backbone.source}: {first_line(problem)}")
    barrier()


def fetch_blocks(blocks: Mapping[str, Blocks], voice: JobVoice) -> None:
    """Copy the files of blocks to every node that lacks some; every worker has to come here.

    Raises :class:`UserError` on the node that can't have them.
    """
    import ray.train
    import ray.util
    from ray.train.collective import barrier

    if all(each.is_in_memory for each in blocks.values()):
        return
    if ray.train.get_context().get_local_rank() == 0:
        node = ray.util.get_node_ip_address()
        for each in blocks.values():
            each.fetch(lambda text: voice.add_remark(f"{node} {text}"))
    barrier()
