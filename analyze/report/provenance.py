"""What was run, where and on what, and the commands that do it again.

All of it is read back from the store (manifest, receipts, the run with the continuation). Keeping the command line a user
typed was rejected: it names defaults that may have changed since, and a run may have been made from Python.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analyze.geometry import GeometryResult
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult, ProbeSpec
from analyze.prompting import SYSTEM_PROMPTS, PromptingResult
from analyze.query import Run, open_store
from analyze.report.evidence import Evidence
from analyze.report.page import Fact, Table
from analyze.report.words import ranges
from analyze.transfer import TransferResult
from analyze.zeroshot import ZeroShotResult
from extract.corpus import read_passages
from extract.documents import Receipt
from extract.request import DEFAULT_DATE


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a persistence measurement was made, read back from the run with the continuation."""

    text: str
    """What was forced after every utterance."""
    passage_id: str | None
    """The built-in passage it is, if it is one."""
    per_label: int
    """Utterances of the commonest label."""
    template: str
    """What made its prompts."""


Measured = Sequence[tuple[PersistenceResult, Continuation | None]]
"""Persistence measurements, each with its continuation; None where the continued run is not in the store."""


def with_continuations(run: Run, persistence: Sequence[PersistenceResult]) -> Measured:
    """Look up how each measurement was made."""
    return [(result, _continuation(run, result.continued_run_id)) for result in persistence]


def facts(run: Run, receipts: Sequence[Receipt], best: ProbeResult, measured: Measured) -> tuple[Fact, ...]:
    """What was run, line by line."""
    manifest, identity = run.manifest, run.manifest.identity
    left_out = (
        f"{best.n_unlabelled:,} utterances without a single label, {best.n_other_split:,} of another split than train and test"
    )
    return (
        Fact("run", f"{run.run_id}, created {manifest.created}"),
        Fact("model", f"{manifest.model}: {manifest.n_layers} blocks, width {manifest.width:,}"),
        Fact("weights", identity.weights),
        *(_imported_facts(run) if identity.imported else _prompt_facts(run)),
        Fact("corpus", f"{manifest.corpus}, {manifest.n_rows:,} rows, sha256:{identity.corpus}"),
        Fact("labels", ", ".join(best.classes)),
        Fact("split", f"{best.split}: {best.n_train:,} train, {best.n_test:,} test of {best.n_test_situations:,} situations"),
        Fact("left out", left_out),
        Fact("sites", ", ".join(identity.sites)),
        Fact("layers", ranges(identity.layers)),
        *(() if identity.imported else _computed_facts(run, receipts)),
        Fact("finished", _finished(receipts)),
        Fact("libraries", _libraries(receipts)),
        *(Fact("continuation", _continuation_words(result, continuation)) for result, continuation in measured),
    )


def _prompt_facts(run: Run) -> tuple[Fact, ...]:
    manifest, identity = run.manifest, run.manifest.identity
    return (
        Fact("tokenizer", f"sha256:{identity.tokenizer}"),
        Fact("template", identity.template if manifest.template != "chat" else f"chat: {identity.template}"),
        Fact("system prompt", manifest.system or "none"),
    )


def _imported_facts(run: Run) -> tuple[Fact, ...]:
    return (
        Fact("imported", "the states were made elsewhere; model, layers and template are what was said of them"),
        Fact("template", run.manifest.template),
        Fact("precision", f"stored in {run.manifest.identity.stored_dtype}"),
    )


def _computed_facts(run: Run, receipts: Sequence[Receipt]) -> tuple[Fact, ...]:
    manifest, identity = run.manifest, run.manifest.identity
    truncated = sum(receipt.n_truncated for receipt in receipts)
    return (
        Fact("precision", f"computed in {identity.compute_dtype}, stored in {identity.stored_dtype}"),
        Fact("attention", identity.attention),
        Fact("cut at the context", f"{truncated:,} utterances" if identity.truncate else "not allowed"),
        Fact("batches", f"shards of {manifest.rows_per_shard:,} rows, {manifest.token_budget:,} tokens a batch"),
    )


def work(receipts: Sequence[Receipt]) -> Table:
    """Receipts summed by where they were made."""
    groups: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        groups.setdefault((receipt.device, receipt.host), []).append(receipt)
    stages = list(dict.fromkeys(stage for receipt in receipts for stage in receipt.seconds))
    done = "imported" if any(receipt.forward == "imported" for receipt in receipts) else "computed"
    return Table(
        caption=f"Where it was {done}: {sum(receipt.n_tokens for receipt in receipts):,} tokens, {len(receipts):,} receipts",
        header=("device", "host", "receipts", "rows", "tokens", *(f"{stage}, s" for stage in stages)),
        rows=tuple((*place, *_work_cells(made, stages)) for place, made in groups.items()),
    )


