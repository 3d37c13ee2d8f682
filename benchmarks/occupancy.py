"""How many blocks of a kernel a multiprocessor holds, from what its code needs.

The rules are those of NVIDIA's calculator (`cuda_occupancy.h` of the CUDA toolkit): registers go to
warps in units of 256, in each of four partitions with a quarter of the 65536; shared memory goes to
blocks in units of 128 bytes, 1 KB of each reserved. Limits: "Technical Specifications per Compute
Capability" of the CUDA programming guide and the tuning guides of the architectures. For 12.0 the
tuning guide says 32 blocks, programming guide and calculator say 24: the smaller is taken.
"""

from __future__ import annotations

from typing import NamedTuple

_PARTITIONS, _PARTITION_REGISTERS, _REGISTER_UNIT = 4, 65536 // 4, 256
_SHARED_UNIT, _RESERVED = 128, 1024


class _Limits(NamedTuple):
    warps: int
    blocks: int
    shared: int  # bytes


# Of a multiprocessor, for the architectures that are compiled for (cmake/architectures.cmake).
LIMITS = {
    "sm_80": _Limits(64, 32, 164 << 10),
    "sm_90": _Limits(64, 32, 228 << 10),
    "sm_100": _Limits(64, 32, 228 << 10),
    "sm_120": _Limits(48, 24, 100 << 10),
}


def blocks_per_sm(architecture: str, registers: int, threads: int, shared: int) -> int:
    """Blocks that are resident on a multiprocessor at once; 0 where not even one fits.

    Args:
        architecture: such as "sm_90"
        registers: of a thread
        threads: of a block
        shared: bytes of a block, static and dynamic

    Raises:
        ValueError: the architecture is not a known one.
    """
    limits = _limits_of(architecture)
    warps = -(-threads // 32)
    registers_of_warp = _round_up(registers * 32, _REGISTER_UNIT)
    warps_by_registers = _PARTITIONS * (_PARTITION_REGISTERS // registers_of_warp)
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_by_registers // warps,
        limits.shared // _round_up(shared + _RESERVED, _SHARED_UNIT),
    )


def occupancy(architecture: str, registers: int, threads: int, shared: int) -> float:
    """Resident warps as a share of those that a multiprocessor can hold; arguments as above."""
    blocks = blocks_per_sm(architecture, registers, threads, shared)
    return blocks * -(-threads // 32) / _limits_of(architecture).warps


def _limits_of(architecture: str) -> _Limits:
    if architecture not in LIMITS:
        raise ValueError(
            f"the limits of {architecture} are not known: add them to {__name__}, from the table "
            '"Technical Specifications per Compute Capability" of the CUDA programming guide'
        )
    return LIMITS[architecture]


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
