# SPDX-License-Identifier: MIT
"""The least time that each pass of VGG10 can take on an H100: a roofline estimate per layer and pass.

A pass moves each of its operands through device memory once and does its arithmetic at the device's
peak rate; it takes at least the longer of the two. Passes run one after the other, so that a step
takes at least their sum. What moves is what kernels/cuda reads and writes: u8 codes between layers,
fp32 sums y, their gradients dy and dx. Launches and the host are left out.
"""

# NVIDIA H100 SXM5, "NVIDIA H100 Tensor Core GPU" data sheet: memory bandwidth, fp32 outside and bf16
# inside of tensor cores, without sparsity.
BYTES_PER_S = 3.35e12
FP32_FLOP_PER_S = 67e12
BF16_TENSOR_FLOP_PER_S = 989e12
# Both follow from the fp32 rate (128 lanes, 2 operations) and the "Arithmetic Instructions" and
# "Shared Memory" sections of the CUDA C++ Programming Guide for compute capability 9.0: 32-bit
# integer multiply-adds at 64 lanes a clock, 8 operations each as dp4a; 128 bytes a clock from L1.
DP4A_OP_PER_S = FP32_FLOP_PER_S / (128 * 2) * 64 * 8
L1_BYTES_PER_S = FP32_FLOP_PER_S / (128 * 2) * 128

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
GOAL_FRAMES_PER_S = 600_000
MANY_BLOCKS, TILE = 512, 64  # kManyBlocks; kTile of conv1d.cu
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


def passes(layer, first, density, batch):
    """Yields (pass, kernel, bytes, seconds by arithmetic, bound, operations), all per frame.

    kernel: the one with the lower bound. A sparse kernel loads 4 bytes from L1 for each product.
    """
    products = layer.weights * layer.length
    x = -(-layer.in_channels // 4) * 4 * layer.length
    y = 4 * layer.out_channels * layer.length
    pooled = layer.out_channels * layer.length // layer.pool
    dx = 4 * layer.in_channels * layer.length
    hidden = layer.name != "output"

    def product(name, moved, rate):
        dense = (2 * products / rate, "fp32" if rate == FP32_FLOP_PER_S else "dp4a", "dense", 1)
        sparse = (4 * products * density / L1_BYTES_PER_S, "L1", "sparse", density)
        by_memory = moved / BYTES_PER_S
        # A sparse kernel where it is faster, not where memory hides the difference.
        seconds, limit, kernel, share = min(dense, sparse) if density < 1 else dense
        bound = "memory" if by_memory >= seconds else limit
        return name, kernel, moved, seconds, bound, 2 * products * share

    yield product("forward", x + y, DP4A_OP_PER_S)
    if hidden:
        yield "activation", "", 2 * y + pooled, 0.0, "memory", 0
        yield "activation backward", "", 2 * (y + 4 * pooled) + y, 0.0, "memory", 0
    blocks = layer.taps * -(-layer.in_channels // TILE) * -(-layer.out_channels // TILE)
    slices = max(1, min(layer.length * batch // 32, MANY_BLOCKS // blocks))
    partial = 2 * 4 * layer.weights * slices / batch
    yield product("backward weight", x + y + partial, FP32_FLOP_PER_S)
    if not first:
        yield product("backward data", y + dx, FP32_FLOP_PER_S)
    yield "update", "", WEIGHT_BYTES * layer.weights / batch, 0.0, "memory", 0


def estimate(density, batch):
    """Rows of every layer and pass, and the frames per second that they allow."""
    rows, training, evaluation, tensor = [], 0.0, 0.0, 0.0
    for i, layer in enumerate(vgg10()):
        for name, kernel, moved, by_arithmetic, bound, operations in passes(layer, i == 0, density,
                                                                            batch):
            by_memory = moved / BYTES_PER_S
            seconds = max(by_memory, by_arithmetic)
            training += seconds
            tensor += max(by_memory, min(by_arithmetic, operations / BF16_TENSOR_FLOP_PER_S))
            if name == "forward":
                evaluation += seconds
            elif name == "activation":
                evaluation += (moved - 4 * layer.out_channels * layer.length) / BYTES_PER_S
            rows.append({"layer": layer.name, "pass": name, "kernel": kernel, "bytes": moved,
                         "operations": operations, "bound": bound, "seconds": seconds,
                         "seconds_by_memory": by_memory})
    return {"density": density, "batch": batch, "rows": rows, "bytes": sum(r["bytes"] for r in rows),
            "operations": sum(r["operations"] for r in rows),
            "training_frames_per_s": 1 / training, "evaluation_frames_per_s": 1 / evaluation,
            "training_frames_per_s_tensor_cores": 1 / tensor}


def print_report(batch, densities=DENSITIES):
    estimates = [estimate(d, batch) for d in densities]
    print(f"VGG10, 8 bits, batch {batch}: least time on an H100 (3.35 TB/s, 67 TFLOP/s fp32, "
          f"{DP4A_OP_PER_S / 1e12:.0f} TOP/s dp4a, {L1_BYTES_PER_S / 1e12:.0f} TB/s from L1)")
    for e in estimates:
        print(f"\ndensity {e['density']:g}: per frame\n{'layer':8} {'pass':20} {'kernel':7} "
              f"{'KB':>8} {'MFLOP':>7} {'ns':>7}  bound by")
        for r in e["rows"]:
            print(f"{r['layer']:8} {r['pass']:20} {r['kernel']:7} {r['bytes'] / 1e3:8.1f} "
                  f"{r['operations'] / 1e6:7.2f} {r['seconds'] * 1e9:7.1f}  {r['bound']}")
    print(f"\n{'density':>7} {'MB/frame':>9} {'MFLOP/frame':>12} {'training frames/s':>18} "
          f"{'with tensor cores':>18} {'evaluation':>11}")
    for e in estimates:
        print(f"{e['density']:7g} {e['bytes'] / 1e6:9.2f} {e['operations'] / 1e6:12.1f} "
              f"{e['training_frames_per_s']:18,.0f} {e['training_frames_per_s_tensor_cores']:18,.0f} "
              f"{e['evaluation_frames_per_s']:11,.0f}")
    print(f"goal: {GOAL_FRAMES_PER_S:,} training frames/s. With tensor cores: were dense products in "
          "bf16 on them, which no kernel does yet.")
