"""Network, sampling and update of another implementation of the guide's interface, timed beside ours.

    python -m benchmarks peer --peer PATH

PATH is a checkout with packages `nets` and `reinflow`. `sampler`, `update` and `latency` take the same flag.
"""

from __future__ import annotations

from benchmarks._compare import parser, save
from benchmarks._peer import add_peer_flag, beside


def main() -> None:
    """Time the parts of the checkout that `--peer` names beside ours."""
    flags = parser(__doc__)
    add_peer_flag(flags, required=True)
    flags.add_argument("--rows", type=int, default=64, help="rows of a batch")
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    args = flags.parse_args()
    save("peer", args, beside(args, args.rows, args.horizon, args.k))


if __name__ == "__main__":
    main()
