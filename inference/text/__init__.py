"""Text to token ids: lyrics, prompt, tokenizer.

Independent of torch.
"""
