"""The argument of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from paramgolf.config import RunConfig
from paramgolf.data.overlap import Overlap
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Label
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.ledger import Ledger
from paramgolf.runtime.rundir import RunDir


@dataclass(frozen=True)
class Job:
    """What a stage knows of its run: configuration, directory, device, console, time ledger."""

    config: RunConfig
    run: RunDir
    runtime: Runtime
    reporter: Reporter = field(default_factory=Reporter)
    ledger: Ledger = field(default_factory=Ledger)

    @cached_property
    def text(self) -> PreparedText:
        """The prepared text.

        Raises:
            UserError: if it is not prepared yet.
        """
        return PreparedText.of(self.run)

    @property
    def adapted_on(self) -> list[str]:
        """The split that the weights are adapted on, as a list of one name or none."""
        return self.config.adapt.splits

    def label(self, adapted_on: Sequence[str]) -> Label:
        """Return the label of the scored text for weights adapted on these splits."""
        result = self.run.stage_result("prepare") or {}
        overlaps = {name: Overlap(**values) for name, values in result["overlap"].items()}
        return Label.of_run(overlaps, adapted_on)
