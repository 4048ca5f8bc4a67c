"""What processes of these tests run is no test."""

collect_ignore = ["planned.py"]
