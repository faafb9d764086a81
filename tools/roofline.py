# SPDX-License-Identifier: MIT
"""The least time that each pass of VGG10 can take on an H100: a roofline estimate per layer and pass.

A pass moves each of its operands through device memory once and does its arithmetic at the device's
peak rate; it takes at least the longer of the two. Passes run one after the other, so that a step
takes at least their sum. What moves is what kernels/cuda reads and writes: u8 codes between layers,
two bits for each of them that say which position won its window and whether its gradient passes, and
fp32 gradients of the (pooled) outputs. Sums y of a hidden layer are computed again from the codes
where they are needed, and its dy is formed on the chip (window_products.cu, recompute_backward.cu,
first_layer.cu); "forward" of a hidden layer is the pass of one that keeps y, and no part of the step.
Dense layers have their dy in memory. Launches and the host are left out.
"""
import math

# What a copy from device memory to device memory moves on an NVIDIA H100 SXM5, bytes read and written
# together, as measured with PyTorch 2.11; the data sheet says 3.35e12. (H200: 4.3e12 of 4.8e12.)
BYTES_PER_S = 3.0e12
# NVIDIA H100 SXM5, "NVIDIA H100 Tensor Core GPU" data sheet: fp32 outside and bf16 and int8 inside of
# tensor cores, without sparsity.
FP32_FLOP_PER_S = 67e12
BF16_TENSOR_FLOP_PER_S = 989e12
INT8_TENSOR_OP_PER_S = 1979e12
# What the mma.sync instructions of the kernels reach of that, measured: the mean of Luo et al.,
# "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking"
# (arXiv:2402.13499).
MMA_SYNC_SHARE = 0.629
# 128 bytes a clock from L1 ("Shared Memory" of the CUDA C++ Programming Guide for compute capability
# 9.0), the clock from the fp32 rate (128 lanes, 2 operations).
L1_BYTES_PER_S = FP32_FLOP_PER_S / (128 * 2) * 128
# Rates by what a dense product multiplies: bytes by bytes, and floats, as two parts in bf16, by codes.
DENSE_RATES = {"int8": INT8_TENSOR_OP_PER_S * MMA_SYNC_SHARE,
               "2 x bf16": BF16_TENSOR_FLOP_PER_S * MMA_SYNC_SHARE / 2}

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
GOAL_FRAMES_PER_S = 1_200_000
# Blocks of recompute_backward.cu, each of which writes its sums for the weights' gradient.
PRODUCT_BLOCKS = 264
# Of the gradient of weights in conv1d_tensor.cu: kGradientBlocks, kGradientWarps, the outputs and
# quads of a warp's tile; of that in conv1d.cu: kManyBlocks, weights of a block.
GRADIENT_BLOCKS, GRADIENT_WARPS, TILE_OUTPUTS, TILE_QUADS = 264, 6, 32, 16
MANY_BLOCKS, SPARSE_WEIGHTS = 512, 64
WEIGHT_BYTES = 70  # per weight and step: largest, quantize, pack twice, gradient, Adam


class Layer:
    def __init__(self, name, in_channels, out_channels, taps, length, pool):
        self.name, self.taps, self.length, self.pool = name, taps, length, pool
        self.in_channels, self.out_channels = in_channels, out_channels

    @property
    def weights(self):
        return self.taps * self.in_channels * self.out_channels


def vgg10(classes=24):
    layers, length, channels = [], 1024, 2
    for i in range(7):
        layers.append(Layer(f"conv{i + 1}", channels, 64, 3, length, 2))
        channels, length = 64, length // 2
    for name, outputs in (("dense1", 128), ("dense2", 128), ("output", classes)):
        layers.append(Layer(name, channels * length, outputs, 1, 1, 1))
        channels, length = outputs, 1
    return layers


