"""The rooms of the HTTP side: settings, schemas, problems and jobs.

It knows nothing of tensors: nothing in here imports torch.
"""
