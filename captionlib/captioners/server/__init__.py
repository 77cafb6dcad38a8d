"""Captioners behind servers that speak OpenAI's chat protocol."""
