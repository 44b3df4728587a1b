"""Two more tools for ``quant_peers.py``: brevitas by its own calibration, and NVIDIA's Model
Optimizer.

``careful``: what a careful user asks of them. First, last and shortcut layers stay in float, as
they do in the other careful rows.
"""

import copy
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from runtime_peers import asked
from torch import nn

FLOAT = re.compile("conv_in|conv_out|conv_shortcut")
TIME = re.compile("time_emb")  # a table in our graphs


def brevitas_networks(network: nn.Module, batches, wanted: Sequence[str] = ("",)):
    """Names and networks: brevitas's flow for diffusion models. Quantizers collect percentiles of
    their inputs (careful: weights by channel, activations with a zero point between the extremes,
    channels equalised before that), then the means of the layers' errors go into their biases.

    Args:
        batches: pairs ``(x, t)`` of tensors.
    """
    for name in ("brevitas", "brevitas, careful"):
        if asked(name, wanted):
            yield name, _brevitas(network, batches, name.endswith("careful"))


@torch.no_grad()
def _brevitas(network: nn.Module, batches, careful: bool) -> nn.Module:
    import brevitas.nn as qnn
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.equalize import activation_equalization_mode
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.quant import (
        Int8ActPerTensorFloat,
        Int8WeightPerChannelFloat,
        Int8WeightPerTensorFloat,
        ShiftedUint8ActPerTensorFloat,
    )

    class Extremes(ShiftedUint8ActPerTensorFloat):
        high_percentile_q, low_percentile_q = 100.0, 1e-9

    kinds = {
        "weight_quant": Int8WeightPerChannelFloat if careful else Int8WeightPerTensorFloat,
        "input_quant": Extremes if careful else Int8ActPerTensorFloat,
        "return_quant_tensor": False,
    }
    left = re.compile(f"{TIME.pattern}|{FLOAT.pattern}") if careful else TIME
    made = copy.deepcopy(network).eval()
    if careful:
        skipped = _layers(made, left)
        with activation_equalization_mode(
            made, alpha=0.5, layerwise=True, add_mul_node=True, blacklist_layers=skipped
        ):
            for x, t in batches:
                made(x, t)
    made = layerwise_quantize(
        made,
        {nn.Conv2d: (qnn.QuantConv2d, kinds), nn.Linear: (qnn.QuantLinear, kinds)},
        # anew: what equalises a layer stands around it, which changes its name
        name_blacklist=_layers(made, left),
    )
    for mode in (calibration_mode, bias_correction_mode):
        with mode(made):
            for x, t in batches:
                made(x, t)
    return made.eval()


def _layers(network: nn.Module, names: re.Pattern) -> list[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return [n for n, m in network.named_modules() if isinstance(m, kinds) and names.search(n)]


def modelopt_graphs(plain: Path, inputs, place: Path, wanted: Sequence[str] = ("",)):
    """Names and ONNX files of Model Optimizer's ``quantize``, which places Q and DQ as TensorRT
    wants them; ``inputs``: pairs of arrays x, t.
    """
    settings = {
        "Model Optimizer": {},
        "Model Optimizer, careful": {
            "calibration_method": "max",
            "op_types_to_quantize": ["Conv"],
            "nodes_to_exclude": [f".*({FLOAT.pattern}).*"],
        },
    }
    settings = {name: options for name, options in settings.items() if asked(name, wanted)}
    if not settings:
        return
    # it imports TensorRT, and the script of that name here comes first
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        print(f"Model Optimizer is not installed: left out ({str(error).splitlines()[0]})")
        return
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rewind()

        def rewind(self):
            self.left = iter([{"x": x.astype(np.float32), "t": t} for x, t in inputs])

        def get_next(self):
            return next(self.left, None)

        def get_first(self):
            self.rewind()
            return self.get_next()

    for k, (name, options) in enumerate(settings.items()):
        made = place / f"modelopt{k}.onnx"
        quantize(
            str(plain),
            calibration_data_reader=Reader(),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(made),
            log_level="WARNING",
            **options,
        )
        yield name, made
