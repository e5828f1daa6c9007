"""A hub, models to publish on it, and a corpus; plans are written by the tests themselves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from extract.models import Model
from extract.quiet import quiet_transformers
from tests.hub import Hub, run_hub

AFFECTOME = Path(sys.executable).with_name("affectome")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub without models."""
    with run_hub() as running:
        yield running


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes models and runs the command line, in a directory of its own."""

    directory: Path
    tokenizer: Path
    """A model's directory, whose tokenizer the models get."""

    def model(self, name: str, seed: int = 0, blocks: int = 2) -> Path:
        """A Llama with random weights, width 16 and a context of 512 tokens."""
        directory = self.directory / "made" / name
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
            initializer_range=0.2,
        )
        torch.manual_seed(seed)
        with quiet_transformers():
            LlamaModel(config).save_pretrained(directory)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(self.tokenizer / file, directory / file)
        return directory

    def corpus(self, name: str = "texts.jsonl", **columns: str) -> Path:
        """Thirty utterances of three labels."""
        path = self.directory / name
        rows: list[dict[str, Any]] = [
            {"text": f"{word} number {n}", "label": label} | columns
            for n in range(10)
            for label, word in (("joy", "a happy"), ("fear", "a frightened"), ("anger", "an angry"))
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def plan(self, text: str) -> Path:
        path = self.directory / "plan.yaml"
        path.write_text(text)
        return path

    def environment(self, hub: Hub | None = None) -> Mapping[str, str]:
        own = {"XDG_STATE_HOME": str(self.directory / "state"), "COLUMNS": "300"}
        return os.environ | own | (hub.environment(self.directory / "hub") if hub else {"HF_ENDPOINT": "http://127.0.0.1:9"})

    def affectome(self, *arguments: str | Path, hub: Hub | None = None) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own, which finds one hub or none."""
        return subprocess.run([AFFECTOME, *arguments], capture_output=True, text=True, env=self.environment(hub))


_LOOP = """
import contextlib, io, json, sys
from cluster.cli import main
for line in sys.stdin:
    sys.argv, code, out, err = ["affectome", *json.loads(line)], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class CommandLine:
    """The command line in one process of its own for many commands, which imports what computes once."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(list(map(str, arguments)), code, out, err)

    def rows(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """What it says with --json, when all is well."""
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture
def command_line(workshop: "Workshop", hub: Hub) -> Iterator[CommandLine]:
    """Finds the hub."""
    program = [sys.executable, "-W", "error", "-c", _LOOP]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=workshop.environment(hub)
    ) as process:
        yield CommandLine(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def workshop(tmp_path: Path, builtin_model: Model) -> Workshop:
    return Workshop(tmp_path, builtin_model.directory)
