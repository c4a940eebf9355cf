"""Domains out of one heap of unlabelled records: by what they say, or by a judge."""
