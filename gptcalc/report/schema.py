"""JSON Schemas, made from the types of what the commands print."""

from typing import Any

from pydantic import TypeAdapter

from gptcalc.report.bench_against import BenchAgainstJSON
from gptcalc.report.bench_data import BenchJSON
from gptcalc.report.check import CheckJSON
from gptcalc.report.claims import ClaimsJSON
from gptcalc.report.compare import CompareJSON
from gptcalc.report.count_data import CountJSON
from gptcalc.report.design import DesignJSON
from gptcalc.report.explain import ExplainJSON
from gptcalc.report.gpus import GpuJSON, GpusJSON, LocalJSON
from gptcalc.report.grid import GridJSON
from gptcalc.report.memory_data import MemoryJSON
from gptcalc.report.presets import PresetJSON, PresetsJSON
from gptcalc.report.versus import VersusJSON

#: The answer's type by command.
SCHEMAS: dict[str, Any] = {
    "count": CountJSON,
    "memory": MemoryJSON,
    "memory-versus": VersusJSON,
    "fit": GridJSON,
    "explain": ExplainJSON,
    "compare": CompareJSON,
    "design": DesignJSON,
    "check": CheckJSON,
    "presets": PresetsJSON,
    "presets-show": PresetJSON,
    "gpus": GpusJSON,
    "gpus-show": GpuJSON,
    "gpus-local": LocalJSON,
    "claims": ClaimsJSON,
    "bench": BenchJSON,
    "bench-against": BenchAgainstJSON,
}


def json_schema(command: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a command's answer."""
    schema = TypeAdapter(SCHEMAS[command]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
