"""Every script of this folder in one process, in turn.

    THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/all.py
    python benchmarks/throughput/all.py --only pretrain_step finetune_step --device cuda

Results are compared first, and a difference ends the run; then the contestants take turns.
"""

from __future__ import annotations

import importlib

from script import measure, parser_of

SCRIPTS = (
    "read_volume",
    "read_crops",
    "resample",
    "prepare",
    "transport",
    "augment",
    "pretrain_step",
    "simmim_step",
    "finetune_step",
    "sliding_window",
    "evaluate",
)


def main() -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options = parser.parse_args()
    measure({name: importlib.import_module(name).jobs for name in options.only}, options)


if __name__ == "__main__":
    main()
