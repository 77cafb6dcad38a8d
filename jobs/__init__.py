"""The Ray jobs: thin compositions of captionlib."""
