"""How fast an engine is, on this machine and beside others. Imports no torch unless a peer asks for it."""

from dsv2_compile.bench.comparison import Comparison, compare
from dsv2_compile.bench.engine import BenchReport, bench_engine
from dsv2_compile.bench.machine import Machine, machine
from dsv2_compile.bench.measure import Measurements, Workload

__all__ = ["BenchReport", "Comparison", "Machine", "Measurements", "Workload", "bench_engine", "compare", "machine"]
