"""Where in the network and where in the text a hidden state is read: `component.position`, and which layers.

Layers follow `hidden_states[i]` of transformers: 0 is the embedding output, i the output of block i. What attention and MLP
add to the residual stream exists for layers 1 to L. The state after the final norm is never layer L of `resid`; it is a
component of its own, which exists for layer L only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

COMPONENTS = ("resid", "attn_out", "mlp_out", "final_norm")
"""Components: `resid`, the output of a block; `attn_out` and `mlp_out`, what attention and MLP add to the residual stream,
behind a norm of their own where the model has one; `final_norm`, the last block's output after the norm that follows it."""

POSITIONS = ("last", "mean", "first", "offset", "all", "prompt_last", "prompt_mean", "reply")
"""Token positions. `last`, `mean`, `first`, `offset` and `all` (every token) speak of the utterance's own tokens, `prompt_*` of
the whole prompt, `reply` of a grid of offsets from the prompt's last token into the model's own reply."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place where hidden states are read, such as `resid.last`."""

    component: str
    """One of COMPONENTS."""
    position: str
    """One of POSITIONS."""

    @property
    def pooled(self) -> bool:
        """Whether the site keeps one vector for each utterance."""
        return self.position not in ("offset", "all", "reply")

    @property
    def on_grid(self) -> bool:
        """Whether the site keeps one vector for each utterance and offset of the run's grid."""
        return self.position in ("offset", "reply")

    def layers(self, asked: Sequence[int], n_layers: int) -> tuple[int, ...]:
        """Which of the layers asked for exist at this site, in a model of `n_layers` blocks."""
        match self.component:
            case "resid":
                return tuple(asked)
            case "final_norm":
                return tuple(layer for layer in asked if layer == n_layers)
            case _:
                return tuple(layer for layer in asked if layer > 0)

    def __str__(self) -> str:
        return f"{self.component}.{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `component.position`.

        Raises:
            ValueError: the site does not exist; the message names the ones that do.
        """
        component, _, position = text.strip().partition(".")
        if component not in COMPONENTS or position not in POSITIONS:
            raise ValueError(
                f"there is no site {text.strip()!r}; join one of {', '.join(COMPONENTS)} and one of {', '.join(POSITIONS)} "
                "with a dot, such as resid.last"
            )
        return cls(component, position)


def parse_sites(text: str) -> tuple[Site, ...]:
    """Read a comma-separated list of sites, sorted and without repeats.

    Raises:
        ValueError: a site does not exist, or the list is empty.
    """
    sites = tuple(sorted({Site.parse(part) for part in text.split(",") if part.strip()}))
    if not sites:
        raise ValueError("no site is named; for example resid.last,resid.mean")
    return sites


def parse_offsets(text: str) -> tuple[int, ...]:
    """Read a comma-separated list of token offsets; empty for none.

    Raises:
        ValueError: a part is no whole number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(re.fullmatch(r"-?\d+", part, re.ASCII) for part in parts):
        raise ValueError(f"cannot read offsets {text!r}; write whole numbers with commas between, such as 0,1,2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Read `all`, `8,16` or `0:12` (a half-open range, as in Python) for a model of `n_layers` blocks.

    Returns:
        Ascending layers without repeats, each from 0 (embedding output) to `n_layers` (output of the last block).

    Raises:
        ValueError: a part is not a layer or a range, or a layer does not exist.
    """
    everything = range(n_layers + 1)
    if text.strip() == "all":
        return tuple(everything)
    layers: set[int] = set()
    for part in (piece.strip() for piece in text.split(",")):
        match = re.fullmatch(r"(\d+)(?::(\d+))?", part)
        if not match:
            raise ValueError(f"cannot read layers {text!r}; write all, a list such as 8,16 or a range such as 0:12")
        start, stop = int(match[1]), int(match[2] or int(match[1]) + 1)
        if start < stop and stop - 1 > n_layers:
            absent = max(start, n_layers + 1)
            raise ValueError(f"there is no layer {absent}; this model has layers 0 (embedding) to {n_layers}")
        layers.update(range(start, stop))
    if not layers:
        raise ValueError(f"the range {text!r} holds no layer; it counts as in Python, so 8:9 is layer 8")
    return tuple(sorted(layers))
