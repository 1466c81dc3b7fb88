"""SIGKILL at every file operation, in the middle of writes and at random times."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiny import configuration, write_corpus

INTERVAL = 3


# While a checkpoint is written the next steps run; the next checkpoint waits for it. So the last
# one that is finished may be two intervals back, and no further.
MOST = 2 * INTERVAL


def test_a_kill_anywhere_costs_only_the_steps_since_the_last_finished_checkpoint(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    # The third checkpoint is the first that removes an older one; a fourth would do the same.
    config = configuration(
        "identity", steps=11, checkpoint_interval=INTERVAL, evaluation_interval=4
    )
    config = replace(config, model=replace(config.model, n_layer=1))
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    corpus = write_corpus(tmp_path / "corpus")
    script = Path(__file__).with_name("killing.py")
    paths = [str(tmp_path / "config.json"), str(corpus), str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(script), *paths, "0"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    for point in points:
        assert point["same"], f"other bits after {point['point']}"
        assert point["steps"], f"a step is missing or twice after {point['point']}"
        assert point["lost"] <= MOST, f"{point['lost']} steps lost at {point['point']}"
        assert point["left"] == [], f"{point['left']} are left after {point['point']}"
    kinds = Counter(point["point"].split()[0] for point in points)
    assert not [point["point"] for point in points if point["ended"]]
    assert len(points) >= 60
    assert kinds["operation"] >= 40  # every file operation of a whole run
    assert kinds["time"] >= 5
    assert {"half", "switch"} <= kinds.keys()
    # Steps done, and of the last checkpoint that is finished, when training waits for another one:
    # 6 and none, 9 and 3, 11 (the end) and 6. Then, before the oldest is removed, 11 and 9.
    written = [point for point in points if point["point"].split()[0] in ("operation", "half")]
    assert {point["lost"] for point in written} == {0, MOST, 5, 2}
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    tell(
        f"kills: {len(points)} points ({counts}), each ended with the undisturbed run's bits; at "
        f"most {max(point['lost'] for point in points)} steps were done again, with a checkpoint "
        f"every {INTERVAL}"
    )
