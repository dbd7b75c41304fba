"""Download and tokenize: documents, tokenizers, token shards and benchmark items. No module imports torch."""
