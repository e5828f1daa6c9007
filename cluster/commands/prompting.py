"""affectome prompting: what system prompts do to the state and to the reply."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import AddressOption, JsonOption, RunArgument, StoreArgument, WorkersOption
from cluster.console import Row, note, print_json, print_rows
from cluster.execution import Execution
from extract.sites import parse_layers

if TYPE_CHECKING:  # it takes seconds to load
    from analyze.prompting import PromptingResult
    from analyze.query import Run
    from analyze.scores import Interval

DEFAULT_PER_LABEL = 24
DEFAULT_MAX_TOKENS = 64


def prompting(
    store: StoreArgument,
    run: RunArgument,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEXT",
            help="A system prompt, or a built-in one's name; repeatable. Without it, emotional and composed.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Which layers; without it, quarters of the depth and the best of kept probes.", show_default=False),
    ] = None,
    per_label: Annotated[int, typer.Option(min=5, help="Most utterances of each label.")] = DEFAULT_PER_LABEL,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply.")] = DEFAULT_MAX_TOKENS,
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the model reply to a sample of the utterances under several system prompts, and compare its states and replies."""
    from analyze.prompting import chosen_conditions
    from analyze.query import open_store
    from cluster import pipeline

    conditions, opened = chosen_conditions(system or []), open_store(store).run(run)
    chosen = _default_layers(opened) if layers is None else parse_layers(layers, opened.manifest.n_layers)
    result = pipeline.prompting(opened, conditions, chosen, per_label, max_tokens, store, Execution(workers, address))
    if as_json:
        print_json(asdict(result))
    else:
        print_prompting(result)


def print_prompting(result: "PromptingResult") -> None:
    """Print what probes read, how states moved, and what the replies are like."""
    _print_conditions(result)
    first = result.conditions[0].name
    sizes = f"{result.n_utterances:,} utterances of {result.n_situations:,} situations, chance {result.chance:.3f}"
    readings: list[Row] = [
        {
            "site": reading.site,
            "layer": reading.layer,
            "system_prompt": reading.condition,
            "own_probe": _text(reading.accuracy),
            "auroc": _text(reading.auroc),
            f"own_less_{first}'s_own": "" if reading.condition == first else _around(reading.change),
            f"{first}'s_probe": _text(reading.first_accuracy),
            "its_auroc": _text(reading.first_auroc),
            "own_less_that": "" if reading.condition == first else _around(reading.loss),
        }
        for reading in result.readings
    ]
    print_rows(f"Accuracy and AUROC of probes on utterances they were not fitted to, {sizes}", readings, as_json=False)
    shifts: list[Row] = [
        {
            "site": shift.site,
            "layer": shift.layer,
            "from": shift.start,
            "to": shift.end,
            "distance_[95%]": None if shift.distance is None else _text(shift.distance),
            "p": shift.p_value,
            **{name: _around(move) for name, move in zip(result.classes, shift.moves, strict=True)},
        }
        for shift in result.shifts
    ]
    title = f"How states move, in standard deviations, and by how much {first}'s probe then changes each mean probability"
    print_rows(title, shifts, as_json=False)
    _print_along(result)
    _print_replies(result)
    note(
        "The bag of words is a lexical proxy and no judge: it cannot tell a reply that names the user's emotion from one that "
        "expresses it."
    )


def _print_conditions(result: "PromptingResult") -> None:
    without = f"none given; the chat template writes {result.default_system!r}" if result.default_system else "none given"
    rows: list[Row] = [
        {"name": condition.name, "system_prompt": condition.system or without, "run": run_id}
        for condition, run_id in zip(result.conditions, result.run_ids, strict=True)
    ]
    print_rows("System prompts", rows, as_json=False)


def _print_along(result: "PromptingResult") -> None:
    offsets = sorted({place.offset for place in result.along})
    rows: list[Row] = []
    for layer in result.layers:
        for condition in result.conditions:
            places = [place for place in result.along if (place.layer, place.condition) == (layer, condition.name)]
            cells = {
                f"@{place.offset}": f"{'-' if place.auroc is None else _text(place.auroc)} of {place.n_utterances:,}"
                for place in places
            }
            rows.append({"layer": layer, "system_prompt": condition.name, **cells})
    if offsets:
        print_rows(
            "AUROC of the user's emotion so many tokens into the reply, of as many replies as are that long", rows, False
        )


def _print_replies(result: "PromptingResult") -> None:
    rows: list[Row] = []
    for reply in result.replies:
        mean = {"tokens": f"{reply.n_tokens.value:.1f}", "ended": _text(reply.ended), "accuracy": _text(reply.accuracy)}
        says = {name: f"{share.value:.3f}" for name, share in zip(result.classes, reply.probability, strict=True)}
        rows.append({"replies": reply.condition, **mean, **says})
    for reply in result.replies[1:]:
        change = {"tokens": _around(reply.n_tokens_change), "ended": "", "accuracy": _around(reply.accuracy_change)}
        moves = {name: _around(move) for name, move in zip(result.classes, reply.probability_change, strict=True)}
        rows.append({"replies": f"{reply.condition} less {result.replies[0].condition}", **change, **moves})
    title = (
        f"Replies of at most {result.max_tokens:,} tokens, and how a bag of words reads them: accuracy against the user's "
        f"emotion ({_text(result.words_accuracy)} on the utterances themselves), mean probability of each label"
    )
    print_rows(title, rows, as_json=False)


def _default_layers(run: "Run") -> tuple[int, ...]:
    """Quarters of the depth, and the best layer of each kind of probe kept with the run."""
    from analyze import results
    from analyze.prompting import SITES, quartiles

    best = {kept.best_layer for kept in results.probes(run) if kept.site in SITES}
    return tuple(sorted({*quartiles(run.manifest.n_layers), *best}))


def _text(interval: "Interval") -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _around(interval: "Interval") -> str:
    """A mean with the half width of its interval, which is even on both sides."""
    return f"{interval.value:+.3f} ±{interval.high - interval.value:.3f}"
