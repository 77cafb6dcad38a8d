"""Stored image features, which decoders are trained on."""
