"""One call of a diffusion U-Net in 8 bits: ours, ONNX Runtime's quantize_static and OpenVINO's
NNCF, interleaved on one CPU thread.

    pip install nncf openvino
    python benchmarks/runtime_peers.py [small|large] [--repeats 9] [--json]

``large`` is DDPM's CIFAR-10 architecture (36 M parameters, random weights), ``small`` one of 0.7 M.
Processor time: medians of the second of two calls in a row, turn by turn; gains are medians of the
turns' ratios. Errors are relative to the float network on the calibration inputs; weights are
random, so they compare tools, not models.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import UNet2DModel
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.exporter import export_model
from export.runtime.providers import open_session
from quant.calibration.trajectory import CalibrationSet, record
from quant.quantize import quantize
from solvers.denoiser import Denoiser
from solvers.grid import trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.processes.process import VP

CPU = ["CPUExecutionProvider"]
NNCF_CAREFUL = "OpenVINO NNCF int8, careful"
ARCHITECTURES = {
    "large": {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "small": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="small", choices=ARCHITECTURES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--row", action="append", help="only rows that hold this text, and ONNX Runtime's in fp32"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = random_denoiser(arguments.size)
    network, calibration = denoiser.network, generated(denoiser, 2)
    inputs = [(x.numpy(), t.numpy()) for x, t in calibration.batches(1)]
    references = [
        network(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy() for x, t in inputs
    ]
    with tempfile.TemporaryDirectory() as place:
        rows = arguments.row or [""]
        runs = dict(_runs(denoiser, calibration, inputs, Path(place), rows))
        times = {name: [] for name in runs}
        for turn in range(arguments.repeats + 1):
            for name, (run, _) in runs.items():
                # its weights are in the cache afterwards, as in a run of many steps
                run(*inputs[0])
                began = time.process_time()
                run(*inputs[0])
                if turn:  # the first call allocates
                    times[name].append((time.process_time() - began) * 1e3)
        plain, bytes_plain = times["ONNX Runtime fp32"], runs["ONNX Runtime fp32"][1]
        rows = []
        for name, (run, size) in runs.items():
            error = np.mean(
                [
                    np.linalg.norm(run(*i) - r) / np.linalg.norm(r)
                    for i, r in zip(inputs, references, strict=True)
                ]
            )
            gain = statistics.median(p / t for p, t in zip(plain, times[name], strict=True))
            row = {
                "name": name,
                "ms": round(statistics.median(times[name]), 2),
                "speedup": round(gain, 2),
            }
            rows.append(
                row | {"size_ratio": round(size / bytes_plain, 3), "error": round(float(error), 4)}
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['name']:44} {row['ms']:8.2f} ms {row['speedup']:6.2f} x  size"
            f" {row['size_ratio']:.3f}  error {row['error']:.4f}"
        )


def random_denoiser(size: str) -> Denoiser:
    """A network of :data:`ARCHITECTURES` with random weights, always the same.

    What it says is read as v, so that states keep the unit variance that trained networks are
    shown: read as noise, random answers throw them apart, to 93 times that in two steps.
    """
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=32, **ARCHITECTURES[size]).eval().requires_grad_(False)
    multiple = 2 ** (len(network.config.block_out_channels) - 1)
    return Denoiser(network, VP.linear(1000), "v_prediction", multiple=multiple)


def generated(denoiser: Denoiser, count: int, seed: int = 0) -> CalibrationSet:
    """What it is shown in ``count`` runs of three steps from noise."""
    with record(denoiser, seed=0, solver="ddim", task="generate") as recorder:
        for k in range(seed, seed + count):
            x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(k))
            solve(DDIM(), denoiser, x, trailing(denoiser.process, 3))
    return recorder.result()


def _runs(denoiser, calibration, inputs, place: Path, wanted: Sequence[str]):
    """Name -> (a call of one input, bytes of the file)."""
    plain = place / "plain.onnx"
    onnx.save(export_model(denoiser), plain)
    yield "ONNX Runtime fp32", onnx_call(plain, ("x", "t"))
    quantized = quantize(denoiser.network, calibration)
    ours = place / "ours.onnx"
    onnx.save(
        export_model(denoiser, target="cpu", quantized=quantized, timesteps=quantized.timesteps),
        ours,
    )
    name = "ours, target cpu, ONNX Runtime"
    if asked(name, wanted):
        yield name, onnx_call(ours, ("x", "index"), quantized.timesteps, integer=True)
    yield from static_graphs(plain, inputs, place, wanted)
    yield from openvino_graphs(plain, inputs, place, wanted)
    yield from ours_on_openvino(denoiser, quantized, place, wanted)


def asked(name: str, wanted: Sequence[str]) -> bool:
    """Whether the name of a row holds one of these texts."""
    return any(text in name for text in wanted)


def static_graphs(plain: Path, inputs, place: Path, wanted: Sequence[str] = ("",)):
    """ONNX Runtime's quantize_static with several settings, calibrated on ``inputs`` (pairs of
    arrays x, t); those that are :func:`asked` for.
    """

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": x, "t": t} for x, t in inputs])

        def get_next(self):
            return next(self.left, None)

    prepared = place / "prepared.onnx"
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    common = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8}
    weighted, symmetric = (
        ["Conv", "MatMul", "Gemm"],
        {"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    settings = {
        "quantize_static, default": {},
        "quantize_static, per channel, uint8": {
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "op_types_to_quantize": weighted,
        },
        "quantize_static, per channel, Conv only": {
            "per_channel": True,
            "op_types_to_quantize": ["Conv"],
            "extra_options": symmetric,
        },
        # what a careful user leaves in float: first, last and shortcut layers
        "quantize_static, careful": {
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "op_types_to_quantize": ["Conv"],
            "nodes_to_exclude": _ends_and_shortcuts(prepared),
        },
    }
    # 4 bits: their weights rounded to the nearest of 15 codes of each channel, then the same
    settings["quantize_static, careful, W4A8"] = settings["quantize_static, careful"]
    for k, (name, options) in enumerate(settings.items()):
        if not asked(name, wanted):
            continue
        made = place / f"static{k}.onnx"
        try:
            given = prepared
            if name.endswith("W4A8"):
                given = _four_bits(prepared, set(options["nodes_to_exclude"]), place)
            quantize_static(str(given), str(made), Reader(), **common, **options)
            yield name, onnx_call(made, ("x", "t"))
        except Exception as error:
            print(f"{name}: {(str(error).splitlines() or [''])[0][:110]}")


def _ends_and_shortcuts(path: Path) -> list[str]:
    """Names of the nodes with those weights."""
    return [
        node.name
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv"
        and any(part in node.input[1] for part in ("conv_in", "conv_out", "conv_shortcut"))
    ]


def _four_bits(path: Path, excluded: set[str], place: Path) -> Path:
    """The graph with the other convolutions' weights on 15 codes a channel. What quantizes them to
    8 bits afterwards moves them by a hundredth of such a step.
    """
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name in excluded:
            continue
        weight = onnx.numpy_helper.to_array(tensors[node.input[1]])
        step = np.abs(weight).max((1, 2, 3), keepdims=True) / 7
        rounded = np.rint(weight / np.maximum(step, 1e-12)) * step
        tensors[node.input[1]].CopyFrom(
            onnx.numpy_helper.from_array(rounded.astype(np.float32), node.input[1])
        )
    made = place / "four.onnx"
    onnx.save(model, made)
    return made


def onnx_call(path: Path, names, timesteps=(), integer: bool = False):
    """A call of an ONNX file on one thread, and the file's bytes."""
    if integer:
        session = open_session(path, CPU, threads=1, integer=True)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=CPU)

    def run(x, t):
        second = np.array([timesteps.index(float(v)) for v in t]) if timesteps else t
        return session.run(None, dict(zip(names, (x, second), strict=True)))[0]

    return run, path.stat().st_size


