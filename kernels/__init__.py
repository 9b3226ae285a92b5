"""The four operations in Triton, for NVIDIA GPUs from Ampere on and AMD CDNA; installed as ``distilfast.kernels``.

One operation a file, named as everywhere in the project: ``embed``, ``linear``, ``attention``, ``add_layer_norm``.
``tuning`` chooses their tiles, ``encoder`` their order, and ``launch`` launches all of them.
"""
