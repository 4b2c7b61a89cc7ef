"""What a run costs: integer millionths of the currency, from prices an hour. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aitbcd.model import WHOLE
from aitbcd.settings import Pricing

_HOUR_US = 3_600_000_000


def charge_micro(
    pricing: Pricing,
    *,
    cpus: int,
    gpu_models: Iterable[str],
    gpu_share: int = WHOLE,
    used_us: int,
) -> int:
    """Return the price of ``used_us`` microseconds on so many cores and these GPUs.

    Rounded once, half up, over the sum: parts of a millionth do not add up to errors.

    Args:
        gpu_share: millionths of each GPU.
    """
    gpus = sum(gpu_hour(pricing, model) for model in gpu_models)
    an_hour = pricing.cpu_hour * cpus * WHOLE + gpus * gpu_share
    hour = _HOUR_US * WHOLE
    return (an_hour * max(0, used_us) + hour // 2) // hour


def gpu_hour(pricing: Pricing, model: str) -> int:
    """Return the price of an hour of a GPU: the entry that says most of its name; 0 for none."""
    lowered = model.casefold()
    fitting = [name for name in pricing.gpu_hour if name.casefold() in lowered]
    return pricing.gpu_hour[max(fitting, key=len)] if fitting else 0
