"""Models in the format of the Hugging Face hub, run by transformers.

`source` finds the files of a model, `families` define how each architecture is prompted, `pixels` reproduces its image
processor, `generation` maps search settings to `generate`, `loaded` combines them, and `kind` is the row of the zoo.
"""
