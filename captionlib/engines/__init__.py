"""Engines: different ways to run an encoder, uint8 pixels → features."""
