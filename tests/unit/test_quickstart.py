"""What ``jobs/quickstart`` does about a head that ends, with stand-ins for Ray's command line,
Python and the installation: the real ones are in tests/vllm/test_pipeline.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

# A head listens on its port until it is ended; the job is taken by the head number $HEADS, and the
# ones before end when they are asked to.
RAY = f"""#!/bin/bash
here=$(dirname "$0")/../../state
case "$1 $2" in
  "start --head")
    echo $$ >> $here/heads
    for one in "$@"; do case $one in --dashboard-port=*) port=${{one#*=}} ;; esac; done
    exec {sys.executable} -c "
import socket, sys, time
server = socket.create_server(('127.0.0.1', $port))
time.sleep(60)" ;;
  "job list") [ -f $here/heads ] ;;
  "job submit")
    if [ $(wc -l < $here/heads) -lt "$HEADS" ]; then
      kill -KILL $(tail -n 1 $here/heads)
      while kill -0 $(tail -n 1 $here/heads) 2>/dev/null; do sleep 0.05; done
      echo "ConnectionError: no head"
      exit 1
    fi
    touch $here/taken ;;
  "job status") [ -f $here/taken ] && echo "Status for job '$5': SUCCEEDED" ;;
  "job logs") echo done ;;
esac
"""


def scripted(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_head_that_ends_before_it_takes_the_job_is_started_again(
    tmp_path: Path, heads: int
) -> None:
    (tmp_path / "jobs").mkdir()
    shutil.copy2(ROOT / "jobs" / "quickstart", tmp_path / "jobs")
    (tmp_path / "state").mkdir()
    (tmp_path / "jobs" / "install").write_text("")
    scripted(tmp_path / ".venv" / "bin" / "ray", RAY)
    python = f'#!/bin/bash\n[ "$1" != -c ] || exec {sys.executable} "$@"\n'
    scripted(tmp_path / ".venv" / "bin" / "python", python)
    done = subprocess.run(
        ["bash", str(tmp_path / "jobs" / "quickstart")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"HEADS": str(heads), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    started = (tmp_path / "state" / "heads").read_text().split()
    assert len(started) == heads
    assert done.stdout.splitlines()[-1] == "done"
    for one in started:
        assert not Path("/proc", one).exists()
