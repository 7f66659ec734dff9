"""The stages of the study: (settings, parents' artefacts) -> artefact. Runs without ray, in one process.

from raylth.stages import make_plan, run_plan
graph = run_plan(make_plan(read_sweep("sweeps/quickstart.yaml")), Store("raylth-store"))
"""

from raylth.stages.context import Context, load_data, make_context
from raylth.stages.execute import StageFailed, divergence, run_plan, run_stage, run_together, scan
from raylth.stages.graph import Graph
from raylth.stages.kinds import KINDS, kind_of, read_stage
from raylth.stages.kinds.sparse import Given
from raylth.stages.mask_files import export_mask
from raylth.stages.planning.disk_estimate import Forecast, forecast, free_bytes, in_units
from raylth.stages.planning.network_checks import check_networks, keep_checked, symmetry_notes
from raylth.stages.planning.own_code import sources_of
from raylth.stages.planning.plan import MOST_STAGES, Plan, make_plan
from raylth.stages.planning.settle import precisions_of_auto, settle
from raylth.stages.planning.time_estimate import Hours, hours
from raylth.stages.probe import evaluate_a_batch
from raylth.stages.result_rows import result_rows
from raylth.stages.resume import Preempted
from raylth.stages.same_data import check_same_data, load_same_data
from raylth.stages.stage import Artefact, Stage

__all__ = [
    "KINDS",
    "MOST_STAGES",
    "Artefact",
    "Context",
    "Forecast",
    "Given",
    "Graph",
    "Hours",
    "Plan",
    "Preempted",
    "Stage",
    "StageFailed",
    "check_networks",
    "check_same_data",
    "divergence",
    "evaluate_a_batch",
    "export_mask",
    "forecast",
    "free_bytes",
    "hours",
    "in_units",
    "keep_checked",
    "kind_of",
    "load_data",
    "load_same_data",
    "make_context",
    "make_plan",
    "precisions_of_auto",
    "read_stage",
    "result_rows",
    "run_plan",
    "run_stage",
    "run_together",
    "scan",
    "settle",
    "sources_of",
    "symmetry_notes",
]
