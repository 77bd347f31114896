"""The `autotvm` space: TVM's own conv2d template, its knobs and programs."""
