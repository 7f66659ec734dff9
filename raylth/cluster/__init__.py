"""The only code that knows Ray: checkpoint actors, the Tune trial and searcher, launch. Mathematics lives in core."""

from raylth.cluster.launch import ClusterError, run_on_ray

__all__ = ["ClusterError", "run_on_ray"]
