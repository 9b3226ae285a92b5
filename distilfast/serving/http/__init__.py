"""The HTTP server: FastAPI around a Batcher. Needs ``pip install distilfast[serve]``."""
