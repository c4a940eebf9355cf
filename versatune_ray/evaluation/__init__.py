"""Before and after: exact match on questions through vLLM, held-out loss, and the table that puts
them side by side.
"""
