"""Models in the form of the Hugging Face hub, run by transformers.

`source` finds a model's files, `families` know how each architecture is asked, `pixels` what its processor does to an
image, `generation` what a search means to transformers, `loaded` puts them together, `kind` is what the zoo sees.
"""
