"""The fused kernels, which only a planned step launches: `tinyres_gpu.plan` holds their launches."""
