"""Memory: what a compiled program needs, and what there is. Floor 0."""

from pathlib import Path

import jax

_LINUX = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def needed(program: jax.stages.Compiled) -> int:
    """Bytes on one device, with what goes in and out; 0 where it is not known."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    shared = analysis.alias_size_in_bytes  # outputs that lie where inputs were
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes - shared


def available() -> int | None:
    """Bytes that a device has for programs, or that the machine has left where it is the CPU; None where nobody says.

    An allocation beyond what a machine has does not fail: the kernel kills the process.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = []
    if _LINUX.exists():
        fields = dict(line.split(":", 1) for line in _LINUX.read_text().splitlines())
        limits.append(1024 * int(fields["MemAvailable"].split()[0]))
    if _CONTAINER.exists() and (text := _CONTAINER.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits, default=None)
