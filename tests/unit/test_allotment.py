from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd.allotment import Held, Stock, Wish, describe, lacking, settle, unsettled
from aitbcd.devices import LINKS, Gpu, GpuState, MigInstance

GIB = 1 << 30
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-PCIE-40GB"


def gpu(
    index: int,
    *,
    name: str = H100,
    memory: int = 80 * GIB,
    state: GpuState = GpuState.FREE,
    links: Mapping[str, str] | None = None,
) -> Gpu:
    return Gpu(index, f"GPU-{index}", name, None, memory, 0, state, links=links or {})


def machine(count: int, **about: object) -> tuple[Gpu, ...]:
    return tuple(gpu(index, **about) for index in range(count))  # type: ignore[arg-type]


def test_a_job_without_gpus_gets_none() -> None:
    assert Stock.of(machine(2)).allot(Wish()) == ()


def test_only_free_gpus_are_given() -> None:
    states = [GpuState.FOREIGN, GpuState.DRAINED, GpuState.LOST, GpuState.FREE]
    stock = Stock.of([gpu(index, state=state) for index, state in enumerate(states)])
    assert stock.allot(Wish(1)) == ("GPU-3",)
    assert stock.allot(Wish(2)) is None


def test_a_gpu_is_given_once() -> None:
    stock = Stock.of(machine(2)).with_held(Held(["GPU-0"]))
    assert stock.allot(Wish(1)) == ("GPU-1",)
    assert stock.allot(Wish(2)) is None


def test_the_smallest_that_will_do_is_given() -> None:
    stock = Stock.of([gpu(0), gpu(1, name=A100, memory=40 * GIB)])
    assert stock.allot(Wish(1)) == ("GPU-1",)
    assert stock.allot(Wish(1, min_memory=41 * GIB)) == ("GPU-0",)


L40, L40S, ADA = "NVIDIA L40", "NVIDIA L40S", "NVIDIA GeForce RTX 4090"
CHINA, SLICE = f"{ADA} D", f"{H100} MIG 1g.10gb"


def part(index: int, number: int, *, memory: int = 10 * GIB) -> Gpu:
    about = MigInstance(f"GPU-{index}", number, 0)
    return replace(gpu(index, name=SLICE, memory=memory), uuid=f"MIG-{number}", mig=about)


def meant(gpus: list[Gpu], wish: Wish) -> str:
    """Return the model that is meant, or the refusal."""
    settled = settle(gpus, wish)
    return settled if isinstance(settled, str) else settled.model or ""


@pytest.mark.parametrize(
    ("names", "said", "model"),
    [
        ([A100, H100], "h100", H100),
        ([A100, H100], "H100 80gb", H100),
        ([A100, H100], "nvidia hbm3", H100),
        ([H100, ADA], "RTX4090", ADA),
        ([H100, ADA], "rtx-4090", ADA),
        ([H100, ADA], "40", ADA),
        ([L40, L40S], "l40", L40),
        ([L40, L40S], "L40S", L40S),
        ([ADA, CHINA], "geforce rtx 4090", ADA),
        ([ADA, CHINA], "4090d", CHINA),
        ([H100, H100], "nvidia", H100),
    ],
)
def test_an_unambiguous_part_of_a_name_is_a_type(names: list[str], said: str, model: str) -> None:
    gpus = [gpu(index, name=name) for index, name in enumerate(names)]
    assert meant(gpus, Wish(1, said)) == model


@pytest.mark.parametrize(
    ("names", "said"),
    [([H100, ADA], "nvidia"), ([H100, A100], "100"), ([ADA, CHINA], "4090"), ([L40, L40S], "40")],
)
def test_a_part_of_several_names_is_refused_with_them(names: list[str], said: str) -> None:
    gpus = [gpu(index, name=name) for index, name in enumerate(names)]
    assert f"'{said}' can mean {names[0]} or {names[1]} here" in meant(gpus, Wish(1, said))


@pytest.mark.parametrize("said", ["-", "a100", "hbm3 90gb"])
def test_what_is_in_no_name_is_refused_with_what_there_is(said: str) -> None:
    assert f"no GPU here is a '{said}': there are 1 x {H100}" in meant([gpu(0)], Wish(1, said))


def test_what_else_is_asked_for_tells_which_model_is_meant() -> None:
    gpus = [gpu(0, name="NVIDIA A100-SXM4-40GB", memory=40 * GIB), gpu(1, name=H100)]
    assert meant(gpus, Wish(1, "nvidia", min_memory=60 * GIB)) == H100
    assert meant(gpus, Wish(1, "nvidia", named=("1",))) == H100