def commands(run: Run, evidence: Evidence, measured: Measured) -> tuple[str, ...]:
    """The commands that make the run, its results and its report again."""
    return (
        _import_command(run) if run.manifest.identity.imported else _extract_command(run),
        *(_probe_command(run, probe) for probe in evidence.probes),
        *(_geometry_command(run, result) for result in evidence.geometries),
        *(_transfer_command(run, result) for result in evidence.transfers),
        *(_zero_shot_command(run, result) for result in evidence.zero_shots),
        *(_prompting_command(run, result) for result in evidence.promptings),
        *dict.fromkeys(_persistence_command(run, measured, index) for index in range(len(measured))),
        _command("report", run),
    )


def commands_to_measure(run: Run, name: str, *options: str) -> str:
    """What to type for a report with an analysis, a line for each command."""
    return "\n".join((_command(name, run, *options), _command("report", run)))


def _continuation(run: Run, continued_run_id: str) -> Continuation | None:
    try:
        continued = open_store(run.stored.store_location).run(continued_run_id)
    except ValueError:
        return None
    text = continued.manifest.identity.continuation.strip()
    passages = read_passages().to_pylist()
    passage_id = next((str(passage["passage_id"]) for passage in passages if passage["text"].strip() == text), None)
    labels = Counter(label for label in continued.utterances()["label"].to_pylist() if label not in (None, ""))
    return Continuation(text, passage_id, max(labels.values()), continued.manifest.template)


def _continuation_words(result: PersistenceResult, continuation: Continuation | None) -> str:
    measured = f"run {result.continued_run_id}, layer {result.layer}, {result.n_utterances:,} utterances"
    if continuation is None:
        return f"{measured}; text not in this store"
    if result.decoding is not None:
        drawn = f"temperature {result.decoding.temperature:g}" if result.decoding.temperature else "the likeliest tokens"
        return f"{measured}; the model's own replies, at most {result.decoding.max_tokens:,} tokens, {drawn}"
    name = f"passage {continuation.passage_id}, " if continuation.passage_id else ""
    text = " ".join(continuation.text.split())[:90]
    return f"{measured}; {name}\N{LEFT DOUBLE QUOTATION MARK}{text}\N{HORIZONTAL ELLIPSIS}\N{RIGHT DOUBLE QUOTATION MARK}"


def _work_cells(receipts: Sequence[Receipt], stages: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{len(receipts):,}",
        f"{sum(receipt.stop - receipt.start for receipt in receipts):,}",
        f"{sum(receipt.n_tokens for receipt in receipts):,}",
        *(f"{sum(receipt.seconds.get(stage, 0.0) for receipt in receipts):,.1f}" for stage in stages),
    )


def _libraries(receipts: Sequence[Receipt]) -> str:
    """Versions that made the receipts; more than one set where machines differ."""
    made = {", ".join(f"{library} {version}" for library, version in sorted(receipt.versions.items())) for receipt in receipts}
    return "; or ".join(sorted(made)) or "none recorded"


def _finished(receipts: Sequence[Receipt]) -> str:
    if not receipts:
        return "nothing yet"
    first, last = min(receipt.finished for receipt in receipts), max(receipt.finished for receipt in receipts)
    return first if first == last else f"{first} to {last}"


def _command(name: str, run: Run, *options: str) -> str:
    return shlex.join(("affectome", name, run.stored.store_location, run.run_id, *options))


def _probe_command(run: Run, probe: ProbeResult) -> str:
    layers = _layers_argument(run, probe.site, [entry.layer for entry in probe.layers])
    return _command("probe", run, "--site", probe.site, *_spec_arguments(probe.spec), *layers)


def _spec_arguments(spec: ProbeSpec) -> list[str]:
    """What of a probe's specification a command has to say."""
    arguments, usual = ["--kind", spec.kind], ProbeSpec(spec.kind)
    if spec.column != usual.column:
        arguments += ["--label", spec.column]
    if spec.strength is not None:
        arguments += ["--regularisation", f"{spec.strength:g}"]
    if spec.balance != usual.balance:
        arguments += ["--balance", spec.balance]
    return arguments if spec.solver == usual.solver else [*arguments, "--solver", spec.solver]


def _layers_argument(run: Run, site: str, layers: Sequence[int]) -> tuple[str, ...]:
    return () if tuple(layers) == run.layers_of(site) else ("--layers", _list(layers))


def _geometry_command(run: Run, result: GeometryResult) -> str:
    layers = _layers_argument(run, result.site, [entry.layer for entry in result.layers])
    return _command("geometry", run, "--site", result.site, *layers)


