"""What a report is made of: the results that were kept with a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from analyze.geometry import GeometryResult
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.projection import Projection
from analyze.prompting import PromptingResult
from analyze.transfer import TransferResult
from analyze.zeroshot import ZeroShotResult


@dataclass(frozen=True, slots=True)
class Evidence:
    """Results of one run; what is empty was not measured, and the report says how to."""

    probes: Sequence[ProbeResult]
    """One or more, such as one for each site."""
    projection: Projection
    """Of the headline's probe at its best layer."""
    persistence: Sequence[PersistenceResult] = ()
    """Forced and in replies."""
    geometries: Sequence[GeometryResult] = ()
    """At most one for each site."""
    transfers: Sequence[TransferResult] = ()
    """Between conditions of the run."""
    zero_shots: Sequence[ZeroShotResult] = ()
    """The model's own answers."""
    promptings: Sequence[PromptingResult] = ()
    """System prompts."""
