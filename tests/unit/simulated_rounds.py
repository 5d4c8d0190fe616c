"""Rounds as a shared machine of two processors gives them, of known truth: heavy tails, drift, and bursts of others."""

import math
import random
from typing import NamedTuple

BURST_CELLS = 4
"""How many measurements a burst lasts, on average."""
_PERIOD_CELLS = 60


class Weather(NamedTuple):
    """What the machine does meanwhile, in logarithms. noise: scale of each measurement's own, Student's t of three
    degrees of freedom. wave: height of a slow wave. wander: step of a random walk. bursts: how likely one begins at a
    measurement; it takes 10 to 60 % of the speed. lasting: what a node is slower or faster by for the whole run."""

    noise: float = 0.02
    wave: float = 0.1
    wander: float = 0.01
    bursts: float = 0.02
    lasting: float = 0.0


def simulated(
    seed: int, speeds: dict[str, float], rounds: int, weather: Weather | None = None
) -> dict[str, dict[int, float]]:
    """Figures by mode and round, in rounds of shuffled order, one measurement after the other. speeds: the truth."""
    sky = weather or Weather()
    chance = random.Random(f"{seed} {sorted(speeds.items())} {rounds} {sky}")
    lasting = {mode: chance.gauss(0, sky.lasting) for mode in speeds}
    found: dict[str, dict[int, float]] = {mode: {} for mode in speeds}
    level, left, burst, phase, at = 0.0, 0, 0.0, chance.uniform(0, 2 * math.pi), 0
    for number in range(rounds):
        for mode in chance.sample(sorted(speeds), len(speeds)):
            at += 1
            level += chance.gauss(0, sky.wander)
            if left == 0 and chance.random() < sky.bursts:
                left, burst = 1 + int(chance.expovariate(1 / BURST_CELLS)), -math.log(1 - chance.uniform(0.1, 0.6))
            slowed, left = (burst, left - 1) if left else (0.0, 0)
            wave = sky.wave * math.sin(phase + 2 * math.pi * at / _PERIOD_CELLS)
            own = sky.noise * chance.gauss(0, 1) / math.sqrt(chance.gammavariate(1.5, 2) / 3)
            found[mode][number] = 1e4 * speeds[mode] * math.exp(level + wave + own + lasting[mode] - slowed)
    return found