def test_the_name_of_a_gpu_with_mig_devices_means_the_whole_one_where_there_is_one() -> None:
    gpus = [gpu(0), part(1, 1), part(1, 2)]
    assert meant(gpus, Wish(1, "h100")) == H100
    assert meant(gpus, Wish(1, "1g.10gb")) == SLICE
    assert meant(gpus[1:], Wish(1, "h100")) == SLICE


def test_only_the_model_that_is_meant_is_given() -> None:
    stock = Stock.of([gpu(0, name=L40S), gpu(1, name=L40)])
    assert stock.allot(Wish(1, L40)) == ("GPU-1",)
    assert stock.allot(Wish(2, L40)) is None


def test_what_nobody_could_settle_is_granted_by_index_and_a_part_of_a_name() -> None:
    stock = Stock.of([gpu(0), gpu(1, name="NVIDIA A100-SXM4-40GB")])
    assert stock.allot(Wish(1, unsettled("NVIDIA A100"))) == ("GPU-1",)
    assert stock.allot(Wish(1, unsettled("h100"))) == ("GPU-0",)
    assert stock.allot(Wish(1, named=("1",))) == ("GPU-1",)


def test_a_job_gets_one_mig_device_and_no_more() -> None:
    gpus = [gpu(0), part(1, 1), part(1, 2)]
    stock = Stock.of(gpus)
    assert stock.allot(Wish(1)) == ("MIG-1",)
    assert stock.allot(Wish(2)) is None
    said = settle(gpus, Wish(2))
    assert "no more than one MIG device" in str(said)
    assert "MIG" not in str(settle([gpu(0)], Wish(2)))


def test_the_index_of_a_gpu_with_mig_devices_means_any_of_them() -> None:
    gpus = [part(0, 1), part(0, 2), gpu(1)]
    settled = settle(gpus, Wish(1, named=("0",)))
    assert isinstance(settled, Wish)
    assert settled.named == ("MIG-1", "MIG-2")
    assert Stock.of(gpus, [Held(["MIG-1"])]).allot(settled) == ("MIG-2",)
    assert "no more than one MIG device" in str(settle(gpus, Wish(2, named=("0", "1"))))


def test_a_mig_device_is_named_as_lists_show_it_and_all_of_a_gpu_by_its_uuid() -> None:
    gpus = [part(0, 1), part(0, 2), gpu(1)]
    for name, named in (("0:2", ("MIG-2",)), ("GPU-0", ("MIG-1", "MIG-2")), ("MIG-1", ("MIG-1",))):
        assert settle(gpus, Wish(1, named=(name,))) == Wish(1, named=named)
    assert "the job asks for GPU 0:1, 0:2, a program" in str(
        settle(gpus, Wish(2, named=("MIG-1", "0:2")))
    )
    # Before anybody knew the UUIDs.
    assert Stock.of(gpus).allot(Wish(1, named=("0:2",))) == ("MIG-2",)
    assert "known are 0:1 (MIG-1), 0:2 (MIG-2), 1 (GPU-1)" in str(
        settle(gpus, Wish(1, named=("2",)))
    )


def test_a_gpu_is_named_by_an_unambiguous_beginning_of_its_uuid_too() -> None:
    gpus = [replace(gpu(0), uuid="GPU-aa1"), replace(gpu(1), uuid="GPU-ab2")]
    assert settle(gpus, Wish(1, named=("GPU-aa",))) == Wish(1, named=("GPU-aa1",))
    assert "GPU-a is the beginning of GPU-aa1 and GPU-ab2" in str(
        settle(gpus, Wish(1, named=("GPU-a",)))
    )
    assert "there is no GPU GPU- here" in str(settle(gpus, Wish(1, named=("GPU-",))))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            Wish(1, "4090", named=("0",)),
            f"GPU 0 is a {H100}, and the job asks for one of type 4090",
        ),
        (
            Wish(1, min_memory=100 * GIB, named=("0",)),
            f"GPU 0 ({H100}) has 80 GiB, and the job asks for 100 GiB",
        ),
        (Wish(1, named=("0",), share=90 * GIB), f"GPU 0 ({H100}) has 80 GiB"),
    ],
)
def test_what_contradicts_a_named_gpu_is_said(wish: Wish, words: str) -> None:
    assert words in str(settle([gpu(0), gpu(1, name=ADA)], wish))


def test_gpus_of_a_set_are_close_together() -> None:
    pairs = {0: 3, 3: 0, 1: 2, 2: 1}
    gpus = [gpu(index, links={f"GPU-{pairs[index]}": "nvlink"}) for index in range(4)]
    assert set(Stock.of(gpus).allot(Wish(2)) or ()) in ({"GPU-0", "GPU-3"}, {"GPU-1", "GPU-2"})
    without = Stock.of(gpus).with_held(Held(["GPU-0"]))
    assert set(without.allot(Wish(2)) or ()) == {"GPU-1", "GPU-2"}


