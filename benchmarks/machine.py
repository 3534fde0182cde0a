"""What a result was measured on: processor, cores, versions. No names of hosts, users or folders."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path


def machine() -> str:
    """The processor, its cores, the system and the Python, in one line."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {importlib.metadata.version('torch')}"
    )


def processor() -> str:
    """The processor's own name for itself."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def load() -> float:
    """How many processes wanted a core in the last minute, on average."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else float("nan")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed."""
    installed = {found.name.lower() for found in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in packages if name.lower() in installed}


def memory(what: str) -> float:
    """MiB of this process: VmRSS = now, VmHWM = the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"the system does not tell {what}")
