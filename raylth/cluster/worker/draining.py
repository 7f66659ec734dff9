"""Polls Ray for whether this node is draining."""

import time

import ray

from raylth.cluster.ray_private import draining_nodes

__all__ = ["Drain"]

ASK_SECONDS = 2.0  # a spot machine has two minutes after its notice, a pod half a minute


class Drain:
    """Polls the head every few seconds. Ray gives a draining node no new work, but does not notify what runs there."""

    def __init__(self) -> None:
        self.node, self.asked_at, self.is_draining = ray.get_runtime_context().get_node_id(), time.monotonic(), False

    def __call__(self) -> bool:
        """Whether the machine drains, as of at most some seconds ago."""
        if not self.is_draining and time.monotonic() - self.asked_at >= ASK_SECONDS:
            self.asked_at = time.monotonic()
            try:
                self.is_draining = self.node in draining_nodes(timeout=ASK_SECONDS)
            except ray.exceptions.RayError:  # a head that does not answer drains nobody
                return False
        return self.is_draining
