"""Connects to Ray, and plans which machine does which work."""
