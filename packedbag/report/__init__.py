"""What a table costs, measured, and how results are laid side by side."""
