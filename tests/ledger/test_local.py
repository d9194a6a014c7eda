"""`--gpu local`: what NVML says of the GPU that is here, in every state that a machine can be in."""

from __future__ import annotations

import inspect
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from nvml import GIB, MIB, NO_LIBRARY, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, Nvml, card, process

from gptcalc.allocator import Figures
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError, InvalidValueError, MissingDependencyError
from gptcalc.ledger.fit import fit, room
from gptcalc.ledger.local import Holder, local
from gptcalc.ledger.memory import CONTEXT

T4 = {"name": "Tesla T4", "uuid": "GPU-22222222-bbbb", "total": 15_360 * MIB, "capability": (7, 5)}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a machine in place of nvidia-ml-py; nothing is hidden from CUDA unless a test says so."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def put(*cards: SimpleNamespace, **state: Any) -> Nvml:
        nvml = Nvml(*cards, **state)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return put


def divided(**changed: Any) -> SimpleNamespace:
    """An H200 that is divided: an instance, a place without one, another instance."""
    parts = [
        card(name="NVIDIA H200 MIG 3g.71gb", uuid="MIG-aaaa", total=71 * GIB, reserved=0),
        NOT_FOUND,
        card(name="NVIDIA H200 MIG 1g.18gb", uuid="MIG-bbbb", total=16 * GIB, reserved=0, used=GIB),
    ]
    own = {"name": "NVIDIA H200", "uuid": "GPU-33333333-cccc", "total": NO_PERMISSION, "capability": (9, 0)}
    return card(**own | {"mig": [1, 1], "parts": parts} | changed)


def test_an_idle_card_has_all_but_what_the_driver_keeps(here: Any) -> None:
    """Usable is what is free now, capacity the total, and the target follows from the compute capability."""
    nvml = here(card())
    found = room("local")

    assert (found.name, found.title, found.source) == ("local", "NVIDIA GeForce RTX 4090 (local)", "now free")
    assert found.capacity == 24_564 * MIB
    assert found.usable == (24_217 * MIB, 24_217 * MIB)
    assert (found.target, found.guess, found.estimated, found.budgeted) == ("sm89", "", False, False)
    assert found.notes == ("now free: 23.65 GiB of 23.99 GiB", "the driver keeps 347.00 MiB")
    assert nvml.open == 0


def test_a_run_fits_what_is_free_and_not_what_is_there(here: Any) -> None:
    """A run that fits the empty card does not fit beside a process that holds half of it."""
    totals = Figures(0, 0, 20 * GIB, 20 * GIB)

    here(card())
    assert fit(totals, room("local")).verdict == "fits"
    here(card(used=12 * GIB))
    assert fit(totals, room("local")).verdict == "does not fit"
    assert fit(Figures(0, 0, 0, 24_217 * MIB - 12 * GIB - CONTEXT[1]), room("local")).margin.low == 0


def test_who_holds_the_rest(here: Any) -> None:
    """Processes by what they hold, each once though it computes and draws; what nobody is said to hold; all of it."""
    here(
        card(
            used=10 * GIB,
            compute=[process(41, GIB), process(42, 6 * GIB), process(43, None)],
            graphics=[process(42, 6 * GIB), process(7, 500 * MIB)],
            names={42: "/usr/bin/python3", 7: "/usr/lib/xorg/Xorg", 43: "trainer"},
        )
    )
    found = local("local")

    assert found.holders == (
        Holder(42, "python3", 6 * GIB),
        Holder(41, "", GIB),
        Holder(7, "Xorg", 500 * MIB),
        Holder(43, "trainer", None),
    )
    assert found.unnamed == 3 * GIB - 500 * MIB
    assert found.free + found.kept + found.unnamed + sum(one.bytes or 0 for one in found.holders) == found.capacity
    assert room("local").notes[2:] == (
        "python3 (process 42) holds 6.00 GiB",
        "process 41 holds 1.00 GiB",
        "Xorg (process 7) holds 500.00 MiB",
        "trainer (process 43) holds an amount that the driver does not tell",
        "others that the driver does not name (a display, another container or user) hold 2.51 GiB",
    )


def test_an_amount_is_known_if_either_list_has_it(here: Any) -> None:
    """Of a process in both lists the one amount that is told counts, whichever list has it."""
    here(card(used=GIB, compute=[process(5, None), process(6, GIB)], graphics=[process(5, MIB), process(6, None)]))

    assert local("local").holders == (Holder(6, "", GIB), Holder(5, "", MIB))


