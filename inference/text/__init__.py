"""Text to token ids: lyrics, prompt, tokenizer.

No torch.
"""
