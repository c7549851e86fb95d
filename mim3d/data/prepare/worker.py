"""A process that prepares cases: one line of JSON in, one line of JSON out.

It is started by `pool` as `python -m mim3d.data.prepare.worker`. The first line is the work all
cases share; each further line is a case. What libraries print never reaches the answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from mim3d.data.prepare.job import Work, case_from_json, peek, prepare_or_keep
from mim3d.foundation.errors import ResourceError
from mim3d.foundation.machine import limit_memory


def main() -> None:
    """Answers until the input ends."""
    # Ctrl-C reaches the whole group; the parent ends its workers when it has said so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = Work.from_json(json.loads(sys.stdin.readline()))
    if work.spare_bytes is not None:
        # A file that eats memory ends in an error here instead of in the death of a neighbour.
        limit_memory(work.spare_bytes)
    for line in sys.stdin:
        request = json.loads(line)
        case = case_from_json(request["case"])
        try:
            answer = (peek if request["do"] == "peek" else prepare_or_keep)(case, work)
        except ResourceError as error:
            answer = {
                "state": "stop", "what": error.what, "remedy": error.remedy, "code": error.code
            }  # fmt: skip
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
