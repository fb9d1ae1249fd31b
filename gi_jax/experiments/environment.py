"""What a number was measured with: versions and hardware."""

import importlib.metadata
import importlib.util
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import jax

MOST_DEVICES = 8
"""A lane needs some 40 MB with a ResNet-18, and every device has a copy of the weights; more cores share these."""


def environment() -> dict[str, str | int]:
    """Versions, hardware and the time, as plain values for a JSON file."""
    versions = {name: _version(name) for name in ("gi_jax", "jax", "jaxlib", "flax", "optax")}
    device = jax.devices()[0]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
    }


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second start does not compile."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "gi_jax" / "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def compile_quickly() -> None:
    """Has XLA optimize less where there is nothing but a CPU; a level in `XLA_FLAGS` stays. Call it before all else.

    At level 1 programs are made in about a fifth less time, those that draw random numbers in a quarter of it, and run
    as fast: their time is in matmuls that are not compiled (`benchmarks/NOTES.md`).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _LEVEL not in flags and _only_cpu():
        os.environ["XLA_FLAGS"] = f"{flags} {_LEVEL}=1".strip()


def take_cores_for_devices() -> None:
    """Has JAX take each core for a device, up to `MOST_DEVICES`, where there is nothing but a CPU. Call it early.

    Attacks spread their lanes over devices, and a core that has lanes of its own waits for no other: on two cores a
    tenth less time with a ResNet-18 of eight lanes, a fifth to a third with a convnet (`benchmarks/NOTES.md`). What is
    not spread, such as a training, runs on the first device with all cores, as ever. A number that JAX was told, by
    its configuration or in `XLA_FLAGS`, stays.
    """
    told = jax.config.jax_num_cpu_devices > 0 or _DEVICES in os.environ.get("XLA_FLAGS", "")
    if not told and _only_cpu():
        try:
            jax.config.update("jax_num_cpu_devices", min(_cores(), MOST_DEVICES))
        except RuntimeError:  # its backend runs already
            pass


def _cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return "not installed"


_LEVEL = "--xla_backend_optimization_level"
_DEVICES = "--xla_force_host_platform_device_count"


def _only_cpu():
    """Whether JAX is going to run on the CPU, without asking it, which would be the start of its backend."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
