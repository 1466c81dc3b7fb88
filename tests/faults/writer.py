"""One of many writers to an MLflow server: steps of a run, one line at a time, sent live.

    python writer.py URI EXPERIMENT RUN FOLDER FIRST STEPS

Starts after step FIRST, as a run does that is continued from a checkpoint there. Step 100 waits
until there is a file `go` beside FOLDER.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mhclite.training import live

live.SECONDS, live.RETRY_SECONDS, live.LAST_SECONDS = 0.2, 0.3, 120.0

uri, experiment, run, folder, first, steps = sys.argv[1:]
metrics = Path(folder) / "metrics.jsonl"
kept = metrics.read_text().splitlines(keepends=True)[: int(first)] if metrics.exists() else []
sender = live.Sender(uri, experiment, run, Path(folder), int(steps))
sender.thread.start()
with metrics.open("w") as file:
    file.writelines(kept)
    file.flush()
    sender.begin("a key of this run")
    for step in range(len(kept), int(steps) + 1):
        line = {"step": step, "loss": 5 - step / 100, "grad_norm": 1.0}
        if step == 0:
            line = {"step": 0}
        if step % 20 == 0:
            line |= {"validation_loss": 5.0, "validation_bits_per_byte": 2.0, "attention_logit": 1}
        while step == 100 and not Path(folder).with_name("go").exists():
            time.sleep(0.1)
        file.write(json.dumps(line) + "\n")
        file.flush()
        time.sleep(0.02)
while not sender.reachable:  # a real run would train on
    time.sleep(0.1)
sender.end()
