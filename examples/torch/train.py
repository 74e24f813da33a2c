"""A training that can be stopped and goes on where it was: `python train.py checkpoint.json`.

It runs without torch and without a GPU too, on the CPU, so that you can try it.
"""

import json
import sys
import time
from pathlib import Path

from gpulockd import gpu_lock
from gpulockd.contrib.torch import clean_up, device, stops_on, track

try:
    import torch
except ImportError:
    torch = None

EPOCHS, STEPS = 4, 25


def train(checkpoint: Path) -> bool:
    """Train until it is done, or until somebody asks to stop. Returns whether it is done."""
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "weight": 0.0}
    left = range(state["step"], EPOCHS * STEPS)
    with gpu_lock(task="train", soft_timeout="2h", cleanup=clean_up) as lease, stops_on(lease):
        weight = state["weight"]
        if torch is not None:
            weight = torch.tensor(weight, device=device(lease))
        steps = track(lease, left, start=state["step"])
        for step in steps:
            weight = weight + 0.1 * (1.0 - weight)
            time.sleep(0.02)
            if step == 0:
                print(f"training on {device(lease)}", flush=True)
        # Still inside the lease: the card is ours until the work is saved.
        checkpoint.write_text(json.dumps({"step": steps.done, "weight": float(weight)}))
    print(f"{'stopped' if steps.stopped else 'done'} at step {steps.done} of {steps.total}")
    return not steps.stopped


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python train.py CHECKPOINT.json")
    sys.exit(0 if train(Path(sys.argv[1])) else 75)
