"""Captioners: images → captions, whatever kind of model writes them."""