def _transfer_command(run: Run, result: TransferResult) -> str:
    columns = {source.partition("=")[0] for source in result.sources if "=" in source}
    by = ("--by", *columns) if len(columns) == 1 else ()
    command = _command(
        "transfer",
        run,
        *by,
        "--site",
        result.site,
        *_spec_arguments(result.spec),
        *_layers_argument(run, result.site, result.layers),
    )
    return command if by else f"{command}  # its sources, {', '.join(result.sources)}, were given from Python"


def _zero_shot_command(run: Run, result: ZeroShotResult) -> str:
    beside = [] if result.beside is None else ["--site", result.beside.site, "--kind", result.beside.spec.kind]
    return _command("zero-shot", run, *beside, "--max-tokens", str(result.max_tokens))


def _prompting_command(run: Run, result: PromptingResult) -> str:
    own_words = [each for each in result.conditions if each.system]
    systems = [
        each.name if SYSTEM_PROMPTS.get(each.name) == each.system else f"{each.name}={each.system}" for each in own_words
    ]
    asked = [] if [each.name for each in result.conditions] == list(SYSTEM_PROMPTS) else systems
    per_label = round(result.chance * result.n_utterances)  # of the commonest label
    options = ["--layers", _list(result.layers), "--per-label", str(per_label), "--max-tokens", str(result.max_tokens)]
    return _command("prompting", run, *options, *(word for system in asked for word in ("--system", system)))


def _persistence_command(run: Run, measured: Measured, index: int) -> str:
    """One command for all layers of a continuation."""
    result, continuation = measured[index]
    together = sorted(
        other.layer for other, _ in measured if (other.continued_run_id, other.kind) == (result.continued_run_id, result.kind)
    )
    command = _command("persistence", run, "--layers", _list(together), "--kind", result.kind)
    if continuation is None:
        return f"{command}  # what run {result.continued_run_id} was continued with is not in this store"
    if result.decoding is not None:
        drawn = ["--reply", str(result.decoding.max_tokens), "--per-label", str(continuation.per_label)]
        if continuation.template != run.manifest.template:
            drawn += ["--template", continuation.template]
        if result.decoding.temperature:
            drawn += ["--temperature", f"{result.decoding.temperature:g}", "--seed", str(result.decoding.seed)]
            drawn += ["--top-p", f"{result.decoding.top_p:g}"]
        return f"{command} {shlex.join(drawn)}"
    if continuation.passage_id is None:
        return f"{command}  # run {result.continued_run_id} was continued with a text that is no built-in passage"
    return f"{command} {shlex.join(('--passage', continuation.passage_id, '--per-label', str(continuation.per_label)))}"


def _import_command(run: Run) -> str:
    """Which file it was is not kept, only what its numbers were."""
    manifest, identity = run.manifest, run.manifest.identity
    words = ["affectome", "import", run.stored.store_location, "--states", "FILE", "--corpus", manifest.corpus]
    words += ["--site", identity.sites[0], "--layers", _list(identity.layers), "--n-layers", str(manifest.n_layers)]
    words += ["--model", manifest.model, "--template", manifest.template]
    return f"{shlex.join(words)}  # FILE: that of the states"


def _extract_command(run: Run) -> str:
    manifest, identity = run.manifest, run.manifest.identity
    everything = identity.layers == tuple(range(manifest.n_layers + 1))
    command = [
        "affectome",
        "extract",
        "--store",
        run.stored.store_location,
        "--model",
        manifest.model,
        "--corpus",
        manifest.corpus,
    ]
    command += ["--limit", str(manifest.n_rows)]  # the corpus may have been longer, or have grown
    command += ["--sites", ",".join(identity.sites), "--layers", "all" if everything else _list(identity.layers)]
    command += ["--template", manifest.template]
    if manifest.system:
        command += ["--system", manifest.system]
    if manifest.date != DEFAULT_DATE:
        command += ["--date", manifest.date]
    command += ["--dtype", identity.compute_dtype, "--stored-dtype", identity.stored_dtype]
    command += ["--attention", identity.attention]
    if identity.truncate:
        command.append("--truncate")
    if identity.offsets:
        command += ["--offsets", _list(identity.offsets)]
    if identity.reply is not None:
        command += ["--reply", str(identity.reply.max_tokens), "--temperature", f"{identity.reply.temperature:g}"]
        command += ["--top-p", f"{identity.reply.top_p:g}", "--seed", str(identity.reply.seed)]
    command += ["--rows-per-shard", str(manifest.rows_per_shard), "--token-budget", str(manifest.token_budget)]
    return shlex.join(command)


def _list(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
