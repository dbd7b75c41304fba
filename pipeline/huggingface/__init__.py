"""GPT-2 as Hugging Face stores it: import, export, tokenizer.json."""
