"""Weights files: everything the rest of the code needs to know of safetensors is imported from here.

`safetensors_layout` judges headers, `safetensors_scan` reads a file once and says what is in it, `safetensors_writer`
writes. None of them imports torch, and none trusts a file.
"""

from messages.safetensors_layout import (
    CODES,
    DTYPES,
    FLOATING,
    TRANSFER,
    Layout,
    TensorSpec,
    WeightsFault,
    parse_layout,
    read_layout,
)
from messages.safetensors_scan import Scan, layout_of, scan_blob, scan_file, verify
from messages.safetensors_writer import Writer, read_tensors, write_file

__all__ = [
    "CODES",
    "DTYPES",
    "FLOATING",
    "TRANSFER",
    "Layout",
    "Scan",
    "TensorSpec",
    "WeightsFault",
    "Writer",
    "layout_of",
    "parse_layout",
    "read_layout",
    "read_tensors",
    "scan_blob",
    "scan_file",
    "verify",
    "write_file",
]