def test_named_gpus_are_those_and_no_others() -> None:
    stock = Stock.of(machine(3))
    assert stock.allot(Wish(1, named=("GPU-1",))) == ("GPU-1",)
    assert stock.with_held(Held(["GPU-1"])).allot(Wish(1, named=("GPU-1",))) is None
    assert settle(machine(3), Wish(1, named=("2",))) == Wish(1, named=("GPU-2",))


def test_shares_are_packed_where_they_just_fit() -> None:
    stock = Stock.of([gpu(0), gpu(1, memory=24 * GIB)])
    first = stock.allot(Wish(share=10 * GIB))
    assert first == ("GPU-1",)
    stock = stock.with_held(Held(first, 10 * GIB))
    assert stock.allot(Wish(share=14 * GIB)) == ("GPU-1",)
    assert stock.allot(Wish(share=15 * GIB)) == ("GPU-0",)
    assert stock.allot(Wish(1)) == ("GPU-0",)


def test_a_gpu_with_shares_is_busy_and_takes_more_of_them() -> None:
    stock = Stock.of([gpu(0, state=GpuState.BUSY)], [Held(["GPU-0"], GIB)], shares_max=2)
    assert stock.allot(Wish(share=GIB)) == ("GPU-0",)
    assert stock.with_held(Held(["GPU-0"], GIB)).allot(Wish(share=GIB)) is None


def test_a_gpu_with_shares_takes_no_more_while_a_stranger_is_there() -> None:
    shared = replace(gpu(0, state=GpuState.BUSY), reason="ann's process 7 holds 50 GiB")
    held = [Held(["GPU-0"], 10 * GIB)]
    assert Stock.of([shared, gpu(1)], held).allot(Wish(share=GIB)) == ("GPU-1",)
    assert Stock.of([shared], held).allot(Wish(share=GIB)) is None


def test_a_whole_gpu_has_no_room_for_shares() -> None:
    stock = Stock.of([gpu(0, state=GpuState.BUSY)]).with_held(Held(["GPU-0"]))
    assert stock.allot(Wish(share=1)) is None


def test_gpus_are_collected_for_a_job_that_waits_for_many() -> None:
    stock = Stock.of(machine(4)).with_held(Held(["GPU-0", "GPU-1"]))
    wish = Wish(3)
    assert stock.allot(wish) is None
    assert stock.without(stock.collected_for(wish)).allot(Wish(1)) is None
    assert stock.without(stock.collected_for(wish)).allot(Wish(share=GIB)) is None


def test_no_share_comes_onto_what_is_collected_for_a_whole_gpu() -> None:
    shared = Stock.of(machine(2)).with_held(Held(["GPU-0"], 20 * GIB))
    assert shared.without(shared.collected_for(Wish(2))).allot(Wish(share=GIB)) is None
    # The one that has to become free is the one with fewer shares; the other takes more of them.
    both = shared.with_held(Held(["GPU-1"], GIB)).with_held(Held(["GPU-1"], GIB))
    assert both.without(both.collected_for(Wish(1))).allot(Wish(share=GIB)) == ("GPU-1",)
    assert both.without(both.collected_for(Wish(1, named=("GPU-1",)))).allot(Wish(share=GIB)) == (
        "GPU-0",
    )


def test_a_gpu_whose_memory_the_driver_does_not_tell_is_given_as_a_whole() -> None:
    stock = Stock.of(machine(1, memory=0))
    assert stock.has_room
    assert stock.allot(Wish(share=1)) is None
    assert stock.allot(Wish(1)) == ("GPU-0",)


def test_what_is_collected_is_no_more_than_asked_for() -> None:
    stock = Stock.of([gpu(0), gpu(7), *machine(6, name=A100)[1:]], [Held(["GPU-7"])])
    collecting = stock.without(stock.collected_for(Wish(2, H100)))
    assert len(stock.places) - len(collecting.places) == 1
    assert collecting.allot(Wish(5)) is not None


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(3), "3 GPUs and this machine has 2 x NVIDIA H100"),
        (Wish(1, model="h200"), "no GPU here is a 'h200'"),
        (Wish(1, min_memory=90 * GIB), "1 GPU with 90 GiB"),
        (Wish(1, named=("7",)), "there is no GPU 7"),
        (Wish(1, share=100 * GIB), "100 GiB of a GPU's memory"),
    ],
)
def test_what_can_never_be_granted_is_refused_with_what_there_is(wish: Wish, words: str) -> None:
    assert words in str(settle(machine(2), wish))


