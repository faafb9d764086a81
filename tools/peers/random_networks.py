# SPDX-License-Identifier: MIT
"""Runs under tools/check_peers, in an interpreter that has qonnx and ONNX Runtime:

    random_networks.py PROGRAMS NETWORKS SEED [brevitas]

Makes networks, has both sides evaluate and cost them, and compares. See check_peers.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.inference_cost import inference_cost

QONNX = "qonnx.custom_op.general"
FRAMES = 3
LENGTHS = (16, 32, 48)
CLASSES = 4
TOLERANCE = 1e-4
# A value next to a rounding boundary may become another code where sums of floats run in another order. That moves
# logits by a few codes on a frame now and then; anything else is a fault.
ALLOWED_SHARE = 0.05


class Builder:
    def __init__(self, rng, opset, length, exact):
        self.rng, self.opset, self.exact = rng, opset, exact
        self.nodes, self.initializers, self.count = [], [], 0
        self.shape = [1, 2, length]

    def choice(self, *values):
        return values[self.rng.integers(len(values))]

    def constant(self, array, dtype=None):
        array = np.asarray(array, dtype)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.count += 1
        self.initializers.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def node(self, op, *inputs, domain="", outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"{op}_{self.count}", domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def scale(self, size=None):
        """Powers of two keep all sums exact, in any order."""
        if self.exact:
            return (2.0 ** self.rng.integers(-5, -2, size)).astype(np.float32) if size else np.float32(2.0 ** self.rng.integers(-5, -2))
        return np.float32(self.rng.uniform(0.03, 0.2, size))


class QonnxForm:
    """Quant, IntQuant and BipolarQuant."""

    def __init__(self, b):
        self.b = b

    def quantize(self, x, scale, zero, bits, signed, narrow, mode):
        b = self.b
        inputs = [b.constant(np.asarray(v, np.float32)) for v in (scale, zero, bits)]
        return b.node(
            b.choice("Quant", "Quant", "IntQuant"), x, *inputs, domain=QONNX, signed=signed, narrow=narrow, rounding_mode=mode
        )  # fmt: skip

    def weight(self, array):
        b = self.b
        if b.rng.random() < 0.15:
            return b.node("BipolarQuant", b.constant(array), b.constant(np.float32(b.choice(1.0, 0.25))), domain=QONNX)
        bits = int(b.choice(1, 2, 3, 4, 6, 8))
        per_channel = b.rng.random() < 0.3
        scale = b.scale(array.shape[0]).reshape([-1] + [1] * (array.ndim - 1)) if per_channel else b.scale()
        return self.quantize(b.constant(array), scale, 0.0, bits, 1, int(b.choice(0, 1)), "ROUND")

    def activation(self, x):
        b = self.b
        if b.rng.random() < 0.1:
            return b.node("Sign", x)
        signed = int(b.choice(0, 1))
        zero = float(b.choice(0, 0, 0, 1)) if not signed else 0.0
        mode = b.choice("ROUND", "ROUND", "FLOOR", "CEIL", "HALF_EVEN", "UP", "DOWN", "HALF_UP", "HALF_DOWN")
        return self.quantize(x, b.scale(), zero, int(b.choice(1, 2, 4, 5, 8)), signed, 0, mode)


class LinearForm:
    """QuantizeLinear and DequantizeLinear, as Brevitas' QCDQ and quantize_static write them."""

    def __init__(self, b):
        self.b = b

    def weight(self, array):
        b = self.b
        per_channel = b.rng.random() < 0.4
        scale = b.scale(array.shape[0]) if per_channel else b.scale()
        codes = b.constant(b.rng.integers(-127, 128, array.shape).astype(np.int8) * (np.abs(array) > 0.2))
        zero = b.constant(np.zeros_like(scale, dtype=np.int8))
        if b.rng.random() < 0.5:
            codes = b.node("Clip", codes, b.constant(np.int8(-7)), b.constant(np.int8(7)))
        return b.node("DequantizeLinear", codes, b.constant(scale), zero, axis=0)

    def activation(self, x):
        b = self.b
        dtype = b.choice(np.int8, np.uint8)
        scale, zero = b.constant(b.scale()), b.constant(dtype(b.choice(0, 0, 3)))
        codes = b.node("QuantizeLinear", x, scale, zero)
        if b.rng.random() < 0.3:
            codes = b.node("Clip", codes, b.constant(dtype(0)), b.constant(dtype(15)))
        return b.node("DequantizeLinear", codes, scale, zero)


