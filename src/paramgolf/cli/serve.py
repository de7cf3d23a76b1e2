"""`paramgolf serve`: a packed model behind HTTP on the loopback address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from paramgolf.cli.live import standard_output
from paramgolf.runtime.names import find_artifact


@dataclass(frozen=True)
class ServeArguments:
    """Serve a packed model to this machine: a page, and /v1/completions for OpenAI's clients.

    The page colours what is typed by the bits that it costs the model, and continues it. Other
    machines cannot reach it.
    """

    artifact: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ARTIFACT")]]
    """A packed model (model.bin), or the run or bundle that contains it."""
    port: int = 8000
    """The port of 127.0.0.1 to listen on; 0: any free one."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: str = "auto"
    """auto, cpu or cuda."""


def serve(arguments: list[str]) -> None:
    """Run `paramgolf serve`."""
    parsed = tyro.cli(ServeArguments, prog="paramgolf serve", args=arguments)

    from paramgolf.scoring.predictor import load
    from paramgolf.serve.server import Server, serve

    artifact = find_artifact(parsed.artifact)
    predictor = load(artifact, parsed.tokenizer, parsed.device)
    full = artifact.resolve()
    name = full.parent.name if full.name == "model.bin" else full.stem
    server = Server(predictor, name, parsed.port, f"paramgolf serve {parsed.artifact}")
    reporter = standard_output()
    reporter.line(f"page      http://127.0.0.1:{server.port}/")
    reporter.line(f"endpoint  http://127.0.0.1:{server.port}/v1, model {name}; Ctrl-C ends it")
    serve(server)