def openvino_graphs(plain: Path, inputs, place: Path, wanted: Sequence[str] = ("",)):
    """OpenVINO in float32 and bfloat16, and quantized by NNCF on ``inputs``; compiled for each
    input size, as our sessions do.
    """
    rows = {
        kind: [hint for hint in ("f32", "bf16") if asked(f"{kind}, {hint}", wanted)]
        for kind in ("OpenVINO", "OpenVINO NNCF int8", NNCF_CAREFUL)
    }
    if not any(rows.values()):
        return
    try:
        import nncf
        import openvino
    except ImportError:
        print("NNCF and OpenVINO are not installed: left out")
        return
    core = openvino.Core()
    model = core.read_model(plain)
    data = nncf.Dataset(inputs, lambda pair: {"x": pair[0], "t": pair[1]})
    kinds = {
        "OpenVINO": lambda: model,
        "OpenVINO NNCF int8": lambda: nncf.quantize(model, data, subset_size=len(inputs)),
        # what a careful user asks for: asymmetric activations, SmoothQuant, slow bias correction,
        # first, last and shortcut layers in float
        NNCF_CAREFUL: lambda: nncf.quantize(
            model,
            data,
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(
                patterns=[".*conv_in.*", ".*conv_out.*", ".*conv_shortcut.*"], validate=False
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=0.5, matmul=0.5)
            ),
        ),
    }
    for name, make in kinds.items():
        if not rows[name]:
            continue
        one = make()
        path = place / f"{name}.xml"
        openvino.save_model(one, path, compress_to_fp16=False)
        for hint in rows[name]:

            @cache
            def compiled(shape, one=one, hint=hint):
                fixed = one.clone()
                fixed.reshape({"x": list(shape), "t": [shape[0]]})
                return core.compile_model(
                    fixed, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint}
                )

            yield (
                f"{name}, {hint}",
                (
                    lambda x, t, c=compiled: c(x.shape)({"x": x, "t": t})[0],
                    path.with_suffix(".bin").stat().st_size,
                ),
            )


def ours_on_openvino(denoiser, quantized, place: Path, wanted: Sequence[str]):
    """Our graphs as ``Session(device="openvino")`` runs them, and in the other precision of what
    isn't quantized.
    """
    try:
        import openvino  # noqa: F401
    except ImportError:
        return
    from export.runtime.openvino import OpenVinoGraph

    for target in ("cpu", "openvino", "tensorrt"):
        path = place / f"{target}.onnx"
        onnx.save(
            export_model(
                denoiser, target=target, quantized=quantized, timesteps=quantized.timesteps
            ),
            path,
        )
        for hint in ("f32", "bf16"):
            name = f"ours, target {target}, OpenVINO, rest {hint}"
            if not asked(name, wanted):
                continue
            graph = OpenVinoGraph(path, target, 1, precision=hint)

            def run(x, t, graph=graph):
                return graph.run(
                    ["output"],
                    {"x": x, "index": np.array([quantized.timesteps.index(float(v)) for v in t])},
                )[0]

            yield name, (run, path.stat().st_size)


if __name__ == "__main__":
    main()
