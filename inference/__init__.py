"""Everything about YuE: from genre tags and lyrics to encoded audio.

Nothing here knows of HTTP, Flask or jobs.
"""