def test_what_is_not_here_at_present_is_not_impossible() -> None:
    assert settle(machine(2, state=GpuState.LOST), Wish(2)) == Wish(2)


def test_a_machine_without_gpus_says_so() -> None:
    assert "no GPUs" in str(settle([], Wish(1)))


def test_what_is_lacking_is_said() -> None:
    stock = Stock.of(machine(2)).with_held(Held(["GPU-0"]))
    assert lacking(stock, Wish(2, min_memory=40 * GIB)) == "1 of 2 GPUs with 40 GiB"
    assert describe(Wish(1, model="h100")) == "1 GPU of type h100"
    share = Wish(1, H100, share=GIB)
    assert lacking(stock, share) == f"room for 1 GiB on a GPU of type {H100}"
    named = Wish(1, named=("GPU-0",))
    assert lacking(stock, named, machine(2)) == "GPU 0"
    assert lacking(stock, named._replace(share=GIB), machine(2)) == "room for 1 GiB on GPU 0"
    assert describe(named) == "GPU-0"


machines = st.lists(
    st.tuples(st.sampled_from(list(GpuState)), st.sampled_from([24, 40, 80])), max_size=16
).map(lambda kinds: [gpu(at, state=s, memory=m * GIB) for at, (s, m) in enumerate(kinds)])
wishes = st.one_of(
    st.builds(Wish, st.integers(0, 8), min_memory=st.sampled_from([None, 30 * GIB, 50 * GIB])),
    st.builds(Wish, share=st.integers(1, 90).map(lambda size: size * GIB)),
)


@given(machines, st.lists(wishes, max_size=30), st.integers(1, 4))
def test_no_gpu_is_given_twice_and_no_share_exceeds_one(
    gpus: list[Gpu], asked: list[Wish], shares_max: int
) -> None:
    stock = Stock.of(gpus, shares_max=shares_max)
    whole: list[str] = []
    shares: dict[str, list[int]] = {}
    for wish in asked:
        got = stock.allot(wish)
        if got is None:
            assert stock.without(stock.collected_for(wish)).places.items() <= stock.places.items()
            continue
        assert len(got) == (wish.count if wish.share is None else 1)
        stock = stock.with_held(Held(got, wish.share))
        if wish.share is None:
            whole += got
        else:
            shares.setdefault(got[0], []).append(wish.share)
    memory = {each.uuid: each.memory_total for each in gpus}
    assert len(whole) == len(set(whole))
    assert not set(whole) & shares.keys()
    assert all(sum(sizes) <= memory[uuid] for uuid, sizes in shares.items())
    assert all(len(sizes) <= shares_max for sizes in shares.values())


@given(st.data(), st.integers(2, 4))
def test_a_set_is_about_as_close_as_any(data: st.DataObject, count: int) -> None:
    size = data.draw(st.integers(count, 6))
    links: dict[int, dict[str, str]] = {index: {} for index in range(size)}
    for one, other in combinations(range(size), 2):
        link = data.draw(st.sampled_from(["nvlink", "system"]))
        links[one][f"GPU-{other}"] = links[other][f"GPU-{one}"] = link
    gpus = [gpu(index, links=links[index]) for index in range(size)]
    got = Stock.of(gpus).allot(Wish(count))
    assert got is not None

    def spread(uuids: tuple[str, ...]) -> int:
        at = [int(uuid.removeprefix("GPU-")) for uuid in uuids]
        return sum(LINKS.index(links[a][f"GPU-{b}"]) for a, b in combinations(at, 2))

    if count == 2:
        best = min(spread(each) for each in combinations([g.uuid for g in gpus], 2))
        assert spread(got) == best


@pytest.mark.parametrize(
    ("sold", "mib"),
    [(24, 24564), (48, 46068), (24, 23028), (16, 15360), (80, 81559), (20, 20096)],
)
def test_a_gpu_has_the_memory_that_it_is_sold_with(sold: int, mib: int) -> None:
    gpus = [gpu(0, memory=mib << 20)]
    assert settle(gpus, Wish(1, min_memory=sold * GIB)) == Wish(1, min_memory=sold * GIB)
    assert "1 GPU with" in str(settle(gpus, Wish(1, min_memory=sold * GIB * 9 // 8)))
    assert isinstance(settle(gpus, Wish(1, share=sold * GIB)), str)


def test_what_others_use_is_given_last() -> None:
    stock = replace(Stock.of(machine(3)), avoided=frozenset(["GPU-0"]))
    assert "GPU-0" not in (stock.allot(Wish(2)) or ())
    assert "GPU-0" in (stock.allot(Wish(3)) or ())
    assert stock.allot(Wish(1, share=GIB)) == ("GPU-1",)
