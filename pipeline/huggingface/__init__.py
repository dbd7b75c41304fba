"""GPT-2 as Hugging Face stores it: import and export."""
