# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What to install where a package is missing."""

SERVE = {
    "scipy",
    "fastapi",
    "fastapi_offline",
    "gradio",
    "prometheus_client",
    "pydantic",
    "starlette",
    "uvicorn",
    "watchfiles",
}
"""What is in the extra ``serve``; whatever else is missing is in ``train``."""


def what_is_missing(needs: str, error: ModuleNotFoundError) -> str:
    """Say what to install; an error that says so itself is left as it is."""
    extra = "serve" if error.name in SERVE else "train"
    return str(error) if "pip install" in str(error) else f"{needs} pip install 'anomalib-inp[{extra}]'. {error}"
