"""Faults in what the benchmark makes of its rounds."""

from tests.mutation.mutation import Mutation

_PROOF, _NOISE = ("test_bench_proof.py",), ("test_bench_noise.py",)

BENCH = (
    Mutation(
        "comparisons are judged each by itself, not as so many of a run",
        "figures/noise.py",
        "ERROR / 2 / max(1, compared)",
        "0.05 / 2",
        _PROOF,
    ),
    Mutation(
        "a difference of the median counts whatever the rounds say",
        "figures/noise.py",
        "real = abs(logarithm) > math.log1p(least)",
        "real = abs(logarithm) > 0.01",
        _PROOF,
    ),
    Mutation(
        "the floor is what happens to be named, not what is sure to be found",
        "figures/noise.py",
        "+ student(scale.freedom, MISS) * scale.error)",
        ")",
        _NOISE,
    ),
    Mutation(
        "what direct measured twice differs by is forgotten",
        "figures/noise.py",
        "return abs(found.apart or 0.0) + student(",
        "return student(",
        _NOISE,
    ),
    Mutation(
        "a wild round counts as much as it is wild",
        "figures/noise.py",
        "wild = off > CLIP * scale",
        "wild = off > math.inf",
        _PROOF,
    ),
    Mutation(
        "a mode that is noisier than the others has their floor",
        "figures/noise.py",
        "variance = own if alone else max(own, found.variance)",
        "variance = found.variance",
        _NOISE,
    ),
)