def ceil_div(a, b):
    return -(-a // b)


def partial_sums(layer, kernel, density, batch):
    """Bytes per frame of the sums of slices of the batch, written once and read once."""
    if kernel == "dense":
        tiles = (ceil_div(layer.taps * ceil_div(layer.in_channels, 4), TILE_QUADS) *
                 ceil_div(layer.out_channels, TILE_OUTPUTS))
        blocks, wanted, weights = ceil_div(tiles, GRADIENT_WARPS), GRADIENT_BLOCKS, layer.weights
    else:
        weights = layer.weights * density
        blocks, wanted = math.ceil(weights / SPARSE_WEIGHTS), MANY_BLOCKS
    slices = max(1, min(layer.length * batch // 32, wanted // blocks))
    return 2 * 4 * weights * slices / batch


def passes(layer, first, density, batch, bytes_per_s):
    """Yields (pass, kernel, bytes, seconds by arithmetic, bound, operations), all per frame.

    kernel: the one with the lower bound. A sparse kernel loads 4 bytes from L1 for each product. A
    product of a float by a code counts as one, though tensor cores do it in two parts.
    """
    products = layer.weights * layer.length
    x = ceil_div(layer.in_channels, 4) * 4 * layer.length
    y = 4 * layer.out_channels * layer.length
    pooled = layer.out_channels * layer.length // layer.pool
    dx = 4 * layer.in_channels * layer.length
    hidden = layer.name != "output"

    def product(name, numbers, moved):
        """moved: bytes by kernel, dense and sparse."""
        choices = [(max(2 * products / DENSE_RATES[numbers], moved["dense"] / bytes_per_s),
                    2 * products / DENSE_RATES[numbers], numbers, "dense", 1)]
        if density < 1:
            by_l1 = 4 * products * density / L1_BYTES_PER_S
            choices.append((max(by_l1, moved["sparse"] / bytes_per_s), by_l1, "L1", "sparse",
                            density))
        # The faster one, also by arithmetic alone where memory hides the difference.
        _, seconds, limit, kernel, share = min(choices)
        bound = "memory" if moved[kernel] / bytes_per_s >= seconds else limit
        return name, kernel, moved[kernel], seconds, bound, 2 * products * share

    def recomputed(name, times, moved):
        seconds = times * 2 * products / DENSE_RATES["int8"]
        bound = "memory" if moved / bytes_per_s >= seconds else "int8"
        return name, "", moved, seconds, bound, times * 2 * products

    def on_chip(name, of_codes, of_gradients, moved):
        """Products of codes by codes and of gradients by codes, so often."""
        seconds = 2 * products * (of_codes / DENSE_RATES["int8"] + of_gradients / DENSE_RATES["2 x bf16"])
        bound = "memory" if moved / bytes_per_s >= seconds else "tensor cores"
        return name, "", moved, seconds, bound, (of_codes + of_gradients) * 2 * products

    def both(moved):
        return {"dense": moved, "sparse": moved}

    yield product("forward", "int8", both(x + y))
    bits = pooled // 4
    if first:
        # Sums of y come from those of windows, and one pass over the gradient gives all (first_layer.cu).
        yield recomputed("activation", 1, 2 * x + pooled + bits)
        yield on_chip("activation backward", 0, 1, x + 5 * pooled + bits)
        yield "update", "", WEIGHT_BYTES * layer.weights / batch, 0.0, "memory", 0
        return
    if layer.taps > 1:
        # Products of rows, as many as those of y, and y for the codes. Sums of g * x, y for dx.
        yield recomputed("activation", 2, 2 * x + pooled + bits)
        sums = 2 * 4 * layer.weights * PRODUCT_BLOCKS / batch
        yield on_chip("activation backward", 0, 1, x + 5 * pooled + bits + sums)
        yield on_chip("backward data", 1, 1, x + 4 * pooled + bits + dx)
        yield "update", "", WEIGHT_BYTES * layer.weights / batch, 0.0, "memory", 0
        return
    if hidden:
        # y is computed again: for its sums and for the codes; for sums of gradients and, twice, for dy.
        yield recomputed("activation", 2, 2 * x + pooled)
        yield recomputed("activation backward", 3, 2 * (x + 4 * pooled) + y)
    yield product("backward weight", "2 x bf16",
                  {k: x + y + partial_sums(layer, k, density, batch) for k in ("dense", "sparse")})
    yield product("backward data", "2 x bf16", both(y + dx))
    yield "update", "", WEIGHT_BYTES * layer.weights / batch, 0.0, "memory", 0


def estimate(density, batch, bytes_per_s=BYTES_PER_S):
    """Rows of every layer and pass, and the frames per second that they allow."""
    rows, training, evaluation = [], 0.0, 0.0
    for i, layer in enumerate(vgg10()):
        for name, kernel, moved, by_arithmetic, bound, operations in passes(
                layer, i == 0, density, batch, bytes_per_s):
            by_memory = moved / bytes_per_s
            seconds = max(by_memory, by_arithmetic)
            # A hidden layer makes its sums where it needs them; only where it keeps them, this pass runs.
            in_step = name != "forward" or layer.name == "output"
            training += seconds if in_step else 0
            if name == "forward" and in_step:
                evaluation += seconds
            elif name == "activation":
                x = ceil_div(layer.in_channels, 4) * 4 * layer.length
                evaluation += max((moved - x) / bytes_per_s, by_arithmetic / 2)
            rows.append({"layer": layer.name, "pass": name, "kernel": kernel, "bytes": moved,
                         "operations": operations, "bound": bound, "seconds": seconds,
                         "seconds_by_memory": by_memory, "in_step": in_step})
    counted = [r for r in rows if r["in_step"]]
    return {"density": density, "batch": batch, "rows": rows, "bytes": sum(r["bytes"] for r in counted),
            "operations": sum(r["operations"] for r in counted),
            "training_frames_per_s": 1 / training, "evaluation_frames_per_s": 1 / evaluation}


def print_report(batch, densities=DENSITIES):
    estimates = [estimate(d, batch) for d in densities]
    rates = ", ".join(f"{rate / 1e12:.0f} T/s {name}" for name, rate in DENSE_RATES.items())
    print(f"VGG10, 8 bits, batch {batch}: least time on an H100 ({BYTES_PER_S / 1e12:g} TB/s, on tensor cores {rates}, "
          f"{L1_BYTES_PER_S / 1e12:.0f} TB/s from L1)")
    for e in estimates:
        print(f"\ndensity {e['density']:g}: per frame\n{'layer':8} {'pass':20} {'kernel':7} "
              f"{'KB':>8} {'MFLOP':>7} {'ns':>7}  bound by")
        for r in e["rows"]:
            print(f"{r['layer']:8} {r['pass']:20} {r['kernel']:7} {r['bytes'] / 1e3:8.1f} "
                  f"{r['operations'] / 1e6:7.2f} {r['seconds'] * 1e9:7.1f}  {r['bound']}"
                  f"{'' if r['in_step'] else ' (only where sums are kept)'}")
    print(f"\n{'density':>7} {'MB/frame':>9} {'MFLOP/frame':>12} {'training frames/s':>18} "
          f"{'evaluation':>11}")
    for e in estimates:
        print(f"{e['density']:7g} {e['bytes'] / 1e6:9.2f} {e['operations'] / 1e6:12.1f} "
              f"{e['training_frames_per_s']:18,.0f} {e['evaluation_frames_per_s']:11,.0f}")
    print(f"goal, measured: {GOAL_FRAMES_PER_S:,} training frames/s")
