"""How many drafts a pass verifies: the number that gains most, given how many have stood so far.

A pass over n tokens takes as long as reading the parameters once and doing the arithmetic of n tokens. Where that
arithmetic is free, many drafts pay off even if few of them stand; where it is not, only those that do. Each number of
drafts is a program of its own, and the host chooses between calls: loops over several numbers in one program would
copy the caches from the layout that suits one to that of the next.
"""

from common.models.cpu_ops import on_cpu

# Tokens whose arithmetic takes as long as reading the parameters, in bfloat16: FLOP/s over bytes/s is 295 on an H100,
# 240 on a TPU v5e, 153 on an A100. That of a CPU was measured on two cores in float32, with 4 million parameters.
BALANCE, CPU_BALANCE = 240.0, 18.0
FIRST_CHANCE = 0.9  # of a draft, before anything is known: drafts are tried
MEMORY = 200.0  # number of passes that count as much as all before them
RETURN = 0.005  # share of the way back to the first chance in each call without drafts, so that they are tried again


def draft_lengths(most: int) -> tuple[int, ...]:
    """The numbers of drafts to choose from."""
    return tuple(sorted({most, most // 2, 0}))


def best_draft_length(chance: float, rows: int, lengths: tuple[int, ...]) -> int:
    """The length that gives `rows` continuations the most tokens per unit of time.

    Each draft is taken to stand with probability `chance` if those before it do.
    """
    balance = CPU_BALANCE if on_cpu() else BALANCE

    def rate(length: int) -> float:
        return (1 + expected_to_stand(chance, length)) / (1 + rows * (length + 1) / balance)

    return max(lengths, key=rate)


def expected_to_stand(chance: float, length: int) -> float:
    """The mean number of `length` drafts in a row that stand."""
    return sum(chance**number for number in range(1, length + 1))


def updated_chance(chance: float, length: int, stood: int, passes: int) -> float:
    """The chance after `passes` more passes with `length` drafts each, of which `stood` stood in all."""
    if length == 0:
        return chance + RETURN * (FIRST_CHANCE - chance)
    if passes <= 0:
        return chance
    share = passes / (passes + MEMORY)
    return (1 - share) * chance + share * chance_of(stood / passes, length)


def chance_of(stood: float, length: int) -> float:
    """The chance at which `stood` of `length` drafts stand on average, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_to_stand(middle, length) < stood else (low, middle)
    return (low + high) / 2
