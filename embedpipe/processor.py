"""What this machine's processor is good at."""

from __future__ import annotations

from pathlib import Path


def multiplies_bf16() -> bool:
    """Whether it has units for products of bfloat16 (AVX512-BF16, AMX); elsewhere they are slower than in float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
