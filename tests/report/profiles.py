"""Profiles made up for tests: seeded samples of kernels that take `t0 + bytes/bandwidth`, with known faults."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple

from gptcalc.ledger.profile import Clocks, Device, Measured, Moved, Point, Problem, Profile, Shape, Software

if TYPE_CHECKING:
    from gptcalc.ledger.profile import Backend, State, Stop

ONE = Shape(rows=1, d_model=1, n_vocab=1, n_ctx=1, seq=1)
H200 = Device(
    kind="cuda",
    name="NVIDIA H200",
    driver="570.86.15",
    memory_bytes=150_109_945_856,
    cache_bytes=62_914_560,
    units=132,
    capability="9.0",
    max_clock_mhz=1980,
    memory_clock_mhz=3201,
    fingerprint="0123456789ab",
)
CPU = Device(
    kind="cpu",
    name="AMD EPYC 9654 96-Core Processor",
    memory_bytes=33_000_000_000,
    cache_bytes=67_108_864,
    cache_known=False,
    units=16,
    capability="AVX512",
    threads=8,
)
SOFTWARE = Software(
    gptcalc="0.1.0", torch="2.13.0", cuda="13.0", triton="3.6.0", python="3.12.3", system="Linux x86_64"
)


class Kernel(NamedTuple):
    """How a made-up kernel behaves: its time in ns, and how samples and restarts scatter, relative."""

    time_ns: float
    within: float = 0.004
    between: float = 0.0005
    restarts: int = 5
    samples: int = 20
    rejected: int = 0
    stopped: Stop = "precise"


def measured(random: Random, kernel: Kernel) -> Measured:
    """Samples as such a kernel gives them."""
    levels = [kernel.time_ns * random.gauss(1, kernel.between) for _ in range(kernel.restarts)]
    return Measured(
        restarts=tuple(
            tuple(round(level * random.gauss(1, kernel.within)) for _ in range(kernel.samples)) for level in levels
        ),
        rejected=kernel.rejected,
        stopped=kernel.stopped,
    )


def point(random: Random, case: str, shape: Shape, kernels: dict[State, Kernel], **changed: object) -> Point:
    """A point in fp32 and eager that reads and writes M×D; 'copy' and 'empty' have no shape, but bytes of their own."""
    n_bytes = {"copy": 1 << 30, "empty": 4}.get(case, 4 * shape.rows * shape.d_model)
    told: dict[str, object] = {
        "case": case,
        "dtype": "fp32",
        "backend": "eager",
        "shape": shape,
        "must_move": tuple(Moved(label=f"{verb} x", formula="4×M×D", bytes=n_bytes) for verb in ("read", "write")),
        "checked": "" if shape == ONE else "largest error 2.4e-07 of 1e-05 allowed",
        "measured": {state: measured(random, kernel) for state, kernel in kernels.items()},
    }
    return Point.model_validate(told | changed)


def swept(
    random: Random, case: str, line: tuple[float, float], backend: Backend = "eager", why: str = ""
) -> list[Point]:
    """A case at five widths, cold and warm: a `line` of t0 in ns and GB/s, and warm twice as fast.

    With a reason `why`, torch's eager kernel moves twice what it must.
    """
    t0_ns, gb_s = line
    points = []
    for d_model in (256, 512, 1024, 2048, 4096):
        shape = Shape(rows=8192, d_model=d_model, n_vocab=50257, n_ctx=1024, seq=1024)
        cold = t0_ns + 8 * shape.rows * d_model / gb_s
        kernels: dict[State, Kernel] = {"cold": Kernel(cold), "warm": Kernel(cold / 2)}
        one = point(random, case, shape, kernels, backend=backend, torch_why=why)
        points.append(one.model_copy(update={"torch_moves": one.must_move * 2 if why else ()}))
    return points


def device_points(random: Random, copy_gb_s: float, launch_ns: float) -> list[Point]:
    """The ceiling and the floor."""
    copy = point(random, "copy", ONE, {"cold": Kernel(2 * (1 << 30) / copy_gb_s)})
    return [copy, point(random, "empty", ONE, {"warm": Kernel(launch_ns)})]


def h200(seed: int = 0) -> Profile:
    """A GPU: LayerNorm on both backends; backward too large at the end, throttled and noisy elsewhere."""
    random = Random(seed)
    points = device_points(random, 4301, 2310)
    eager = swept(random, "layernorm.forward", (2600, 3900))
    compiled = swept(random, "layernorm.forward", (2400, 4150), "compile", "torch's norm reads a row twice.")
    points += [one for pair in zip(eager, compiled, strict=True) for one in pair]
    why = "torch's norms sum the gradient of their weights in a second kernel, which reads dy and x again."
    backward = swept(random, "layernorm.backward", (5200, 2100), why=why)
    large = backward[-1].shape
    noisy = Kernel(40_000, within=0.15, between=0.04, restarts=20, samples=2, stopped="budget")
    hot = Kernel(66_000, samples=5, rejected=32)
    backward[2] = point(random, "layernorm.backward", backward[2].shape, {"cold": noisy, "warm": Kernel(19_000)})
    backward[3] = point(random, "layernorm.backward", backward[3].shape, {"cold": hot, "warm": Kernel(33_000)})
    problem = Problem(kind="memory", text="needs 131.00 GiB of memory; 120.25 GiB are free")
    backward[4] = point(random, "layernorm.backward", large, {}, problem=problem, checked="")
    return Profile(
        command="gptcalc bench 'layernorm.*' --d-model 256:4096:x2 --backend eager,compile",
        started="2026-02-03T04:05:06+00:00",
        device=H200,
        software=SOFTWARE,
        clocks=Clocks(sm=(1755, 1980), memory=(3201, 3201)),
        asked=17,
        points=(*points, *backward),
    )


def cpu(seed: int = 1) -> Profile:
    """A CPU at one shape: few words, no datasheet, nothing to fit, stopped before the last point."""
    random = Random(seed)
    shape = Shape(rows=8192, d_model=768, n_vocab=50257, n_ctx=1024, seq=1024)
    kernels: dict[State, Kernel] = {"cold": Kernel(4_100_000, samples=8), "warm": Kernel(3_900_000, samples=9)}
    points = device_points(random, 18.5, 812)
    points += [point(random, case, shape, kernels) for case in ("embedding.forward", "layernorm.forward")]
    return Profile(
        command="gptcalc bench --device cpu",
        started="2026-02-03T04:05:06+00:00",
        device=CPU,
        software=SOFTWARE.model_copy(update={"cuda": None, "triton": None}),
        asked=5,
        points=tuple(points),
    )


def everything(seed: int = 2) -> Profile:
    """All that may stand in a row at once: long names, three dtypes, both backends, shapes of seven digits."""
    random = Random(seed)
    points = device_points(random, 4301, 2310)
    cases = [f"{name}.{way}" for name in ("gpt_embedding", "rmsnorm") for way in ("forward", "backward")]
    for case in cases:
        for dtype in ("fp32", "bf16", "fp16"):
            for rows in (512, 65_536):
                shape = Shape(rows=rows, d_model=16_384, n_vocab=151_936, n_ctx=4096, seq=min(rows, 4096))
                time = 2310 + 8 * rows * 16_384 / random.uniform(1500, 4500)
                for backend in ("eager", "compile"):
                    kernels: dict[State, Kernel] = {
                        "cold": Kernel(time * random.uniform(0.9, 1.2), within=0.2, between=0.1, rejected=3),
                        "warm": Kernel(time * random.uniform(0.2, 0.9), stopped="budget"),
                    }
                    points.append(point(random, case, shape, kernels, dtype=dtype, backend=backend))
    return h200().model_copy(update={"points": tuple(points), "asked": len(points)})
