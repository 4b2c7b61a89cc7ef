"""What a run costs: integer millionths of the currency, from prices an hour. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aitbcd.settings import Pricing

_HOUR_US = 3_600_000_000


def charge_micro(pricing: Pricing, *, cpus: int, gpu_models: Iterable[str], used_us: int) -> int:
    """Return the price of ``used_us`` microseconds on so many cores and these GPUs.

    Rounded once, half up, over the sum: parts of a millionth do not add up to errors.
    """
    an_hour = pricing.cpu_hour * cpus + sum(gpu_hour(pricing, model) for model in gpu_models)
    return (an_hour * max(0, used_us) + _HOUR_US // 2) // _HOUR_US


def gpu_hour(pricing: Pricing, model: str) -> int:
    """Return the price of an hour of a GPU: the entry that says most of its name; 0 for none."""
    lowered = model.casefold()
    fitting = [name for name in pricing.gpu_hour if name.casefold() in lowered]
    return pricing.gpu_hour[max(fitting, key=len)] if fitting else 0
