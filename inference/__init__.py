"""YuE inference: from genre tags and lyrics to encoded audio.

Independent of HTTP, Flask and jobs.
"""
