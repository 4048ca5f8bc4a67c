"""Modules that ranks run are no tests, and importing TorchRec here would warn."""

collect_ignore_glob = ["*_checks.py", "*_cases.py", "collections.py", "row_wise_train.py", "worker.py"]
