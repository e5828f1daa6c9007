"""Each run of a plan beside the earlier runs of the same utterances: `comparisons/RUN/` of the store.

A comparison is made of kept results alone, so it is made again whenever it is not what would be made now: after an upgrade,
when an earlier run was analysed later, or when the plan asks for more. Writing it where the refresh happens to run was
rejected: a nightly job's directory is gone in the morning, and what compares runs belongs beside them.
"""

import contextlib
import json

from pydantic import TypeAdapter, ValidationError

from analyze import comparison_page, results
from analyze.comparison import Comparison, Measured, compare
from analyze.query import Run
from analyze.results import Kept
from cluster.plans.holdings import Holdings, peers_of, pooled_sites
from cluster.plans.schema import Analyses
from extract.documents import now
from extract.store import Store
from extract.stored_run import StoredRun

_DIRECTORY = "comparisons"
_FILE = "comparison.json"
_PAGE = "comparison.md"
_KEPT: TypeAdapter[Kept[Comparison]] = TypeAdapter(Kept[Comparison])


def due_comparison(run: StoredRun, holdings: Holdings, analyses: Analyses) -> Comparison | None:
    """The comparison that should be kept with a run, where it is not.

    Raises:
        ValueError: a receipt or a kept result of the run is damaged.
    """
    measured = _measured(run, holdings, analyses)
    if measured is None or holdings.store is None:
        return None
    earlier = [_measured_or_none(other, holdings, analyses) for other in earlier_peers(run, holdings)]
    present = [each for each in earlier if each is not None]
    if not present:
        return None
    made = compare(measured, present)
    return None if _kept(holdings.store, run) == made else made


def write_comparison(store: Store, comparison: Comparison, run: StoredRun) -> str:
    """Keep a comparison durably, and return where its page is."""
    place = store.objects.at(f"{_DIRECTORY}/{run.run_id}")
    page = comparison_page.page(comparison, run.manifest.corpus, run.manifest.template)
    place.replace(comparison_page.PICTURE_FILE, comparison_page.picture(comparison))
    place.replace(_PAGE, page.encode())
    document = _KEPT.dump_python(Kept(results.versions(), now(), comparison), mode="json")
    place.replace(_FILE, json.dumps(document, indent=1, allow_nan=False).encode())
    return place.url(_PAGE)


def earlier_peers(run: StoredRun, holdings: Holdings) -> list[StoredRun]:
    """Extracted runs of the same utterances and labels, in the same template and at the same sites, created before."""
    before = holdings.runs[: [each.run_id for each in holdings.runs].index(run.run_id)]
    return [other for other in before if _are_peers(run, other, holdings)]


def _are_peers(one: StoredRun, other: StoredRun, holdings: Holdings) -> bool:
    if other.manifest.identity.imported:  # what is said of it is checked by nobody
        return False
    with contextlib.suppress(ValueError):  # a damaged run is nobody's peer
        return peers_of(one.manifest) == peers_of(other.manifest) and holdings.labelled_alike(one, other)
    return False


def _measured_or_none(run: StoredRun, holdings: Holdings, analyses: Analyses) -> Measured | None:
    """An earlier run as far as it can be compared: damage to it is not this comparison's business."""
    with contextlib.suppress(ValueError):
        return _measured(run, holdings, analyses)
    return None


def _measured(run: StoredRun, holdings: Holdings, analyses: Analyses) -> Measured | None:
    """A complete run with the results of the present versions that a plan wants; None where they are not all there."""
    if analyses.probes is None or holdings.rows_missing(run):
        return None
    probes = holdings.probes(run, analyses.probes.kind)
    sites = pooled_sites(run)
    if not set(sites) <= set(probes):
        return None
    persistence = holdings.persistence(run, analyses.persistence) if analyses.persistence else None
    return Measured(Run(run), tuple(probes[site] for site in sites), persistence)


def _kept(store: Store, run: StoredRun) -> Comparison | None:
    """The comparison that is kept with a run, of the present versions and whole."""
    try:
        kept = _KEPT.validate_json(store.objects.read(f"{_DIRECTORY}/{run.run_id}/{_FILE}"))
    except (FileNotFoundError, ValidationError):
        return None
    return kept.result if kept.versions == results.versions() else None
