"""What a job asks for, against what this machine has and its user may have. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from aitbcd import allotment, planner
from aitbcd.backlog import wish_of
from aitbcd.devices import Inventory
from aitbcd.errors import Forbidden, NotSatisfiable
from aitbcd.model import JobSpec, Owner
from aitbcd.planner import Claim
from aitbcd.settings import Limits


def check(
    spec: JobSpec,
    owner: Owner,
    limits: Limits,
    whole: Claim,
    inventory: Inventory,
    *,
    runs_as: int,
) -> JobSpec:
    """Return the job with the GPUs that it names by UUID, and their model by its whole name.

    Args:
        whole: what jobs share.
        runs_as: the daemon's uid.

    Raises:
        NotSatisfiable: this machine can never run it, or its user may never have so much.
        Forbidden: this daemon cannot run jobs of this user.
    """
    if owner.uid != runs_as and runs_as != 0:
        raise Forbidden(
            f"this daemon runs as uid {runs_as} and cannot run jobs of {owner.name}",
            hint="start aitbcd as yourself, or ask the administrator for a system-wide one",
        )
    claim = Claim(spec.cpus, spec.memory or 0)
    if not claim.fits(whole):
        field, asked = planner.too_much(claim, whole)
        raise NotSatisfiable(
            f"the job {asked}",
            hint=f"ask for less, or raise [slots] {field} in the configuration",
            field=field,
        )
    return _with_gpus(spec, inventory, limits) if spec.gpus else spec


def _with_gpus(spec: JobSpec, inventory: Inventory, limits: Limits) -> JobSpec:
    if limits.gpus is not None and spec.gpus > limits.gpus:
        raise NotSatisfiable(
            f"the job asks for {_count(spec.gpus)} and you may have {limits.gpus} at a time",
            hint="ask for fewer; the limit is [limits] gpus in the configuration",
            field="gpus",
        )
    settled = allotment.settle(inventory.gpus, wish_of(spec))
    if isinstance(settled, str) and inventory.is_partial:
        # Of GPUs that the driver does not show yet nobody knows: the job waits, and says for what.
        return replace(spec, gpu_type=spec.gpu_type and allotment.unsettled(spec.gpu_type))
    if isinstance(settled, str):
        # What is known to be there will be there again: it is not what the job lacks.
        why = f": {inventory.problem}" if inventory.problem and not inventory.gpus else ""
        raise NotSatisfiable(
            f"{settled}{why}", hint="see aitbcctl gpus, or ask for --gpus 0", field=_field(spec)
        )
    return replace(spec, gpu=settled.named, gpu_type=settled.model)


def _field(spec: JobSpec) -> str:
    """Return what a refusal is most likely about."""
    given = {"gpu": spec.gpu, "gpu_type": spec.gpu_type, "min_vram": spec.min_vram,
             "vram": spec.vram}  # fmt: skip
    return next((name for name, value in given.items() if value), "gpus")


def _count(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
