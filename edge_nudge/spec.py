"""Which files make a pair, and how they would be loaded.

Owns the description of a pair before anything is loaded. Never loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_nudge.core.events import Role
from edge_nudge.core.request import GenerateRequest, Rule

if TYPE_CHECKING:
    from edge_nudge.engine.devices import Machine
    from edge_nudge.engine.fitting import Plan

DEFAULT_BASE_FORMAT = "qa"
PAIR_RULES = frozenset(
    (Rule.TOP_PROB, Rule.TOKEN, Rule.BLEND)
)  # whose threshold is one for the base model's own probabilities


@dataclass(frozen=True, slots=True)
class PairSpec:
    """Which files make a pair, and how they are spoken to. `rule` and `gamma` are the pair's own defaults."""

    base: Path
    nudging: Path
    name: str | None = None
    gamma: float | None = None
    base_prompt_format: str = DEFAULT_BASE_FORMAT
    chat_template: str | None = None  # None: the nudging model's own
    rule: Rule = Rule.TOP_PROB
    nudging_adapter: Path | None = None  # a LoRA adapter: the nudging model is the base model with it

    @property
    def served_name(self) -> str:
        """The name by which a server serves it."""
        from edge_nudge.catalog.names import model_label

        return self.name or f"{model_label(self.base)}+{model_label(self.nudging_adapter or self.nudging)}"

    def resolve(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the pair's own rule where none was given, and its threshold where that
        fits the rule."""
        nudge = request.nudge
        rule = nudge.rule if "rule" in nudge.model_fields_set else self.rule
        changes: dict[str, object] = {} if rule is nudge.rule else {"rule": rule}
        has_one_scale = rule is self.rule or {rule, self.rule} <= PAIR_RULES
        if nudge.gamma is None and has_one_scale and self.gamma is not None:
            changes["gamma"] = self.gamma
        if not changes:
            return request
        return request.model_copy(update={"nudge": nudge.model_copy(update=changes)})


def plan_load(
    spec: PairSpec,
    *,
    ctx_size: int,
    kv_types: Mapping[Role, str],
    gpu_layers: Mapping[Role, int | None],
    machine: Machine | None = None,
) -> Plan:
    """Check the files of a pair and return how they would be loaded, and whether that fits; None: on this machine.

    Raises ModelFileError, InputError.
    """
    from edge_nudge.engine.adapters import check_adapter
    from edge_nudge.engine.fitting import plan_pair
    from edge_nudge.engine.gguf import check_model_file

    base = check_model_file(spec.base, role="base")
    adapter = check_adapter(spec.nudging_adapter, base) if spec.nudging_adapter else None
    headers = {Role.BASE: base, Role.NUDGING: base if adapter else check_model_file(spec.nudging, role="nudging")}
    return plan_pair(
        headers, ctx_size=ctx_size, kv_types=kv_types, gpu_layers=gpu_layers, adapter=adapter, machine=machine
    )
