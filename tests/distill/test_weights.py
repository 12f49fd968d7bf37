import torch
from hypothesis import given
from hypothesis import strategies as st

from llmd4rec.losses.sample_weights import rank_weights

ranks = st.integers(1, 10**6)


def weight(student: int, teacher: int) -> float:
    return float(rank_weights(torch.tensor([student]), torch.tensor([teacher]))[0])


def test_hand_cases_of_the_paper() -> None:
    # w1 trains the LLM: the LLM is the student. w2 trains the sequential model: the roles are exchanged.
    r_c, r_l = 1, 10
    assert weight(student=r_l, teacher=r_c) == 2
    assert weight(student=r_c, teacher=r_l) == 0
    r_c, r_l = 10, 12
    assert weight(student=r_l, teacher=r_c) == 1.2
    assert weight(student=r_c, teacher=r_l) == 0.8
    assert weight(7, 7) == 1
    assert weight(3, 2) == 1.5
    assert weight(2, 3) == 0.5


@given(ranks, ranks)
def test_mirror_image_and_range(a: int, b: int) -> None:
    forth, back = weight(a, b), weight(b, a)
    assert 0 <= forth <= 2
    assert abs(forth + back - 2) < 1e-5  # what one model gains as teacher it loses as student
    assert (forth > 1) == (a > b)


@given(ranks, ranks, ranks)
def test_a_worse_student_has_at_least_as_much_weight(a: int, b: int, teacher: int) -> None:
    worse, better = max(a, b), min(a, b)
    assert weight(worse, teacher) >= weight(better, teacher)
