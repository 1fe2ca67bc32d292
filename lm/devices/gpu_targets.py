"""Describes GPUs to XLA, as the text of its message GpuTargetConfigProto, so that it compiles for
one that is not there.
"""


def _target(
    device: str,
    capability: tuple[int, int],
    cores: int,
    clock: float,
    cache: int,
    memory: float,
    bandwidth: float,
) -> str:
    """The target of a GPU.

    Args:
      device: its name, as JAX has it in `device_kind`.
      capability: its compute capability, major and minor.
      cores: streaming multiprocessors.
      clock: GHz at most.
      cache: bytes of the second level.
      memory: bytes.
      bandwidth: bytes/s of it.
    """
    major, minor = capability
    shared = 164 if major == 8 else 228  # KiB of a multiprocessor, of which CUDA takes one
    return f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {major} minor: {minor} }}
        threads_per_block_limit: 1024
        threads_per_warp: 32
        shared_memory_per_block: 49152
        shared_memory_per_core: {shared * 1024}
        shared_memory_per_block_optin: {(shared - 1) * 1024}
        threads_per_core_limit: 2048
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        core_count: {cores}
        fpus_per_core: {64 if major == 8 else 128}
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        memory_bandwidth: {int(bandwidth)}
        l2_cache_size: {cache}
        clock_rate_ghz: {clock}
        device_memory_size: {int(memory)}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 8 }}
      device_description_str: "{device}"
    """


# By the first part of a host's name. NVIDIA's whitepapers of the architectures have the figures.
GPU_TARGETS = {
    "a100": _target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * 2**20, 80e9, 2039e9),
    "h100": _target("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * 2**20, 80e9, 3350e9),
    "h200": _target("NVIDIA H200", (9, 0), 132, 1.98, 50 * 2**20, 141e9, 4800e9),
}
