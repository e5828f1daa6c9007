"""One run beside earlier ones of the same utterances: where it reads them best, how well, for how long, and what changed.

Models differ in depth, so layers are set side by side by their share of it: layer 15 of 30 beside layer 3 of 6. Every
sentence is computed from the results, and where two intervals overlap it says that nothing is decided. A test paired by
utterance was rejected for now: kept results hold scores, not what each probe said of each utterance.

Whether another revision of a model is the same model is read from the receipts: they hold the digest of every layer's bytes.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analyze.curves import ALL_EMOTIONS, HalfLife
from analyze.persistence import PersistenceResult
from analyze.plots import token_count
from analyze.probes import ProbeResult
from analyze.query import Run
from analyze.report.words import ranges, share
from analyze.scores import Interval
from extract.identity import IMPORTED

_LAYER_OBJECT = re.compile(r"shards/(?P<shard>\d+)-[0-9a-f]+/(?P<site>[^/]+)/c\.(?P<index>\d+)\..*")
_REVISION_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """A run and what was measured on it."""

    run: Run
    """The run, complete."""
    probes: tuple[ProbeResult, ...]
    """One for each site with one vector for each utterance, of all its layers; one or more."""
    persistence: PersistenceResult | None
    """None where it was not measured."""


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """One layer of one run."""

    layer: int
    """Which."""
    depth: float
    """Its share of the model's depth: 0 for the embedding output, 1 for the last block."""
    accuracy: Interval
    """On the test split."""
    auroc: Interval
    """On the test split, mean over labels."""


@dataclass(frozen=True, slots=True)
class SiteProfile:
    """One site of one run, layer by layer."""

    site: str
    """Where the states were read."""
    kind: str
    """Kind of probe."""
    chance: float
    """Accuracy of always naming the commonest label."""
    layers: tuple[LayerPoint, ...]
    """Ascending."""
    best_layer: int
    """Chosen without the test split."""

    @property
    def best(self) -> LayerPoint:
        """The best layer."""
        return next(point for point in self.layers if point.layer == self.best_layer)


@dataclass(frozen=True, slots=True)
class HalfLives:
    """For how long the mean over labels stays readable."""

    layer: int
    """Where it was measured."""
    refit: HalfLife
    """For a probe fitted at each offset."""
    fixed: HalfLife
    """For the probe of offset 0."""
    last_offset: int
    """Tokens behind which nothing was measured."""


@dataclass(frozen=True, slots=True)
class RunProfile:
    """One run in a comparison."""

    run_id: str
    """Which."""
    model: str
    """What the user called the model."""
    weights: str
    """Their identity: a commit of the hub, or a digest."""
    created: str
    """When the run was created, in ISO 8601, UTC."""
    n_layers: int
    """Blocks of the model."""
    sites: tuple[SiteProfile, ...]
    """By site."""
    half_lives: HalfLives | None
    """None where persistence was not measured."""

    @property
    def title(self) -> str:
        """The model's name: that of the hub, or the last part of a path."""
        name = self.model.partition("@")[0] if self.weights.startswith("hub:") else self.model
        return name.rstrip("/").rpartition("/")[2] if name.startswith("/") else name

    @property
    def label(self) -> str:
        """The title and the beginning of the commit or the digest, of imported states `imported` and that of theirs."""
        how = "imported " if self.weights.startswith(IMPORTED) else ""
        return f"{self.title} ({how}{self.weights.rpartition('@')[2].removeprefix('sha256:')[:_REVISION_DIGITS]})"

    def at(self, site: str) -> SiteProfile:
        """Its profile of a site."""
        return next(profile for profile in self.sites if profile.site == site)


@dataclass(frozen=True, slots=True)
class Change:
    """What changed against one earlier run."""

    label: str
    """The earlier run's model and revision."""
    why: str
    """Why it is this one, such as `the last of the same model`."""
    sentences: tuple[str, ...]
    """What changed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside earlier ones."""

    run: RunProfile
    """The run."""
    earlier: tuple[RunProfile, ...]
    """The others, the oldest first; one or more."""
    changes: tuple[Change, ...]
    """What changed against the last revision of the same model, and against the best of the other models."""


def compare(measured: Measured, earlier: Sequence[Measured]) -> Comparison:
    """Set a run beside earlier ones.

    Args:
        earlier: one or more runs of the same utterances, labels, template and sites, with probes of the same sites, the
            oldest first.
    """
    new, olds = _profile(measured), [_profile(each) for each in earlier]
    return Comparison(new, tuple(olds), tuple(_changes(new, olds, measured.run, [each.run for each in earlier])))


def _profile(measured: Measured) -> RunProfile:
    manifest, persistence = measured.run.manifest, measured.persistence
    return RunProfile(
        run_id=measured.run.run_id,
        model=manifest.model,
        weights=manifest.identity.weights,
        created=manifest.created,
        n_layers=manifest.n_layers,
        sites=tuple(sorted((_site(probe, manifest.n_layers) for probe in measured.probes), key=lambda profile: profile.site)),
        half_lives=None
        if persistence is None
        else HalfLives(
            layer=persistence.layer,
            refit=persistence.curve(ALL_EMOTIONS, "refit").half_life,
            fixed=persistence.curve(ALL_EMOTIONS, "offset-0").half_life,
            last_offset=persistence.offsets[-1],
        ),
    )


