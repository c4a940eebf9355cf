"""The embedded default: a made-up six-domain world, and the tiny base model and judge that are
pre-trained on it.
"""
