# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Says at once which of the packages that the GPU check needs cannot be imported."""

import importlib
import importlib.util
import sys

# What imports little comes first, so that what is missing is named by itself and not by who asks for it.
NEEDED = (
    *("numpy", "scipy", "sklearn", "skimage", "cv2", "PIL", "matplotlib", "tifffile", "einops", "filelock", "rich"),
    *("pandas", "platformdirs", "safetensors", "yaml", "docstring_parser", "jsonargparse", "omegaconf"),
    *("rich_argparse", "typeshed_client", "pytest", "torch", "torchvision", "torchmetrics", "lightning", "timm"),
    *("FrEIA", "kornia", "anomalib", "anomalib.data", "anomalib.deploy", "anomalib.engine", "anomalib_inp"),
    *("anomalib.models.image.inp_former", "anomalib_inp.models.inp_former_plus_plus"),
)
USEFUL = ("pytest_timeout", "xdist", "onnx", "onnxscript", "onnxruntime", "triton", "openvino", "nncf")


def main() -> int:
    """Import everything; returns 1 where something needed is missing."""
    faults = {}
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package may fail in its own way
            faults[name] = f"{type(error).__name__}: {error}"
    for name, fault in faults.items():
        print(f"missing: {name}: {fault}", flush=True)
    without = [name for name in USEFUL if importlib.util.find_spec(name) is None]
    print("not here, and done without:", ", ".join(without) or "nothing", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
