"""A real step on the CPU, watched by nobody but the memory records of torch's profiler, against the tape."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from steps import FAMILIES, events_of, tape_inference, tape_training

from gptcalc.catalog import resolve
from gptcalc.plan import Plan

torch = pytest.importorskip("torch")

from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402  it opens torch

from gptcalc.witness.loop import optimizer_of  # noqa: E402
from gptcalc.witness.meta import decoder  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptcalc.spec import Spec
    from gptcalc.tape.replay import Recording

#: No dropout: the CPU's masks are of the dtype of the values. No kernel of the CPU's own for attention.
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
PLAN = Plan(batch=3, seq=13, precision="fp32", kv_dtype="fp32", attention="eager")
#: What only the CPU takes: scalars, and in the loss IDs and a mask of them, B·T of 8 and of 1 byte.
SCALARS, IDS = 8, {3 * 13, 8 * 3 * 13}

Events = dict[str, list[tuple[bool, int]]]


class Watched:
    """What is allocated and freed, phase by phase."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.events: Events = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch what happens within, where phases are named by `record_function`."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield
        found = profiler.profiler.kineto_results.events()
        records = [(event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]"]
        records.sort(key=lambda record: record[0])
        for event in found:
            if event.name().startswith("phase "):
                first, last = event.start_ns(), event.start_ns() + event.duration_ns()
                self.events[event.name().removeprefix("phase ")] = [
                    (size > 0, abs(size)) for at, size in records if first <= at <= last
                ]


def model_of(spec: Spec, plan: Plan) -> Any:
    """The reference module with numbers in it."""
    torch.manual_seed(0)
    model = decoder(spec, plan, "cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def ids_of(spec: Spec, seq: int) -> Any:
    """Token IDs of as many sequences as the plan has."""
    return torch.randint(0, spec.n_vocab, (PLAN.batch, seq))


def train(spec: Spec, plan: Plan) -> Events:
    """The second step of two."""
    model, watched = model_of(spec, plan).train(), Watched()
    ids, targets = ids_of(spec, plan.seq), ids_of(spec, plan.seq)
    optimizer = optimizer_of(plan, list(model.named_parameters()))

    def step() -> None:
        with record_function("phase forward"):
            loss = model(ids, targets).loss
        with record_function("phase backward"):
            loss.backward()
        with record_function("phase optimizer"):
            optimizer.step()
        with record_function("phase end"):
            optimizer.zero_grad(set_to_none=True)
            del loss

    step()
    with watched():
        step()
    return watched.events


def infer(spec: Spec, plan: Plan) -> Events:
    """A prompt and a token."""
    model, watched = model_of(spec, plan).eval(), Watched()
    with torch.no_grad():
        cache = model.make_cache(plan.batch, plan.seq, torch.float32)
        prompt, token = ids_of(spec, plan.seq), ids_of(spec, 1)
        model(token, cache=model.make_cache(plan.batch, plan.seq, torch.float32), last_only=True)
        with watched():
            with record_function("phase prefill"):
                logits = model(prompt, cache=cache, last_only=True).logits
                del logits
            with record_function("phase decode"):
                logits = model(token, cache=cache, start=plan.seq - 1, last_only=True).logits
                del logits
    return watched.events


def taped(recording: Recording) -> Events:
    """The last stage of each name."""
    return {stage.name: events_of(recording, stage) for stage in recording.record.stages}


def course(events: list[tuple[bool, int]]) -> tuple[int, int]:
    """The most that is gained within, and what is gained at the end."""
    now = most = 0
    for is_alloc, size in events:
        now += size if is_alloc else -size
        most = max(most, now)
    return most, now


def check(real: Events, ours: Events, beside: set[int]) -> None:
    """Every allocation of the tape happens, and else the CPU's own; peaks and ends are equal but for scalars."""
    for name, events in real.items():
        allocated, expected = (Counter(size for is_alloc, size in one if is_alloc) for one in (events, ours[name]))
        assert not expected - allocated, name
        assert {size for size in allocated - expected if size > SCALARS} <= beside, name
        for found, wanted in zip(course(events), course(ours[name]), strict=True):
            assert abs(found - wanted) <= 8 * SCALARS, name


@pytest.mark.parametrize("own", [{}, {"tied": False}, {"positions": "rotary"}, {"positions": "sinusoidal"}], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt1"])
def test_a_step_on_the_cpu_is_the_tapes(family: str, own: dict[str, Any]) -> None:
    """Gradients that meet are added as the tape says, in place or not, by an engine that no mode disturbs."""
    spec = resolve(FAMILIES[family], NO_DROPOUT | own).spec
    plan = PLAN.model_copy(update={"optimizer": "sgd", "optimizer_impl": "for-loop"})
    norms = {2 * 4 * spec.d_model * threads for threads in range(1, 65)}  # backward, a pair of sums for each thread
    check(train(spec, plan), taped(tape_training(spec, plan)), IDS | norms)


@pytest.mark.parametrize("impl", ["foreach", "for-loop"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_on_the_cpu_is_the_tapes(name: str, impl: str) -> None:
    """Its temporaries live as long as the tape says."""
    spec = resolve(FAMILIES["gpt2"], NO_DROPOUT).spec
    plan = PLAN.model_copy(update={"optimizer": name, "optimizer_impl": impl, "momentum": 0.9 * (name == "sgd")})
    real, ours = train(spec, plan), taped(tape_training(spec, plan))
    for phase in ("optimizer", "end"):
        check({phase: real[phase]}, ours, set())


@pytest.mark.parametrize("family", ["gpt2", "gpt1"])
def test_inference_on_the_cpu_is_the_tapes(family: str) -> None:
    """Prefill and decode, with a cache, in as much as the tape says."""
    spec = resolve(FAMILIES[family], NO_DROPOUT).spec
    check(infer(spec, PLAN), taped(tape_inference(spec, PLAN)), set())
