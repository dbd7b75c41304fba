"""Download and tokenize: documents, tokenizers, token shards and HellaSwag items. No module imports torch."""
