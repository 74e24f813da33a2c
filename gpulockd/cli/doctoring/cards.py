"""The cards: NVML's library and driver, who may use them, and whether the daemon offers what the driver has."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn

CHECK = "nvml"
CONTROL = "/dev/nvidiactl"


def look(host: Host) -> Iterator[Finding]:
    """Say what the driver says."""
    try:
        import anyio

        from gpulockd.hardware.nvml import NvmlCards
        from gpulockd.hardware.troubles import NvmlUnavailable
    except ImportError as missing:
        yield warn(CHECK, f"not looked at: the package {missing.name!r} is missing", "pip install 'gpulockd[server]'")
        return
    if os.path.exists(CONTROL) and not os.access(CONTROL, os.R_OK | os.W_OK):
        yield fail(CHECK, f"this user may not use {CONTROL}", "docker run --gpus all, or the group of that file")
        return
    cards = NvmlCards()
    try:
        gpus = anyio.run(cards.list)
    except NvmlUnavailable as trouble:
        if trouble.absent:
            yield warn(CHECK, f"{trouble.why}: only simulated GPUs can be offered here", trouble.cure)
        else:
            yield fail(CHECK, trouble.why, trouble.cure)
        return
    finally:
        cards.close()
    if not gpus:
        yield warn(CHECK, "the NVIDIA driver knows no GPU", "look at 'nvidia-smi -L' and 'lspci | grep -i nvidia'")
        return
    yield ok(CHECK, cards.describe())
    missing_here = [str(gpu) for gpu in gpus if gpu.uuid not in host.uuids]
    if host.hello and missing_here:
        text = f"the daemon does not offer {', '.join(missing_here)} of the driver's"
        yield warn(CHECK, text, "restart the daemon without --simulate; gpus.simulate: 0 in config.yml")