def test_processes_that_share_memory_hold_no_less_than_nothing(here: Any) -> None:
    """Where processes are said to hold more than is taken, nothing is left for others."""
    here(card(used=GIB, compute=[process(5, GIB), process(6, GIB)]))

    assert local("local").unnamed == 0


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION])
def test_who_holds_it_need_not_be_told(error: Exception, here: Any) -> None:
    """A driver that names no processes still says what is free."""
    here(card(used=GIB, compute=error, graphics=error))
    found = local("local")

    assert (found.holders, found.unnamed) == ((), GIB)
    assert found.free == 23_193 * MIB


def test_an_old_driver_tells_less(here: Any) -> None:
    """Without the second form of the memory's record the same is free, and what the driver keeps is unnamed."""
    here(card(), old=True)
    found = local("local")

    assert (found.free, found.kept, found.unnamed) == (24_217 * MIB, None, 347 * MIB)


def test_the_second_device(here: Any) -> None:
    """`local:N` counts from 0, and says which others there are."""
    here(card(), card(**T4))

    assert local("local").others == ("local:1 is Tesla T4",)
    assert local("LOCAL:1").title == "Tesla T4"
    assert (room("local:1").name, room("local:1").target) == ("local:1", "sm75")
    assert local("local:1").others == ("local:0 is NVIDIA GeForce RTX 4090",)


def test_unlike_devices_may_be_counted_otherwise_by_torch(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA puts the fastest first unless it is told the order of the bus; of equal devices it does not matter."""
    here(card(), card(**T4))
    assert [note for note in local("local").notes if "CUDA_DEVICE_ORDER=PCI_BUS_ID" in note]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert local("local").notes == ()
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    here(card(), card(uuid="GPU-4"))
    assert local("local").notes == ()


@pytest.mark.parametrize(
    ("listed", "titles"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA GeForce RTX 4090"]),
        (" 1 , 0 ", ["Tesla T4", "NVIDIA GeForce RTX 4090"]),
        ("GPU-2222", ["Tesla T4"]),
        ("GPU-11111111-aaaa,GPU-22222222-bbbb", ["NVIDIA GeForce RTX 4090", "Tesla T4"]),
        ("1,7,0", ["Tesla T4"]),
        ("1,1", ["Tesla T4"]),
        ("0,GPU-", ["NVIDIA GeForce RTX 4090"]),
    ],
)
def test_what_cuda_shows_is_what_counts(
    listed: str, titles: list[str], here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` chooses and orders: indices or UUIDs, or their beginnings, up to the first mistake."""
    here(card(), card(**T4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert [local(f"local:{place}").title for place in range(len(titles))] == titles
    assert any(f"CUDA_VISIBLE_DEVICES={listed}" in note for note in local("local").notes)
    with pytest.raises(InvalidValueError, match=f"read 'local:{len(titles)}', but there (is|are) local:0"):
        local(f"local:{len(titles)}")


@pytest.mark.parametrize("listed", ["", "-1", "9", "GPU-", "GPU-9", "NoDevFiles"])
def test_all_may_be_hidden(listed: str, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA shows no device there is none, and the error says why."""
    here(card(), card(**T4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    with pytest.raises(InvalidValueError, match=rf"CUDA_VISIBLE_DEVICES={listed} shows none of the GPUs here \(2\)"):
        local("local")


def test_a_divided_device_is_its_instances(here: Any) -> None:
    """NVML refuses the whole: the first instance answers for itself, with the capability of the whole."""
    here(divided())
    first, second = local("local"), local("local:1")

    assert (first.title, first.place, first.free) == ("NVIDIA H200 MIG 3g.71gb", "MIG instance 0 of GPU 0", 71 * GIB)
    assert (second.title, second.place, second.free) == (
        "NVIDIA H200 MIG 1g.18gb",
        "MIG instance 2 of GPU 0",
        15 * GIB,
    )
    assert first.target == "sm90"
    assert first.others == ("local:1 is NVIDIA H200 MIG 1g.18gb",)
    assert [note for note in first.notes if "torch uses one MIG instance" in note]


@pytest.mark.parametrize(
    ("listed", "title"), [("MIG-bbbb", "1g.18gb"), ("MIG-b", "1g.18gb"), ("0", "3g.71gb"), ("GPU-3333", "3g.71gb")]
)
def test_an_instance_is_chosen_by_its_uuid(listed: str, title: str, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance's UUID means it; the whole's index or UUID means the first instance."""
    here(divided(), card())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert local("local").title == f"NVIDIA H200 MIG {title}"
    with pytest.raises(InvalidValueError, match="there is local:0"):
        local("local:1")


def test_a_divided_device_without_instances_has_no_room(here: Any) -> None:
    """No process can use it, and the error says so."""
    here(divided(parts=[NOT_FOUND]))

    with pytest.raises(InvalidValueError, match=r"GPU 0, NVIDIA H200, is divided \(MIG\) and has no instance"):
        local("local")


def test_without_the_binding_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with what to install and what else to type."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with pytest.raises(MissingDependencyError) as raised:
        room("local", "--gpu")
    assert str(raised.value).startswith("--gpu: 'local' needs nvidia-ml-py")
    assert "pip install 'gptcalc[nvml]'" in str(raised.value)
    assert "a size (24GiB)" in str(raised.value)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"fails": NO_LIBRARY},
            "this machine has no NVIDIA driver that answers (NVML Shared Library Not Found)",
        ),
        ({}, "the NVIDIA driver finds no GPU here"),
    ],
)
def test_a_machine_without_a_gpu_is_a_wrong_request(state: dict[str, Any], said: str, here: Any) -> None:
    """No driver, and no device, are each one line with what else to type."""
    here(**state)

    with pytest.raises(InvalidValueError) as raised:
        room("local", "--gpu")
    assert str(raised.value).startswith(f"--gpu: read 'local', but {said}; name a GPU")


