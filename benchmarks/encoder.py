"""Image encoders: pictures per second, forward and with their gradient, in both memory layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._agents import device
from benchmarks._compare import Comparison, Variant, compare, parser, report
from nets.vision import pixels
from reinflow.policies import ENCODERS


def main() -> None:
    """Time every encoder, forward alone and with the gradient, in channels-first and channels-last layout."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=64, help="pictures")
    flags.add_argument("--size", type=int, default=128, help="pixels of a side")
    flags.add_argument("--encoder", nargs="+", default=list(ENCODERS), help="encoders")
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    comparisons: list[Comparison] = []
    for name in args.encoder:
        torch.manual_seed(0)
        encoder = ENCODERS[name].build(3, 256, (args.size, args.size)).to(device())
        shape = (args.batch, 1, args.size, args.size, 3)
        stored = torch.randint(0, 256, shape, dtype=torch.uint8, device=device())

        def forward(layout: torch.memory_format, encoder=encoder, stored=stored) -> dict[str, Tensor]:
            picture = pixels(stored, None, 2.0).contiguous(memory_format=layout)
            with torch.no_grad():
                return {"features": encoder(picture)}

        def backward(layout: torch.memory_format, encoder=encoder, stored=stored) -> dict[str, Tensor]:
            picture = pixels(stored, None, 2.0).contiguous(memory_format=layout)
            loss = encoder(picture).square().mean()
            gradients = torch.autograd.grad(loss, list(encoder.parameters()))
            return {"gradient": torch.cat([g.flatten() for g in gradients])}

        for what, run in (("forward", forward), ("forward and gradient", backward)):
            variants = [
                Variant("channels first", lambda run=run: run(torch.contiguous_format)),
                Variant("channels last", lambda run=run: run(torch.channels_last)),
            ]
            case = f"{name}, {args.batch} pictures, {what}"
            comparisons.append(compare(case, variants, args.rounds, tolerance=1e-2))
    report("encoder", args, comparisons)


if __name__ == "__main__":
    main()
