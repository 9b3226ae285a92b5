"""Drop-ins for other libraries, one module for each; the library itself has to be installed.

For Ray there are two, ``ray`` (Serve) and ``ray_data``. ``parquet_job`` and ``cores`` have what of them needs no Ray.
"""
