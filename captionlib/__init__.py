"""Image captioning models and what belongs to them; usable without Ray."""
