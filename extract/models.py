"""Names to model directories: packaged, imported, a local directory, or a hub id pinned to a commit.

Weights are read from safetensors only and `trust_remote_code` stays off. A name is looked up in this order: an imported
model, one of a package, a directory, the hub; nothing is downloaded unless a hub id is what was asked for.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from extract.identity import canonical_json, file_sha256, sha256_hex
from extract.packages import BUILTIN, PACKAGED, PackagedModel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",  # says what ends a reply
    "chat_template.jinja",
    *_TOKENIZER_FILES,
]
_NOT_SUBFOLDERS = ["*/*"]
_HUB_TIMEOUT_SECONDS = 10.0
_VOLATILE_KEYS = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "is_local", "local_files_only"}
)
"""Keys of configuration files that say who wrote the file, not what it computes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine's disk."""

    name: str
    """What the user called it: an imported model's name, a path or a hub id."""
    directory: Path
    """Holds config.json, safetensors and the tokenizer's files."""
    commit: str | None = None
    """The hub commit it was pinned to; None for local models."""

    @property
    def weights_identity(self) -> str:
        """`hub:` and the commit, or `sha256:` over the safetensors files and the configuration."""
        return f"hub:{self.name.partition('@')[0]}@{self.commit}" if self.commit else _weights_digest(self.directory)

    @property
    def tokenizer_digest(self) -> str:
        """SHA-256 over the tokenizer's files, less the keys that only say who wrote them."""
        present = [name for name in _TOKENIZER_FILES if (self.directory / name).is_file()]
        return sha256_hex(canonical_json({name: _file_digest(self.directory / name) for name in present}))


def cache_directory() -> Path:
    """What affectome keeps on this machine: `$XDG_CACHE_HOME/affectome`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "affectome"


def models_directory() -> Path:
    """Where imported models live."""
    return cache_directory() / "models"


def imported_models() -> list[Model]:
    """The models imported on this machine, by name."""
    root = models_directory()
    names = sorted(entry.name for entry in root.iterdir() if _NAME.fullmatch(entry.name)) if root.is_dir() else []
    return [Model(name, root / name) for name in names if (root / name / "config.json").is_file()]


def check_name(name: str) -> str:
    """The name, when it may become a directory's name.

    Raises:
        ValueError: it holds anything but letters, digits, dots, underscores and dashes.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a model; use up to 96 letters, digits, dots, underscores and dashes")
    return name


def find_model(name: str) -> Model:
    """Resolve a name to a model on disk, importing a packaged one on first use and pinning a hub id to a commit.

    Raises:
        ValueError: there is no such model, its weights are not safetensors, or the hub cannot be reached; says what to do.
    """
    if _NAME.fullmatch(name) and (models_directory() / name / "config.json").is_file():
        return Model(name, models_directory() / name)
    if name in PACKAGED:
        return _from_package(PACKAGED[name])
    path = _path(name)
    if path is not None and path.is_dir():
        return Model(str(path.resolve()), _checked_directory(path.resolve()))
    if path is not None and path.suffix == ".gguf":
        raise ValueError(f"{name} is a GGUF file; turn it into safetensors once: affectome models import {name}")
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name)
    known = ", ".join(sorted({*PACKAGED, *(model.name for model in imported_models())}))
    raise ValueError(f"there is no model {name!r}; give one of {known}, a directory, or a hub id such as Qwen/Qwen3-0.6B")


def model_of(weights: str, name: str) -> Model:
    """The model that a run was planned with, on this machine.

    Args:
        weights: the run's identity of them (`Model.weights_identity`).
        name: what the user called it.

    Raises:
        ValueError: as from `find_model`. Whether a local model is the same is checked when it is loaded (extract.engine).
    """
    return find_model(weights.removeprefix("hub:") if weights.startswith("hub:") else name)


def _path(name: str) -> Path | None:
    """The name as a path, where it can be one: a home that does not exist or an endless name is no path."""
    try:
        path = Path(name).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError):
        return None
    return path if name else None


def _from_package(packaged: PackagedModel) -> Model:
    paths = packaged.paths()
    if paths is None:
        raise ValueError(f"{packaged.name} is not installed; run: {packaged.install}")
    if packaged.sha256 is None:
        return Model(packaged.name, _checked_directory(paths[0]))
    from extract.gguf import import_gguf  # deferred: loads torch and transformers, which listing models does not need

    with packaged.gguf(paths) as source:
        return import_gguf(source, packaged.name)


def _checked_directory(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} is not a model directory: it has no config.json")
    if not list(directory.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in directory.glob(pattern))
        found = f" (found {', '.join(others[:3])})" if others else ""
        raise ValueError(
            f"{directory} holds no safetensors{found}; affectome reads no pickled weights. "
            "Save the model with save_pretrained(), or import a GGUF with: affectome models import FILE"
        )
    for index in directory.glob("*.safetensors.index.json"):
        absent = sorted(set(_read_json(index).get("weight_map", {}).values()) - {path.name for path in directory.iterdir()})
        if absent:
            raise ValueError(f"{directory} is not whole: {absent[0]} and perhaps more of its weights are missing")
    return directory


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _from_hub(name: str) -> Model:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    if _COMMIT.fullmatch(revision):  # a pinned commit that is on this disk needs no network
        try:
            cached = snapshot_download(
                repository, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_SUBFOLDERS, local_files_only=True
            )
            return Model(name, _checked_directory(Path(cached)), revision)
        except (LocalEntryNotFoundError, ValueError):  # not there, or only in part: the hub has the rest
            pass
    try:
        commit = HfApi().model_info(repository, revision=revision or None, timeout=_HUB_TIMEOUT_SECONDS).sha
        directory = snapshot_download(repository, revision=commit, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_SUBFOLDERS)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(f"the hub has no model {name!r}, or it is private or gated; check the name and your token") from error
    except Exception as error:  # the hub client's transport errors differ from version to version; all mean the same here
        raise ValueError(
            f"cannot get {name!r} from the hub: {error or type(error).__name__}. "
            f"Without a network use a directory, {BUILTIN}, or a commit that is in the local cache (NAME@COMMIT)"
        ) from error
    return Model(name, _checked_directory(Path(directory)), commit)


def _weights_digest(directory: Path) -> str:
    files = sorted(directory.glob("*.safetensors"))
    parts = {path.name: _file_digest(path) for path in [*files, directory / "config.json"]}
    return f"sha256:{sha256_hex(canonical_json(parts))}"


def _file_digest(path: Path) -> str:
    """The digest of a file, computed once in a process unless it was written again."""
    state = path.stat()
    return _digest_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=256)
def _digest_in_state(path: Path, *_: int) -> str:
    if path.suffix != ".json":
        return file_sha256(path)
    return sha256_hex(canonical_json(_without_volatile_keys(json.loads(path.read_bytes()))))


def _without_volatile_keys(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_volatile_keys(value) for key, value in content.items() if key not in _VOLATILE_KEYS}
    return content
