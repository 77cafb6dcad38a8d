"""The commands and the Ray jobs behind them, composed of captionlib. `README.md` is the map."""