class FloatForm:
    def __init__(self, b):
        self.b = b

    def weight(self, array):
        return self.b.constant(array)

    def activation(self, x):
        return x


def convolution(b, form, x):
    _, channels, length = b.shape
    kernel = min(int(b.choice(1, 2, 3, 5)), length)
    groups = 2 if channels % 2 == 0 and b.rng.random() < 0.2 else 1
    outputs = int(b.choice(2, 4, 6))
    attributes = {"kernel_shape": [kernel], "group": groups}
    stride, dilation = int(b.choice(1, 1, 2)), int(b.choice(1, 1, 2))
    reach = dilation * (kernel - 1) + 1
    if reach > length:
        dilation, reach = 1, kernel
    pads = [int(p) for p in b.rng.integers(0, reach, 2)] if b.rng.random() < 0.7 else [0, 0]
    if b.rng.random() < 0.15 and dilation == 1:
        attributes["auto_pad"] = b.choice("SAME_UPPER", "SAME_LOWER")
        out = -(-length // stride)
    else:
        attributes["pads"] = pads
        out = (length + sum(pads) - reach) // stride + 1
    attributes |= {"strides": [stride], "dilations": [dilation]}
    w = b.rng.normal(size=(outputs, channels // groups, kernel)).astype(np.float32)
    w[b.rng.random(w.shape) < 0.4] = 0
    inputs = [x, form.weight(w)]
    if b.rng.random() < 0.5:
        inputs.append(b.constant(np.round(b.rng.normal(size=outputs) * 16) / 16))
    b.shape = [1, outputs, out]
    return b.node("Conv", *inputs, **attributes)


def batch_norm(b, x):
    size = b.shape[1]
    power = 2.0 ** b.rng.integers(-1, 2, size)
    parameters = [power, b.rng.integers(-8, 9, size) / 16, b.rng.integers(-8, 9, size) / 16, b.rng.uniform(0.5, 2, size)]
    return b.node("BatchNormalization", x, *map(b.constant, parameters), epsilon=1e-5)


def activation(b, form, x):
    op = b.choice("Relu", "Relu", "LeakyRelu", "Sigmoid", "Elu", "Clip", "Tanh", "HardSigmoid", None)
    if op == "Clip":
        x = b.node("Clip", x, b.constant(np.float32(-1)), b.constant(np.float32(2)))
    elif op:
        x = b.node(op, x)
    return form.activation(x)


def pooling(b, x):
    op = b.choice("MaxPool", "AveragePool", None)
    if op is None or b.shape[2] < 6:
        return x
    kernel, stride = int(b.choice(2, 3)), int(b.choice(1, 2))
    pads = [int(p) for p in b.rng.integers(0, kernel, 2)]
    b.shape[2] = (b.shape[2] + sum(pads) - kernel) // stride + 1
    return b.node(op, x, kernel_shape=[kernel], strides=[stride], pads=pads)


def branch(b, form, x):
    """x beside a pointwise convolution of it: added, concatenated, or split and multiplied."""
    channels = b.shape[1]
    w = b.rng.normal(size=(channels, channels, 1)).astype(np.float32)
    y = b.node("Conv", x, form.weight(w), kernel_shape=[1])
    kind = b.choice("Add", "Concat", "Split", "Slice")
    if kind == "Add":
        return b.node("Add", x, y)
    if kind == "Split" and channels % 2 == 0:
        first, second = b.node("Split", y, outputs=2, axis=1, **({"num_outputs": 2} if b.opset >= 18 else {}))
        b.shape[1] = channels // 2
        return b.node("Mul", first, second)
    if kind == "Slice":
        return b.node("Add", x, b.node("Slice", y, *(b.constant(np.array([v], np.int64)) for v in (-1, -(2**62), 2, -1))))
    b.shape[1] = 2 * channels
    return b.node("Concat", x, y, axis=1)


def head(b, form, x):
    _, channels, length = b.shape
    kind = b.choice("Flatten", "Reshape", "GlobalAveragePool", "ReduceMean", "ReduceMax")
    if kind == "Flatten":
        x, features = b.node("Flatten", x), channels * length
    elif kind == "Reshape":
        x, features = b.node("Reshape", x, b.constant(np.array([1, -1], np.int64))), channels * length
    elif kind == "GlobalAveragePool":
        x, features = b.node("Flatten", b.node(kind, x)), channels
    else:
        axes = [b.constant(np.array([-1], np.int64))] if b.opset >= 18 else []
        attributes = {} if axes else {"axes": [-1]}
        x, features = b.node(kind, x, *axes, keepdims=0, **attributes), channels
    x = form.activation(x)
    w = b.rng.normal(size=(CLASSES, features)).astype(np.float32)
    w[b.rng.random(w.shape) < 0.4] = 0
    bias = b.constant(np.round(b.rng.normal(size=CLASSES) * 16) / 16)
    if b.rng.random() < 0.5:
        return b.node("Gemm", x, form.weight(w), bias, transB=1)
    return b.node("Add", b.node("MatMul", x, b.node("Transpose", form.weight(w), perm=[1, 0])), bias)


def random_graph(seed):
    rng = np.random.default_rng(seed)
    form_type = (QonnxForm, QonnxForm, LinearForm, FloatForm)[rng.integers(4)]
    exact = form_type is not FloatForm and rng.random() < 0.5
    length = int(LENGTHS[rng.integers(len(LENGTHS))])
    b = Builder(rng, int((13, 17, 18, 20)[rng.integers(4)]), length, exact)
    form = form_type(b)
    layout = rng.integers(3)
    x = form.activation("x") if layout != 1 else form.activation(b.node("Transpose", "x", perm=[0, 2, 1]))
    for _ in range(int(rng.integers(1, 4))):
        x = convolution(b, form, x)
        if rng.random() < 0.5:
            x = batch_norm(b, x)
        x = pooling(b, activation(b, form, x))
        if rng.random() < 0.4:
            x = branch(b, form, x)
    y = head(b, form, x)
    shape = [1, length, 2] if layout == 1 else [1, 2, length]
    graph = helper.make_graph(
        b.nodes,
        f"seed{seed}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, CLASSES])],
        b.initializers,
    )
    opsets = [helper.make_opsetid("", b.opset), helper.make_opsetid(QONNX, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), form_type.__name__


def brevitas_model(seed, path):
    """An export of Brevitas, as QONNX or QCDQ, or a float export quantized by ONNX Runtime."""
    import brevitas.nn as qnn
    import torch
    from brevitas.export import export_onnx_qcdq, export_qonnx
    from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat, Int32Bias
    from torch import nn

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    length = int(LENGTHS[rng.integers(len(LENGTHS))])
    kind = ("qonnx", "qcdq", "static")[rng.integers(3)]
    bits = int((3, 4, 8)[rng.integers(3)])
    weight = (Int8WeightPerTensorFloat, Int8WeightPerChannelFloat)[rng.integers(2)]
    signed = rng.random() < 0.3

    def act():
        if kind == "static":
            return nn.ReLU()
        kind_of = qnn.QuantIdentity if signed else qnn.QuantReLU
        return kind_of(bit_width=bits, return_quant_tensor=kind == "qonnx")

    def conv(i, o):
        if kind == "static":
            return nn.Conv1d(i, o, 3, padding=1)
        return qnn.QuantConv1d(i, o, 3, padding=1, bias=bool(rng.random() < 0.5), weight_quant=weight, weight_bit_width=bits)

    layers = [] if kind == "static" else [qnn.QuantIdentity(bit_width=8)]
    layers += [conv(2, 4), nn.BatchNorm1d(4), act(), nn.MaxPool1d(2), conv(4, 4), act(), nn.Flatten()]
    features = 4 * length // 2
    if kind == "static":
        layers += [nn.Linear(features, CLASSES)]
    else:
        layers += [qnn.QuantLinear(features, CLASSES, bias=True, weight_quant=weight, weight_bit_width=bits,
                                   bias_quant=Int32Bias if rng.random() < 0.5 and kind == "qonnx" else None)]  # fmt: skip
    net = nn.Sequential(*layers)
    x = torch.randn(32, 2, length)
    for _ in range(5):
        net(x)
    net.eval()
    sample = torch.randn(1, 2, length)
    if kind == "qonnx":
        export_qonnx(net, args=sample, export_path=str(path), dynamo=False)
    elif kind == "qcdq":
        export_onnx_qcdq(net, args=sample, export_path=str(path), dynamo=False)
    else:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            left = [x[i : i + 1].numpy() for i in range(8)]

            def get_next(self):
                return {"x": self.left.pop()} if self.left else None

        plain = path.with_suffix(".float.onnx")
        torch.onnx.export(net, (sample,), str(plain), input_names=["x"], dynamo=bool(rng.random() < 0.5), external_data=False)
        quantize_static(
            str(plain), str(path), Reader(), per_channel=bool(rng.random() < 0.5),
            activation_type=(QuantType.QUInt8, QuantType.QInt8)[rng.integers(2)],
        )  # fmt: skip
    return onnx.load(path), kind


def their_logits(model, frames):
    initializers = {t.name for t in model.graph.initializer}
    name = next(i.name for i in model.graph.input if i.name not in initializers)
    if any(n.domain not in ("", "ai.onnx") for n in model.graph.node):
        wrapper = ModelWrapper(model).transform(InferShapes())
        output = wrapper.graph.output[0].name
        return np.stack([execute_onnx(wrapper, {name: f})[output].reshape(-1) for f in frames])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.stack([session.run(None, {name: f})[0].reshape(-1) for f in frames])


def run(command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name}: {result.stderr.strip()}")


def data_file(folder, length):
    path = folder / f"frames{length}.h5"
    if not path.exists():
        rng = np.random.default_rng(length)
        with h5py.File(path, "w") as file:
            file["X"] = np.round(rng.normal(size=(FRAMES, length, 2)) * 64).astype(np.float32) / 64
            file["Y"] = np.eye(2, dtype=np.int64)[np.arange(FRAMES) % 2]
            file["Z"] = np.zeros((FRAMES, 1), np.int64)
    return path


def compare(model, path, programs, folder):
    """A list of complaints, and the frames that differ."""
    shape = [d.dim_value or 1 for d in next(i for i in model.graph.input).type.tensor_type.shape.dim]
    length = max(shape[1:])
    data = data_file(folder, length)
    logits, cost = folder / "logits", folder / "cost.json"
    run([programs / "onnx_eval", path, "--data", data, "--logits", logits, "--engine", "graph", "--threads", 1])
    run([programs / "inference_cost", path, "--json", cost, "--brevitas-domain", "quantized"])
    with h5py.File(data) as file:
        frames = file["X"][:]
    frames = frames if shape[-1] == 2 else frames.transpose(0, 2, 1)
    theirs = their_logits(model, [f[None] for f in frames])
    ours = np.fromfile(logits, np.float32).reshape(theirs.shape)
    apart = ~(np.abs(ours - theirs).max(axis=1) <= TOLERANCE * (1 + np.abs(theirs).max()))
    complaints = []
    counted = json.loads(cost.read_text())
    total = inference_cost(onnx.load(path), discount_sparsity=True)["total_cost"]
    for key in ("total_bops", "total_mem_w_bits", "total_mem_o_bits"):
        if round(counted[key]) != round(total[key]):  # theirs is a share of weights times a number
            complaints.append(f"{key} {counted[key]}, qonnx {total[key]:.0f}")
    return complaints, int(apart.sum())


def main():
    warnings.filterwarnings("ignore")
    programs, networks, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with_brevitas = len(sys.argv) > 4
    began = time.time()
    kinds, failures, frames_apart = {}, 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.onnx"
        for i in range(seed, seed + networks):
            try:
                if with_brevitas and i % 4 == 0:
                    model, kind = brevitas_model(i, path)
                else:
                    model, kind = random_graph(i)
                    onnx.save(model, path)
                complaints, apart = compare(model, path, programs, folder)
            except Exception as error:  # whatever it is, it belongs to this network
                complaints, apart, kind = [f"{type(error).__name__}: {str(error).strip()[:300]}"], 0, "failed"
            kinds[kind] = kinds.get(kind, 0) + 1
            frames_apart[kind] = frames_apart.get(kind, 0) + apart
            for complaint in complaints:
                print(f"FAIL network {i} ({kind}): {complaint}", flush=True)
            failures += bool(complaints)
    for kind, count in sorted(kinds.items()):
        share = frames_apart[kind] / (count * FRAMES)
        good = share <= ALLOWED_SHARE
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {kind}: {count} networks, {frames_apart[kind]} of {count * FRAMES} frames apart")
    print(f"{networks} networks from seed {seed} in {time.time() - began:.0f} s: {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
