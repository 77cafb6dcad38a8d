"""What every command shares: arguments, exit codes, error messages, progress bars."""
