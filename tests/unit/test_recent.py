"""The last minute of a GPU, second by second."""

from __future__ import annotations

from aitbcd.gpus.recent import SPAN_S, Recent


def sampled(times: list[float]) -> Recent:
    recent = Recent()
    for at in times:
        recent.add(at, int(at) % 100)
    return recent


def test_a_sample_a_second_is_a_figure_a_second_whenever_it_is_asked_for() -> None:
    recent = sampled([second + (0.04 if second % 3 else -0.04) for second in range(1000, 1100)])
    for now in (1099.05, 1099.5, 1099.99):
        figures = recent.seconds(now, 1.0)
        assert len(figures) == SPAN_S
        assert None not in figures
        assert figures == sorted(figures, key=lambda figure: figure or 0)
        assert figures[-1] in (98, 99)


def test_rare_samples_stand_until_the_next_and_frequent_ones_are_thinned() -> None:
    assert sampled([1000.0, 1005.0, 1010.0]).seconds(1012.5, 5.0) == [0] * 5 + [5] * 5 + [10] * 3
    many = sampled([1000 + step / 10 for step in range(900)])
    assert len([*filter(None, many.seconds(1090.0, 0.1))]) >= SPAN_S - 1


def test_what_was_not_sampled_is_nobodys() -> None:
    recent = sampled([1000.0, 1001.0, 1010.0])
    assert recent.seconds(1013.0, 1.0) == [0, 1, 1, *[None] * 7, 10, 10, None, None]
    assert recent.seconds(1069.5, 1.0) == [10, 10, *[None] * 58]
    assert recent.seconds(2000.0, 1.0) == []
    assert Recent().seconds(1000.0, 1.0) == []
