"""The four operations in Triton, for NVIDIA GPUs from Ampere on and AMD CDNA; installed as ``distilfast.kernels``.

One operation a file, under the names of every other room: ``embed``, ``linear``, ``attention``, ``add_layer_norm``.
``tuning`` says which tiles they run with, ``encoder`` in which order; ``launch`` is where all of them are launched.
"""
