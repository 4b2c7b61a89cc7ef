from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.model import WHOLE
from aitbcd.pricing import charge_micro, gpu_hour
from aitbcd.settings import Pricing

HOUR_US = 3_600_000_000
H100 = "NVIDIA H100 80GB HBM3"


def test_an_hour_costs_the_price_of_an_hour() -> None:
    pricing = Pricing(cpu_hour=50_000, gpu_hour={"h100": 2_500_000})
    assert charge_micro(pricing, cpus=4, gpu_models=[H100, H100], used_us=HOUR_US) == 5_200_000
    assert charge_micro(pricing, cpus=1, gpu_models=[], used_us=HOUR_US // 2) == 25_000


def test_nothing_is_charged_where_no_price_is_set() -> None:
    assert charge_micro(Pricing(), cpus=64, gpu_models=[H100], used_us=HOUR_US) == 0


def test_the_entry_that_says_most_of_the_name_counts() -> None:
    pricing = Pricing(gpu_hour={"NVIDIA": 1, "H100 80GB": 3, "H100": 2})
    assert gpu_hour(pricing, H100) == 3
    assert gpu_hour(pricing, "AMD") == 0


def test_a_clock_that_went_back_earns_nobody_anything() -> None:
    assert charge_micro(Pricing(cpu_hour=10**6), cpus=1, gpu_models=[], used_us=-5) == 0


@given(st.integers(0, 10**12), st.integers(1, 1024), st.integers(0, 10 * 365 * 24 * HOUR_US))
def test_a_charge_is_the_exact_price_rounded(price: int, cpus: int, used_us: int) -> None:
    charged = charge_micro(Pricing(cpu_hour=price), cpus=cpus, gpu_models=[], used_us=used_us)
    assert abs(charged * HOUR_US - price * cpus * used_us) * 2 <= HOUR_US


@given(st.integers(0, 10**12), st.integers(1, WHOLE), st.integers(0, 365 * 24 * HOUR_US))
def test_a_share_of_a_gpu_costs_that_part_of_its_price(
    price: int, share: int, used_us: int
) -> None:
    pricing = Pricing(cpu_hour=0, gpu_hour={"h100": price})
    charged = charge_micro(pricing, cpus=1, gpu_models=[H100], gpu_share=share, used_us=used_us)
    assert abs(charged * HOUR_US * WHOLE - price * share * used_us) * 2 <= HOUR_US * WHOLE