def _site(probe: ProbeResult, n_layers: int) -> SiteProfile:
    points = tuple(
        LayerPoint(entry.layer, entry.layer / n_layers, entry.test.accuracy, entry.test.auroc) for entry in probe.layers
    )
    return SiteProfile(probe.site, probe.kind, probe.chance, points, probe.best_layer)


# What changed, in words.


def _changes(new: RunProfile, olds: Sequence[RunProfile], run: Run, runs: Sequence[Run]) -> Iterator[Change]:
    own = next((index for index in reversed(range(len(olds))) if olds[index].title == new.title), None)
    if own is not None:
        sentences = (_state_sentence(run, runs[own]), *_against(new, olds[own]))
        yield Change(olds[own].label, "the last of the same model", sentences)
    others = [old for old in olds if old.title != new.title]
    if others:
        best = max(others, key=_peak)
        yield Change(best.label, "the best of the other models", tuple(_against(new, best)))


def _against(new: RunProfile, old: RunProfile) -> Iterator[str]:
    for site in new.sites:
        yield f"{site.site}: {_site_sentence(site.best, new, old.at(site.site).best, old)}"
    if new.half_lives and old.half_lives:
        yield f"Half-life of the mean: {_half_life_sentence(new.half_lives, old.half_lives)}"


def _peak(profile: RunProfile) -> float:
    return max(site.best.accuracy.value for site in profile.sites)


def _site_sentence(mine: LayerPoint, new: RunProfile, theirs: LayerPoint, old: RunProfile) -> str:
    points = round(100 * (mine.accuracy.value - theirs.accuracy.value))
    more = f"{abs(points)} point{'s' if abs(points) != 1 else ''} {'more' if points > 0 else 'less'}" if points else "as much"
    return (
        f"{_place(mine, new)} is best, with an accuracy of {share(mine.accuracy)}; there it is {_place(theirs, old)}, with "
        f"{share(theirs.accuracy)}: {more}. {_decided(mine.accuracy, theirs.accuracy)}"
    )


def _place(point: LayerPoint, profile: RunProfile) -> str:
    return f"layer {point.layer} of {profile.n_layers} ({point.depth:.2f} of the depth)"


def _decided(mine: Interval, theirs: Interval) -> str:
    overlap = mine.low <= theirs.high and theirs.low <= mine.high
    return "The intervals overlap, so nothing is decided." if overlap else "The intervals do not overlap."


def _half_life_sentence(now: HalfLives, there: HalfLives) -> str:
    mine, theirs = (f"{half_life(each.refit, each.last_offset)} tokens at layer {each.layer}" for each in (now, there))
    said = f"{mine}; there {theirs}."
    if not (now.refit.above_chance and there.refit.above_chance):
        return f"{said} Where nothing was above chance there is nothing to halve."
    return f"{said} {_decided(_as_interval(now.refit), _as_interval(there.refit))}"


def half_life(value: HalfLife, last_offset: int) -> str:
    """A half-life with its interval: `49 (38 to more than 400)`; a dash where nothing was above chance."""
    if not value.above_chance:
        return "\N{EN DASH}"
    middle, low, high = (
        f"more than {last_offset}" if end is None else token_count(end) for end in (value.tokens, value.low, value.high)
    )
    return f"{middle} ({low} to {high})"


def _as_interval(value: HalfLife) -> Interval:
    return Interval(*(math.inf if end is None else end for end in (value.tokens, value.low, value.high)))


def _state_sentence(run: Run, other: Run) -> str:
    """Whether another revision computes the same states."""
    cut = [
        (m.rows_per_shard, m.compression, m.width, m.identity.layers, m.identity.stored_dtype)
        for m in (run.manifest, other.manifest)
    ]
    if cut[0] != cut[1]:
        return "Its shape or storage differs, so bytes are not compared."
    now, before = _layer_digests(run), _layer_digests(other)
    differing: dict[str, list[int]] = {}
    for site, layer in sorted(now.keys() & before.keys()):
        if now[site, layer] != before[site, layer]:
            differing.setdefault(site, []).append(layer)
    if not differing:
        return "Every hidden state is the same, byte for byte."
    where = (f"{site} at layer{'s' if len(layers) > 1 else ''} {ranges(layers)}" for site, layers in differing.items())
    return f"Hidden states differ: {'; '.join(where)}."


def _layer_digests(run: Run) -> dict[tuple[str, int], tuple[str, ...]]:
    """For each site and layer the digests of its objects, shard after shard."""
    digests: dict[tuple[str, int], tuple[str, ...]] = {}
    for receipt in run.stored.receipts():
        for entry in receipt.objects:
            match = _LAYER_OBJECT.fullmatch(entry.path)
            if match:
                key = match["site"], run.layers_of(match["site"])[int(match["index"])]
                digests[key] = (*digests.get(key, ()), entry.sha256)
    return digests
