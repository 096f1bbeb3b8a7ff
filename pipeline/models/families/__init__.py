"""One file a model family; `registry.py` lists them. See pipeline/models/anatomy.py."""
