"""Fetching token shards from the Hugging Face hub; `huggingface_hub` does the downloading.

Which files to take and whether their content is right is decided here; nothing is encoded.
"""
