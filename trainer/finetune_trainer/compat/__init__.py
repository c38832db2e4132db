"""Everything we use of the internals of other libraries: what their documentation does not promise to keep.

An upgrade of `datasets` or `transformers` is checked here first; `pyproject.toml` bounds both from above.
"""