@pytest.mark.parametrize("changed", [{"total": NOT_SUPPORTED}, {"capability": NOT_SUPPORTED}])
def test_a_device_that_does_not_tell_is_an_error(changed: dict[str, Any], here: Any) -> None:
    """Where NVML has no answer to what is needed, that is said in its words, and the library is closed."""
    nvml = here(card(**changed))

    with pytest.raises(InvalidValueError, match="but the NVIDIA driver does not tell: Not Supported; name a GPU"):
        room("local")
    assert nvml.open == 0


def test_a_name_or_uuid_need_not_be_told(here: Any) -> None:
    """What is only said may be missing: the device is then called by its index."""
    here(card(name=NOT_SUPPORTED, uuid=NO_PERMISSION))

    assert room("local").title == "GPU 0 (local)"


@pytest.mark.parametrize("place", ["", "x", "-1", "1.5", " 1", "\u0661", "9" * 99])
def test_a_place_is_a_whole_number(place: str, here: Any) -> None:
    """Anything else behind the colon is answered with the form."""
    here(card())

    with pytest.raises(GptcalcError, match="allowed: local, or local:N for the device N, counted from 0"):
        room(f"local:{place}")


@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_show_prints_who_holds_it(
    width: int | None, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gpus show local` itemises the total at any width, and names the data sheet."""
    here(card(used=3 * GIB, compute=[process(42, GIB)], names={42: "python"}), card(**T4))
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    assert run(["gpus", "show", "local"]) == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())

    assert text.startswith("local: NVIDIA GeForce RTX 4090, 20.65 GiB free of 23.99 GiB\n")
    for part in ("python (process 42) 1.00 GiB", "2.00 GiB", "347.00 MiB", "local:1 is Tesla T4", "gpus show rtx-4090"):
        assert part in words
    if width:
        assert max(map(len, text.splitlines())) <= width


def test_show_answers_in_json(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer has its schema, and its bytes add up to the total."""
    jsonschema = pytest.importorskip("jsonschema")
    here(card(used=3 * GIB, compute=[process(42, GIB)]))
    assert run(["gpus", "show", "local", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert run(["schema", "gpus-local"]) == 0
    jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out)).validate(answer)

    assert (answer["schema"], answer["preset"], answer["target"]) == ("gptcalc.gpus-local/1", "rtx-4090", "sm89")
    assert answer["free"] + answer["kept"] + answer["unnamed"] + answer["holders"][0]["bytes"] == answer["memory"]


def test_the_fake_is_made_like_the_binding() -> None:
    """Every function of the fake is one of nvidia-ml-py's, and takes as many arguments."""
    binding = pytest.importorskip("pynvml")
    for name in (name for name in dir(Nvml) if name.startswith("nvml") and callable(getattr(Nvml, name))):
        fake, real = (inspect.signature(getattr(each, name)).parameters for each in (Nvml(), binding))
        assert len(fake) == len(real), name
    assert binding.nvmlMemory_v2 == Nvml.nvmlMemory_v2


@pytest.mark.gpu
def test_local_is_what_torch_sees() -> None:
    """What NVML says is free is what torch may have, but for what its own context takes; the total is the driver's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("pynvml")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from gptcalc.ledger.fit import kept_by_driver

    before = local("local")
    torch.cuda.init()
    free, total = torch.cuda.mem_get_info(0)

    assert before.title == torch.cuda.get_device_name(0)
    assert before.capability == torch.cuda.get_device_capability(0)
    assert 0 <= before.capacity - total <= kept_by_driver() * before.capacity
    assert -64 * MIB <= before.free - free <= CONTEXT[1]
