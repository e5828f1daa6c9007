"""What the numbers of a run show, and what they do not.

Limits are told for the run at hand: one that does not apply is left out, because a list that is always the same is not
read.
"""

from collections.abc import Sequence

from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.report.words import noun
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.documents import Manifest
from extract.sites import Site

_QUANTISED_MODEL = "smollm2-135m-instruct"
_FEW_EXAMPLES = 100
_IMPORTED = (
    "The states were imported: which model made them, from which tokens, in which template and precision, is what was said of "
    "them, and nothing here has checked it.",
)


def limits(
    manifest: Manifest, best: ProbeResult, probes: Sequence[ProbeResult], persistence: Sequence[PersistenceResult]
) -> tuple[str, ...]:
    """The limits of a run, one or two sentences each."""
    return (
        *(_IMPORTED if manifest.identity.imported else ()),
        *_probe_limits(manifest, best, probes),
        *(_persistence_limits(persistence) if persistence else ()),
        *_precision_limits(manifest),
    )


def _probe_limits(manifest: Manifest, best: ProbeResult, probes: Sequence[ProbeResult]) -> list[str]:
    said = [
        f"A linear probe shows that the {noun(best.classes)} can be read from the states, not that the model uses it, feels "
        "it, or acts on it. Only an intervention could show use.",
        "Intervals are over the situations that the test utterances tell (the two tellings of a pair are one). They do not "
        "cover other seeds, prompts, templates, corpora or models. Intervals that overlap are called undecided here; a paired "
        "test could be sharper.",
        "The best layer is chosen by cross-validation inside the training split, so its test score is not the luckiest of "
        "many. Which layer wins is itself uncertain: see the layers whose intervals overlap.",
    ]
    if manifest.corpus == BUILTIN_CORPUS:
        said.append("Labels are what the author of each utterance intended, not what a reader or a speaker felt.")
    else:
        said.append("Labels are the corpus's own; how they were made, and by whom, bounds what any probe of them can mean.")
    if any(Site.parse(probe.site).position.endswith("mean") for probe in probes):
        said.append(
            "Layer 0 of a mean site is lexical: word embeddings without order or context (and, in some models, position "
            "embeddings). Only what a later layer adds to it can come from the blocks."
        )
    rarest = min(sum(row) for row in best.best.test.confusion)
    if rarest < _FEW_EXAMPLES:
        said.append(
            f"Samples are small: the rarest label has {rarest:,} test utterance{'s' if rarest != 1 else ''}, so scores of "
            "single labels move a lot by chance."
        )
    return said


def _persistence_limits(persistence: Sequence[PersistenceResult]) -> list[str]:
    last = max(result.offsets[-1] for result in persistence)
    return [
        "A score after a forced continuation can come from attention looking back at the utterance, not from a state that "
        "is carried along: the utterance is still in the context.",
        "The refit probe shows that information is present; the probe of offset 0 shows that it is present in the same "
        "form. A lower score of the second alone is a change of form, not forgetting.",
        f"A half-life not reached within the grid is a lower bound: more than {last} tokens, no value. Another text, or other "
        "replies, may give other half-lives.",
        f"The curves rest on {min(result.n_utterances for result in persistence):,} utterances; the layer may have been "
        "chosen by training utterances that are among them.",
    ]


def _precision_limits(manifest: Manifest) -> list[str]:
    computed, stored = manifest.identity.compute_dtype, manifest.identity.stored_dtype
    said: list[str] = []
    if manifest.identity.imported:
        return said
    if "bfloat16" in (computed, stored):
        said.append(
            f"Numbers are rounded: computed in {computed}, stored in {stored}; bfloat16 keeps 8 significant bits, and another "
            "kind of device may give other last bits."
        )
    if manifest.model == _QUANTISED_MODEL:
        said.append(
            f"The weights of {_QUANTISED_MODEL} were dequantised from a 4-bit GGUF file: these are not the numbers of the "
            "model in full precision."
        )
    return said
