"""The VTA backend: workload and accelerator to nest, plan, instructions, results and cycles (no TVM, no torch)."""
