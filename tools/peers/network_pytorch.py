#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times training and evaluation of a network in PyTorch: plain float, or quantized by Brevitas.

One JSON line for each batch size, with the same keys as `fmp_bench --json` where the two measure the same thing.
Each figure is the fastest of several steps, on random frames that are already in memory.
needs: pip install torch==2.13.0 brevitas==0.13.4
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.utils.prune as prune
from torch import nn

CLASSES, LENGTH = 24, 1024
PRESETS = Path(__file__).resolve().parents[2] / "framework" / "network" / "presets"
MIN_STEPS, MIN_SECONDS = (
    3,
    2.0,
)  # a figure is the best of at least that many steps and that much time


class Layers(nn.Module):
    """What framework/network/README.md describes. `parts` makes the modules: conv, linear, activation, output."""

    def __init__(self, network, parts):
        super().__init__()
        with open(PRESETS / f"{network}.json" if not network.endswith(".json") else network) as f:
            described = json.load(f)["layers"]
        self.input = parts["input"]()
        self.layers, self.forms = nn.ModuleList(), []  # forms: kind and indices of what it reads
        index, shapes = {"input": 0}, [(2, LENGTH)]  # positions None: flattened
        for i, fields in enumerate(described):
            kind = fields["type"]
            reads = [index[name] for name in fields["reads"]] if "reads" in fields else [i]
            shape, modules = self.layer(fields, [shapes[r] for r in reads], parts)
            modules.append(parts["activation"](fields.get("signed", False), i == len(described) - 1))
            if fields.get("pool", 1) > 1:
                modules.append(nn.MaxPool1d(fields["pool"]))
                shape = (shape[0], shape[1] // fields["pool"])
            self.layers.append(nn.Sequential(*modules))
            self.forms.append((kind, reads))
            shapes.append(shape)
            index[fields.get("name", i)] = i + 1
        channels, positions = shapes[-1]
        self.output = nn.Sequential(
            *([nn.Flatten()] if positions else []), parts["output"](channels * (positions or 1))
        )

    @staticmethod
    def layer(fields, shapes, parts):
        """Shape and modules in front of the activation."""
        kind, (channels, positions) = fields["type"], shapes[0]
        if kind == "conv":
            outputs, kernel, stride = fields["outputs"], fields["kernel"], fields.get("stride", 1)
            conv = parts["conv"](
                channels,
                outputs,
                kernel,
                stride=stride,
                groups=fields.get("groups", 1),
                padding=fields.get("padding", (kernel - 1) // 2),
            )
            return (outputs, positions // stride), [conv, nn.BatchNorm1d(outputs)]
        if kind == "dense":
            outputs, inputs = fields["outputs"], channels * (positions or 1)
            flatten = [nn.Flatten()] if positions else []
            return (outputs, None), flatten + [parts["linear"](inputs, outputs), nn.BatchNorm1d(outputs)]
        if kind == "average_pool":
            window = fields.get("window", positions)
            return (channels, positions // window), [nn.AvgPool1d(window)]
        return (sum(c for c, _ in shapes) if kind == "concat" else channels, positions), []

    def forward(self, x):
        values = [self.input(x)]
        for layer, (kind, reads) in zip(self.layers, self.forms):
            if kind == "add":
                x = values[reads[0]] + values[reads[1]]
            elif kind == "concat":
                x = torch.cat([values[r] for r in reads], dim=1)
            else:
                x = values[reads[0]]
            values.append(layer(x))
        return self.output(values[-1])


def float_model(network):
    return Layers(
        network,
        {
            "input": nn.Identity,
            "conv": lambda *args, **form: nn.Conv1d(*args, bias=False, **form),
            "linear": lambda *args: nn.Linear(*args, bias=False),
            "activation": lambda signed, last: nn.Identity() if signed else nn.ReLU(),
            "output": lambda inputs: nn.Linear(inputs, CLASSES),
        },
    )


def brevitas_model(network, bits):
    """Fixed-range input, per-tensor weight scales, learned activation scales: the published network's choices."""
    import brevitas.nn as qnn
    from brevitas.inject.defaults import Int8ActPerTensorFloatMinMaxInit
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int32Bias

    class InputQuant(Int8ActPerTensorFloatMinMaxInit):
        bit_width = bits
        min_val = -2.0
        max_val = 2.0
        scaling_impl_type = ScalingImplType.CONST

    def activation(signed, last):
        # The output layer's bias quantizer needs its input's scale.
        kind = qnn.QuantIdentity if signed else qnn.QuantReLU
        return kind(bit_width=bits, return_quant_tensor=last)

    weights = dict(weight_bit_width=bits)
    model = Layers(
        network,
        {
            "input": lambda: qnn.QuantHardTanh(act_quant=InputQuant),
            "conv": lambda *args, **form: qnn.QuantConv1d(*args, bias=False, **weights, **form),
            "linear": lambda *args: qnn.QuantLinear(*args, bias=False, **weights),
            "activation": activation,
            "output": lambda inputs: qnn.QuantLinear(
                inputs, CLASSES, bias=True, bias_quant=Int32Bias, **weights
            ),
        },
    )
    for module in model.modules():
        # The percentile of the first 300 steps is not what training costs in the long run: one step of it,
        # in the warm-up. This favours the peer.
        if hasattr(module, "collect_stats_steps"):
            module.collect_stats_steps = 1
    return model


def prune_to(model, density):
    """Global magnitude pruning, as the published script does it: masks over dense weights."""
    layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=1 - density)


def synchronize():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def frames_per_second(step, batch):
    times = []
    while len(times) < MIN_STEPS or sum(times) < MIN_SECONDS:
        synchronize()
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    return batch / min(times)


def sgemm_gflop_per_s(device, n=2048):
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    products = frames_per_second(lambda: torch.mm(a, b), 1)
    return 2e-9 * n**3 * products


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("brevitas", "float"), default="brevitas")
    parser.add_argument("--network", default="vgg10", help="a preset of fmp_radioml, or its file")
    parser.add_argument(
        "--bits", type=int, default=8, help="of weights, activations and input (brevitas)"
    )
    parser.add_argument(
        "--batch",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[256],
        help="frames per step, or several such numbers: 256,1024",
    )
    parser.add_argument("--compile", action="store_true", help="by torch.compile with its defaults")
    parser.add_argument(
        "--density", type=float, default=1.0, help="share of the weights that is not pruned"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()

    sgemm = round(sgemm_gflop_per_s(args.device), 1)
    for batch in args.batch:
        try:
            print(json.dumps(measure(args, batch) | {"sgemm_gflop_per_s": sgemm}), flush=True)
        except torch.cuda.OutOfMemoryError as error:
            print(f"batch {batch}: {error}", file=sys.stderr)


def measure(args, batch):
    torch.manual_seed(0)
    model = (
        float_model(args.network)
        if args.model == "float"
        else brevitas_model(args.network, args.bits)
    )
    if args.density < 1:
        prune_to(model, args.density)
    model.to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    network = torch.compile(model, dynamic=False) if args.compile else model
    x = torch.randn(batch, 2, LENGTH, device=args.device)
    y = torch.randint(0, CLASSES, (batch,), device=args.device)

    def train_step():
        optimizer.zero_grad()
        criterion(network(x), y).backward()
        optimizer.step()

    model.train()
    for _ in range(2):
        train_step()
    train = frames_per_second(train_step, batch)
    model.eval()
    with torch.no_grad():
        network(x)
        evaluation = frames_per_second(lambda: network(x), batch)
    return {
        "model": args.model,
        "network": args.network,
        "compiled": args.compile,
        "bits": args.bits if args.model == "brevitas" else 32,
        "batch": batch,
        "density": args.density,
        "device": args.device,
        "train_frames_per_s": round(train, 1),
        "eval_frames_per_s": round(evaluation, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
